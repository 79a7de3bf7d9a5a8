r"""Best-of-N that stops drawing when another candidate is not worth its cost.

Optimal stopping with recall (Weitzman 1979), applied to best-of-N in arXiv 2510.01394, which stops at an
upper confidence bound of Weitzman's threshold where this file takes the expected gain itself. After m
rewards with mean x, sum of squared deviations S and best b, the reward r of another candidate follows
Student's t distribution with nu degrees of freedom, location mu and scale ``t = s sqrt(1 + 1/k)``. Its
expected gain,

    E[(r - b)+] = t [ f(z) (nu + z^2) / (nu - 1) - z (1 - F(z)) ],    z = (b - mu) / t,

is compared with ``candidate_cost``, and drawing stops once it is lower. f and F are the density and the cdf
of the standard t distribution. The gain falls as b grows, so a prompt with a good early candidate stops
early.

Without a prior, ``k = m``, ``mu = x``, ``nu = m - 1`` and ``s^2 = S / nu`` (normal rewards under Jeffreys'
prior). The first few rewards of a prompt estimate its mean and spread badly, and relying on them loses most
of what stopping could save. The conjugate prior has a certainty for each of the two: ``prior_mean`` counts
as k0 candidates and ``prior_sd`` as nu0 degrees of freedom, and

    k = k0 + m,    nu = nu0 + m,    mu = (k0 prior_mean + m x) / k,
    s^2 = [nu0 prior_sd^2 + S + (k0 m / k) (x - prior_mean)^2] / nu;    nu is one less if k0 = 0.

k0 is the variance of rewards within prompts over the variance of prompts' means. One number for both would
have to be large for the spread, which prompts share, and small for the means, which they do not.
``vbon.maths.reward_prior`` estimates all four numbers.

With ``stop_at_reward``, no cost and rounds of one candidate this is rejection at a threshold (arXiv
2507.12399): the first candidate that reaches it is returned, and the best of n if none does.
``vbon.maths.rejection`` calibrates the threshold for a mean number of candidates.
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
from service.strategies.rerank import eligible, highest, required_scorer
from vbon.errors import InvalidInputError


class AdaptiveBon(Strategy):
    """Draws candidates in rounds, until the expected gain of another one is below its cost.

    Candidate i is the same one that ``bon`` would draw as its i-th, so the saving is known exactly.
    """

    description: ClassVar[str] = "up to N samples in rounds, until another is not worth its cost"
    source: ClassVar[str] = "optimal stopping with recall; cf. arXiv 2510.01394"

    candidate_cost: float = Field(
        0.04,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="expected gain in reward below which drawing stops; for normally distributed rewards "
        "the 13th candidate gains 0.039 standard deviations, the 16th 0.030",
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
    prior_mean: float = Field(
        0.0,
        ge=-MOST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="prior mean of the rewards",
    )
    prior_mean_candidates: float = Field(
        0.0,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="number of candidates that the prior mean counts as: the variance of rewards within "
        "prompts over the variance of prompts' means; 0 means no prior mean",
    )
    prior_sd: float = Field(
        1.0,
        ge=LEAST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="prior standard deviation of the rewards of one prompt",
    )
    prior_sd_candidates: float = Field(
        0.0,
        ge=0,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="degrees of freedom that the prior standard deviation counts as, 31 if prompts differ "
        "little in it; 0 means no prior standard deviation",
    )
    stop_at_reward: float | None = Field(
        None,
        ge=-MOST_SCALE,
        le=MOST_SCALE,
        allow_inf_nan=False,
        description="reward that is good enough: drawing stops once a candidate has it (1 for a verifier "
        "that answers 0 or 1; `vbon sample` tells others)",
    )

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveBon:
        if self.max_n is not None and self.max_n < self.min_n:
            raise ValueError(f"max_n {self.max_n} is below min_n {self.min_n}")
        return self

    @property
    def prior(self) -> Prior:
        """The prior on the rewards, from the settings."""
        return Prior(
            mean=self.prior_mean,
            sd=self.prior_sd,
            mean_candidates=self.prior_mean_candidates,
            sd_candidates=self.prior_sd_candidates,
        )

    def with_answers(self, answers: int) -> AdaptiveBon:
        """This strategy with at least so many candidates in its first round."""
        if self.max_n is not None and self.max_n < answers:
            raise InvalidInputError(
                f"max_n is {self.max_n}, below n, the number of answers, which is {answers}; raise max_n or "
                "lower n",
                field="max_n",
            )
        return self.model_copy(update={"min_n": max(self.min_n, answers)})

    def sequences(self, num_samples: int) -> int:
        """The size of the largest round; :meth:`most_candidates` limits all rounds together."""
        return min(self.most_candidates(num_samples), max(self.min_n, self.round_size))

    def most_candidates(self, num_samples: int) -> int:
        """``max_n`` if it is set, else n."""
        return num_samples if self.max_n is None else self.max_n

    def independent(self, num_samples: int) -> int:
        """The candidates of the first round; rewards decide whether there are further ones."""
        return min(self.min_n, self.most_candidates(num_samples))

    async def run(self, task: Task, resources: Resources) -> Outcome:
        """Draw rounds of candidates until it is worth no more, and choose the best of all."""
        scorer = required_scorer(resources.scorer, self.description)
        most = self.most_candidates(task.num_samples)
        drawn: list[ScoredCandidate] = []
        decode_ms = rerank_ms = gain = 0.0
        rounds = 0
        while size := self.next_round(len(drawn), most):
            collected = await collect(task, resources.engine, scorer, size, first_index=len(drawn))
            drawn.extend(collected.candidates)
            decode_ms += collected.decode_ms
            rerank_ms += collected.rerank_ms
            rounds += 1
            rewards = np.array([c.reward for c in drawn if c.reward is not None], dtype=np.float64)
            gain, enough = self.judge(rewards)
            if enough:
                break
        return Outcome(
            highest(eligible(drawn, task.sampling)),
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

    def next_round(self, drawn: int, most: int) -> int:
        """The number of candidates to draw next if drawing goes on; 0 if there are ``most`` already."""
        return min(self.round_size if drawn else self.min_n, most - drawn)

    def judge(self, rewards: Float) -> tuple[float, bool]:
        """The expected gain of another candidate after these rewards, and whether drawing stops."""
        gain = expected_gain(rewards, self.prior)
        return gain, self._is_enough(rewards) or gain < self._cost(rewards)

    def replay(self, rewards: Float, num_samples: int) -> list[int]:
        """The sizes of the rounds that would have drawn candidates of these rewards, in this order.

        Args:
            rewards: of at least :meth:`most_candidates` candidates; NaN where one could not be scored.
        """
        most = self.most_candidates(num_samples)
        if most > len(rewards):
            raise ValueError(f"up to {most} candidates may be drawn, and {len(rewards)} are given")
        sizes: list[int] = []
        drawn = 0
        while size := self.next_round(drawn, most):
            sizes.append(size)
            drawn += size
            seen = rewards[:drawn]
            if self.judge(seen[~np.isnan(seen)])[1]:
                break
        return sizes

    def _is_enough(self, rewards: Float) -> bool:
        return self.stop_at_reward is not None and bool((rewards >= self.stop_at_reward).any())

    def _cost(self, rewards: Float) -> float:
        if self.cost_unit == "reward" or len(rewards) == 0:
            return self.candidate_cost
        return self.candidate_cost * float(predict_next(rewards, self.prior).deviation)


@dataclass(frozen=True, slots=True)
class Prior:
    """The prior distribution of a prompt's rewards.

    Attributes:
        mean_candidates: number of candidates that ``mean`` counts as; 0 ignores it.
        sd_candidates: degrees of freedom that ``sd`` counts as; 0 ignores it.
    """

    mean: float = 0.0
    sd: float = 1.0
    mean_candidates: float = 0.0
    sd_candidates: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The reward of the next candidate: Student's t distribution, one for each row of rewards.

    Attributes:
        deviation: standard deviation of rewards about their mean; 0 if nothing is known of it.
        scale: the same with the uncertainty of the mean.
    """

    freedom: float
    location: Float
    deviation: Float
    scale: Float


