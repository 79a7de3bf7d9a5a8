r"""Best-of-N that stops drawing when another candidate is not worth its cost.

Optimal stopping with recall (Weitzman 1979; Best of mini-N, arXiv 2510.04087, has the same aim): after
m rewards with mean x, standard deviation s and best b, another candidate's reward is predicted by
Student's t with nu = m - 1 degrees of freedom, location x and scale ``t = s sqrt(1 + 1/m)`` (normal
rewards under Jeffreys' prior). What it is expected to add,

    E[(r - b)+] = t [ f(z) (nu + z^2) / (nu - 1) - z (1 - F(z)) ],    z = (b - x) / t,

is compared with ``candidate_cost``; drawing stops once it is below. f and F are the density and the cdf
of the standard t. It falls as b grows, so prompts on which a good candidate came early stop early.

What a prompt's first few rewards say of their spread is little, and believing them costs most of what
stopping could save. A prior says what rewards of this policy are like: it counts as ``w`` candidates
seen before, of mean ``prior_mean`` and standard deviation ``prior_sd``; x, s and m are those of all.
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
    """Rounds of candidates until the next is expected to add less than it costs.

    Candidate i is the very one that ``bon`` would draw as its i-th, so what was saved is exact.
    """

    description: ClassVar[str] = "up to N samples in rounds, until another is not worth its cost"
    source: ClassVar[str] = "optimal stopping with recall; cf. arXiv 2510.04087"

    candidate_cost: float = Field(
        0.04,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="least gain in reward that another candidate must be expected to bring; about "
        "best-of-16's last for a normal reward at 0.04 standard deviations",
    )
    cost_unit: Literal["sd", "reward"] = Field(
        "sd",
        description="unit of the cost: standard deviations of the prompt's rewards, which suits any "
        "reward model, or raw reward, which spends more on prompts where rewards differ more",
    )
    min_n: int = Field(
        4,
        ge=1,
        le=MOST_COUNT,
        description="candidates of the first round; without a prior three are needed",
    )
    max_n: int | None = Field(None, ge=1, le=MOST_COUNT, description="most candidates; default: n")
    round_size: int = Field(2, ge=1, le=MOST_COUNT, description="candidates of each later round")
    prior_candidates: float = Field(
        0.0,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="candidates the prior counts as; 0: no prior",
    )
    prior_mean: float = Field(
        0.0,
        ge=-MOST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="mean reward of this policy's candidates",
    )
    prior_sd: float = Field(
        1.0,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="standard deviation of a prompt's rewards",
    )

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveBon:
        if self.max_n is not None and self.max_n < self.min_n:
            raise ValueError(f"max_n {self.max_n} is below min_n {self.min_n}")
        return self

    @property
    def prior(self) -> Prior:
        """What is believed before the first candidate."""
        return Prior(self.prior_candidates, self.prior_mean, self.prior_sd)

    def sequences(self, num_samples: int) -> int:
        """The largest round; what may be drawn in all is :meth:`most_candidates`."""
        return min(self.most_candidates(num_samples), max(self.min_n, self.round_size))

    def most_candidates(self, num_samples: int) -> int:
        """``max_n``, else n."""
        return num_samples if self.max_n is None else self.max_n

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw, look, draw again or stop; the best of all that was drawn."""
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
        return self.candidate_cost * believed(rewards, self.prior)[2]


@dataclass(frozen=True, slots=True)
class Prior:
    """Rewards as if so many candidates had been seen before; none by default."""

    candidates: float = 0.0
    mean: float = 0.0
    sd: float = 1.0


def believed(rewards: Float, prior: Prior) -> tuple[float, float, float]:
    """Number, mean and standard deviation (one degree of freedom off) of rewards and prior together."""
    seen, before = len(rewards), prior.candidates
    count = seen + before
    own = float(rewards.mean())
    mean = (seen * own + before * prior.mean) / count
    squares = float(np.square(rewards - own).sum()) + before * prior.sd**2
    squares += seen * before / count * (own - prior.mean) ** 2
    return count, mean, math.sqrt(squares / (count - 1)) if count > 1 else 0.0


def expected_gain(rewards: Float, prior: Prior = Prior()) -> float:
    """``E[(r - max)+]`` of another reward; infinite before three are known, 0 if all are equal."""
    if len(rewards) == 0 or len(rewards) + prior.candidates < 3:
        return math.inf
    count, mean, deviation = believed(rewards, prior)
    scale = deviation * math.sqrt(1 + 1 / count)
    if scale == 0.0:
        return 0.0
    freedom = count - 1
    z = (float(rewards.max()) - mean) / scale
    density, above = student_t(z, freedom)
    return scale * (density * (freedom + z * z) / (freedom - 1) - z * above)


def student_t(z: float, freedom: float) -> tuple[float, float]:
    """Density at z and probability above z of Student's t."""
    from scipy.special import stdtr  # half a second to import, and only this mode needs it

    log_density = (
        math.lgamma((freedom + 1) / 2)
        - math.lgamma(freedom / 2)
        - 0.5 * math.log(freedom * math.pi)
        - (freedom + 1) / 2 * math.log1p(z * z / freedom)
    )
    return math.exp(log_density), float(stdtr(freedom, -z))
