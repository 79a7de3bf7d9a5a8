r"""Best-of-N that stops drawing when another candidate is not worth its cost.

Optimal stopping with recall (Weitzman 1979; Best of mini-N, arXiv 2510.04087, has the same aim): after
m rewards with mean x, standard deviation s and best b, the reward r of another candidate follows Student's
t distribution with nu = m - 1 degrees of freedom, location x and scale ``t = s sqrt(1 + 1/m)`` (normal
rewards under Jeffreys' prior). Its expected gain,

    E[(r - b)+] = t [ f(z) (nu + z^2) / (nu - 1) - z (1 - F(z)) ],    z = (b - x) / t,

is compared with ``candidate_cost``, and drawing stops once it is lower. f and F are the density and the cdf
of the standard t distribution. The gain falls as b grows, so a prompt with a good early candidate stops
early.

The first few rewards of a prompt estimate their spread badly, and relying on them loses most of what
stopping could save. A prior describes the rewards of this policy: it counts as ``prior_candidates``
candidates seen before, with mean ``prior_mean`` and standard deviation ``prior_sd``. x, s and m are then
those of prior and rewards together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from service.strategies.bounds import LEAST_SCALE, MOST_COUNT, MOST_SCALE
from service.strategies.collect import collect
from service.strategies.protocol import (
    Float,
    Outcome,
    Resources,
    ScoredCandidate,
    Strategy,
    Task,
    tokens_of,
)
from service.strategies.rerank import highest, required_scorer, scored_only


class AdaptiveBon(Strategy):
    """Draws candidates in rounds, until the expected gain of another one is below its cost.

    Candidate i is the same one that ``bon`` would draw as its i-th, so the saving is known exactly.
    """

    description: ClassVar[str] = "up to N samples in rounds, until another is not worth its cost"
    source: ClassVar[str] = "optimal stopping with recall; cf. arXiv 2510.04087"

    candidate_cost: float = Field(
        0.04,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="expected gain in reward below which drawing stops; 0.04 standard deviations is about "
        "the gain from the 16th candidate for normally distributed rewards",
    )
    cost_unit: Literal["sd", "reward"] = Field(
        "sd",
        description="unit of the cost: standard deviations of the prompt's rewards, which suit any reward "
        "model, or raw reward, which draws more candidates for prompts whose rewards differ more",
    )
    min_n: int = Field(
        4,
        ge=1,
        le=MOST_COUNT,
        description="candidates of the first round; without a prior, at least 3 are drawn in all",
    )
    max_n: int | None = Field(
        None, ge=1, le=MOST_COUNT, description="most candidates in all; default: n"
    )
    round_size: int = Field(2, ge=1, le=MOST_COUNT, description="candidates of each later round")
    prior_candidates: float = Field(
        0.0,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="number of candidates that the prior counts as; 0 means no prior",
    )
    prior_mean: float = Field(
        0.0,
        ge=-MOST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="prior mean of the rewards",
    )
    prior_sd: float = Field(
        1.0,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="prior standard deviation of the rewards of one prompt",
    )

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveBon:
        if self.max_n is not None and self.max_n < self.min_n:
            raise ValueError(f"max_n {self.max_n} is below min_n {self.min_n}")
        return self

    @property
    def prior(self) -> Prior:
        """The prior on the rewards, from the settings."""
        return Prior(self.prior_candidates, self.prior_mean, self.prior_sd)

    def sequences(self, num_samples: int) -> int:
        """The size of the largest round; :meth:`most_candidates` limits all rounds together."""
        return min(self.most_candidates(num_samples), max(self.min_n, self.round_size))

    def most_candidates(self, num_samples: int) -> int:
        """``max_n`` if it is set, else n."""
        return num_samples if self.max_n is None else self.max_n

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw rounds of candidates until it is worth no more, and choose the best of all."""
        scorer = required_scorer(resources.scorer, self.description)
        most = self.most_candidates(task.num_samples)
        drawn: list[ScoredCandidate] = []
        decode_ms = rerank_ms = gain = 0.0
        rounds = 0
        while len(drawn) < most:
            size = min(self.round_size if drawn else self.min_n, most - len(drawn))
            collected = await collect(task, resources.engine, scorer, size, first_index=len(drawn))
            drawn.extend(collected.candidates)
            decode_ms += collected.decode_ms
            rerank_ms += collected.rerank_ms
            rounds += 1
            rewards = np.array([c.reward for c in drawn if c.reward is not None], dtype=np.float64)
            gain = expected_gain(rewards, self.prior)
            if gain < self._cost(rewards):
                break
        return Outcome(
            highest(scored_only(drawn)),
            tuple(drawn),
            decode_ms,
            rerank_ms,
            tokens_of(drawn),
            {
                "rounds": rounds,
                "candidates": len(drawn),
                "max_candidates": most,
                "expected_gain": gain if math.isfinite(gain) else None,
                "stopped_early": len(drawn) < most,
            },
        )

    def _cost(self, rewards: Float) -> float:
        if self.cost_unit == "reward" or len(rewards) < 2:
            return self.candidate_cost
        return self.candidate_cost * posterior_moments(rewards, self.prior)[2]


@dataclass(frozen=True, slots=True)
class Prior:
    """The prior on a prompt's rewards: as many candidates seen before, with this mean and deviation."""

    candidates: float = 0.0
    mean: float = 0.0
    sd: float = 1.0


def posterior_moments(rewards: Float, prior: Prior) -> tuple[float, float, float]:
    """Number, mean and standard deviation (``count - 1`` degrees of freedom) with the prior."""
    seen, before = len(rewards), prior.candidates
    count = seen + before
    own = float(rewards.mean())
    mean = (seen * own + before * prior.mean) / count
    squares = float(np.square(rewards - own).sum()) + before * prior.sd**2
    squares += seen * before / count * (own - prior.mean) ** 2
    return count, mean, math.sqrt(squares / (count - 1)) if count > 1 else 0.0


def expected_gain(rewards: Float, prior: Prior = Prior()) -> float:
    """The expected gain ``E[(r - max)+]`` of another candidate.

    Infinite if rewards and prior count for fewer than three candidates, 0 if all rewards are equal.
    """
    if len(rewards) == 0 or len(rewards) + prior.candidates < 3:
        return math.inf
    count, mean, deviation = posterior_moments(rewards, prior)
    scale = deviation * math.sqrt(1 + 1 / count)
    if scale == 0.0:
        return 0.0
    freedom = count - 1
    z = (float(rewards.max()) - mean) / scale
    density, above = student_t(z, freedom)
    return scale * (density * (freedom + z * z) / (freedom - 1) - z * above)


def student_t(z: float, freedom: float) -> tuple[float, float]:
    """Density at z and probability above z, for Student's t distribution."""
    from scipy.special import stdtr  # takes half a second to import, and only this mode uses it

    log_density = (
        math.lgamma((freedom + 1) / 2)
        - math.lgamma(freedom / 2)
        - 0.5 * math.log(freedom * math.pi)
        - (freedom + 1) / 2 * math.log1p(z * z / freedom)
    )
    return math.exp(log_density), float(stdtr(freedom, -z))
