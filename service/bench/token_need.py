"""The row ``strategies``: tokens that each strategy needs for the mean reward of best-of-N.

Each family of settings is run on the same prompts at several settings, which gives a curve of mean reward
over tokens. Where the curve crosses the mean reward of best-of-N is the family's token need. The interval
resamples the prompts, the same for all settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.bench.figures import Figure
from service.bench.harness import Bench
from vbon.maths.intervals import MedianRange
from vbon.maths.reward_prior import RewardPrior, estimate_reward_prior

Float = NDArray[np.float64]

RESAMPLES = 2000
PRIOR_REPEATS = 8  # single samples of each prompt that the prior is estimated from
# Costs of one more candidate, in standard deviations of the reward.
COSTS = (0.2, 0.12, 0.08, 0.05, 0.03, 0.02)


@dataclass(frozen=True, slots=True)
class Family:
    """A mode over a policy, at several settings that trace its reward over its tokens."""

    name: str
    mode: str
    settings: list[dict[str, Any]]
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """Mean reward and mean tokens of each prompt over its repeats, of shape ``(prompts,)``."""

    reward: Float
    tokens: Float


async def token_need(bench: Bench) -> Figure:
    """The cheapest family over the reference policy: its token need over best-of-N's tokens.

    Best-of-n of a vBoN checkpoint with small n, if there is one, is listed but not compared: its training
    has been paid for.
    """
    prior = await _reference_prior(bench)
    target = await _measure(bench, "bon", {"n": bench.settings.n})
    found: dict[str, MedianRange] = {}
    for family in _families(prior):
        if family.policy is None or family.policy in bench.runtime.policies:
            curve = [
                await _measure(bench, family.mode, setting, family.policy)
                for setting in family.settings
            ]
            found[family.name] = relative_need(curve, target)
    over_reference = [name for name in found if "@" not in name]
    best = min(over_reference, key=lambda name: found[name].median)
    detail = "; ".join(
        f"{name} {value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"
        for name, value in found.items()
    )
    name = f"tokens for best-of-{bench.settings.n}'s mean reward, 95% interval"
    return Figure(f"{name}: {best}", found[best], 0.5, False, detail)


async def _reference_prior(bench: Bench) -> RewardPrior:
    """The prior that single samples of the reference policy give, a few of each prompt."""
    prompts = len(bench.prompts)
    result = await bench.over_http(
        "ref", prompts * PRIOR_REPEATS, bench.width(bench.settings.n), n=1, score=True
    )
    rewards = _by_prompt(result.rewards, PRIOR_REPEATS, prompts)
    return estimate_reward_prior(column[np.isfinite(column)] for column in rewards.T)


def _by_prompt(rewards: Sequence[float | None], repeats: int, prompts: int) -> Float:
    """Rewards of shape ``(repeats, prompts)``; NaN where one could not be scored."""
    return np.reshape([np.nan if r is None else r for r in rewards], (repeats, prompts))


def _families(prior: RewardPrior) -> list[Family]:
    """The families to compare."""
    each = {"n": 64, "min_n": 2, "cost_unit": "reward", **prior.settings()}
    return [
        Family("adaptive-bon", "adaptive-bon", [{"n": 64, "candidate_cost": c} for c in COSTS]),
        Family(
            "adaptive-bon with a prior",
            "adaptive-bon",
            [{**each, "candidate_cost": c * prior.sd} for c in COSTS],
        ),
        Family(
            "speculative-rejection",
            "speculative-rejection",
            [{"n": n} for n in (8, 16, 24, 32, 48)],
        ),
        Family("bon@vbon", "bon", [{"n": n} for n in (1, 2, 3, 4, 6)], "vbon"),
    ]


async def _measure(
    bench: Bench, mode: str, settings: dict[str, Any], policy: str | None = None
) -> Spent:
    repeats, prompts = bench.settings.pairs, len(bench.prompts)
    # Width by the target's n, because adaptive-bon draws few of its 64 candidates at once.
    width = bench.width(bench.settings.n)
    result = await bench.over_http(mode, prompts * repeats, width, policy=policy, **settings)
    rewards = _by_prompt(result.rewards, repeats, prompts)
    tokens = np.reshape(result.generated_tokens, (repeats, prompts))
    return Spent(rewards.mean(axis=0), tokens.mean(axis=0))


def relative_need(curve: list[Spent], target: Spent) -> MedianRange:
    """Tokens at which the curve reaches the target's mean reward, divided by the target's tokens.

    Returned with its 95% interval over resampled prompts; infinite if the curve stays below the target.
    Prompts that could not be scored at some setting are left out of all.
    """
    usable = np.isfinite(target.reward)
    for spent in curve:
        usable &= np.isfinite(spent.reward)
    rewards = np.stack([spent.reward[usable] for spent in curve])
    tokens = np.stack([spent.tokens[usable] for spent in curve])
    wanted, cost = target.reward[usable], target.tokens[usable]
    rng = np.random.default_rng(0)
    count = int(usable.sum())
    picks = rng.integers(count, size=(RESAMPLES, count))
    resampled = [
        tokens_needed(tokens[:, p].mean(axis=1), rewards[:, p].mean(axis=1), wanted[p].mean())
        / cost[p].mean()
        for p in picks
    ]
    point = tokens_needed(tokens.mean(axis=1), rewards.mean(axis=1), wanted.mean()) / cost.mean()
    low, high = np.quantile(resampled, [0.025, 0.975], method="nearest")
    return MedianRange(float(point), float(low), float(high), count)


def tokens_needed(tokens: Float, rewards: Float, wanted: float) -> float:
    """The fewest tokens at which the piecewise linear curve through the points reaches a reward."""
    order = np.argsort(tokens)
    tokens, rewards = tokens[order], rewards[order]
    if rewards[0] >= wanted:
        return float(tokens[0])
    for i in range(1, len(tokens)):
        if rewards[i] >= wanted:
            share = (wanted - rewards[i - 1]) / (rewards[i] - rewards[i - 1])
            return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))
    return float("inf")