def predict_next(rewards: Float, prior: Prior) -> Prediction:
    """The distribution of the next reward after ``rewards``, of shape ``(..., m)`` with m at least 1."""
    seen = rewards.shape[-1]
    own = rewards.mean(axis=-1)
    count = seen + prior.mean_candidates
    location = (seen * own + prior.mean_candidates * prior.mean) / count
    squares = np.square(rewards - own[..., None]).sum(axis=-1)
    squares += prior.sd_candidates * prior.sd**2
    squares += seen * prior.mean_candidates / count * (own - prior.mean) ** 2
    freedom = seen + prior.sd_candidates - (prior.mean_candidates == 0)
    deviation = np.sqrt(squares / freedom) if freedom > 0 else np.zeros_like(own)
    return Prediction(freedom, location, deviation, deviation * math.sqrt(1 + 1 / count))


def expected_gain(rewards: Float, prior: Prior = Prior()) -> float:
    """The expected gain ``E[(r - max)+]`` of another candidate.

    Infinite while nothing is known of the spread: without rewards, with at most one degree of freedom, or
    if all rewards are equal and there is no prior standard deviation. Equal rewards are what a verifier
    gives until the first success.
    """
    if len(rewards) == 0 or (prior.sd_candidates == 0 and rewards.min() == rewards.max()):
        return math.inf
    prediction = predict_next(rewards, prior)
    if not prediction.scale > 0:
        return math.inf
    return float(expected_excess(rewards.max(), prediction))


def expected_excess(best: Float, prediction: Prediction) -> Float:
    """``E[(r - best)+]`` for the predicted reward r, elementwise; the scale must not be 0."""
    freedom, scale = prediction.freedom, prediction.scale
    if freedom <= 1:
        return np.full_like(scale, math.inf)  # the mean of the distribution's tail
    z = (best - prediction.location) / scale
    density, above = student_t(z, freedom)
    excess: Float = scale * (density * (freedom + z * z) / (freedom - 1) - z * above)
    return excess


def student_t(z: Float, freedom: float) -> tuple[Float, Float]:
    """Density at z and probability above z, for Student's t distribution."""
    from scipy.special import stdtr  # takes half a second to import, and only this mode uses it

    log_density = (
        math.lgamma((freedom + 1) / 2)
        - math.lgamma(freedom / 2)
        - 0.5 * math.log(freedom * math.pi)
        - (freedom + 1) / 2 * np.log1p(z * z / freedom)
    )
    return np.exp(log_density), stdtr(freedom, -z)
