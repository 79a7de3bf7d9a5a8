"""A prior distribution of a prompt's rewards, estimated from the rewards of other prompts.

The rewards of a prompt are taken as normal about the prompt's mean; means are normal over prompts and the
variances within prompts follow a scaled inverse chi-squared distribution. All estimates are by moments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from vbon.errors import DataError

# Prompts that hardly differ give an estimate that is only noise beyond these.
MOST_MEAN_CANDIDATES, MOST_SD_CANDIDATES = 1000.0, 100.0
LEAST_SD = 1e-6  # below any difference of rewards that matters, and not 0


@dataclass(frozen=True, slots=True)
class RewardPrior:
    """The prior of ``adaptive-bon``, whose settings have these names after ``prior_``.

    Attributes:
        mean: mean reward over prompts.
        sd: standard deviation of the rewards of one prompt.
        mean_candidates: number of candidates that ``mean`` counts as: variance within prompts over variance
            of prompts' means.
        sd_candidates: degrees of freedom that ``sd`` counts as, 4 or more; fewer if prompts differ in it.
    """

    mean: float
    sd: float
    mean_candidates: float
    sd_candidates: float

    def settings(self) -> dict[str, float]:
        """The values by the names of ``adaptive-bon``'s settings."""
        return {f"prior_{name}": value for name, value in asdict(self).items()}


def estimate_reward_prior(rewards_by_prompt: Iterable[NDArray[np.float64]]) -> RewardPrior:
    """Estimate the prior from the rewards of each prompt; prompts with one reward are left out.

    Raises:
        DataError: fewer than two prompts have two rewards.
    """
    groups = [rewards for rewards in rewards_by_prompt if len(rewards) > 1]
    if len(groups) < 2:
        raise DataError(
            f"a prior needs two prompts with two rewards each, and there are {len(groups)}"
        )
    counts = np.array([len(rewards) for rewards in groups], dtype=np.float64)
    means = np.array([rewards.mean() for rewards in groups])
    variances = np.array([rewards.var(ddof=1) for rewards in groups])
    within = float(variances.mean())
    # The variance of a sample mean is added to that of the means themselves.
    between = float(means.var(ddof=1) - (variances / counts).mean())
    freedom = _spread_freedom(variances, float((2 / (counts - 1)).mean()))
    return RewardPrior(
        mean=float(means.mean()),
        # The mean of the inverse chi-squared distribution is f / (f - 2) times its scale.
        sd=max(float(np.sqrt(within * (freedom - 2) / freedom)), LEAST_SD),
        mean_candidates=_capped_ratio(within, between, MOST_MEAN_CANDIDATES),
        sd_candidates=freedom,
    )


def _spread_freedom(variances: NDArray[np.float64], sampling: float) -> float:
    """Degrees of freedom of the variances' distribution over prompts.

    With f of them, the squared coefficient of variation of the true variances is ``2 / (f - 4)``. That of
    sample variances is larger: a sample's own, ``sampling``, comes on top.
    """
    mean = float(variances.mean())
    if mean == 0.0:
        return MOST_SD_CANDIDATES
    observed = float(variances.var(ddof=1)) / mean**2
    true = (observed - sampling) / (1 + sampling)
    return min(4 + _capped_ratio(2.0, true, MOST_SD_CANDIDATES), MOST_SD_CANDIDATES)


def _capped_ratio(numerator: float, denominator: float, most: float) -> float:
    return numerator / denominator if denominator * most > numerator else most
