"""What strategies save: tokens spent for the mean reward of best-of-N, on the same prompts.

Each family is run at several settings, which trace its mean reward against its tokens; where the curve
crosses best-of-N's mean reward is what the family needs for it. The interval resamples the prompts,
of all settings alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestofn.statistics import Spread
from service.bench.harness import Bench, Figure

Float = NDArray[np.float64]

RESAMPLES = 2000
REPEATS = 2  # of each prompt at each setting
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "adaptive-bon": [
        {"n": 64, "candidate_cost": cost} for cost in (0.2, 0.12, 0.08, 0.05, 0.03, 0.02)
    ],
    "speculative-rejection": [{"n": n} for n in (8, 16, 24, 32, 48)],
}


@dataclass(frozen=True, slots=True)
class Spent:
    """Per prompt, means over its repeats: shapes ``(prompts,)``."""

    reward: Float
    tokens: Float


async def strategies(bench: Bench) -> Figure:
    """The cheapest family: its tokens over best-of-N's, at best-of-N's mean reward."""
    target = await _spend(bench, "bon", {"n": bench.settings.n})
    found: dict[str, Spread] = {}
    for mode, settings in FAMILIES.items():
        curve = [await _spend(bench, mode, setting) for setting in settings]
        found[mode] = relative_cost(curve, target)
    best = min(found, key=lambda mode: found[mode].median)
    detail = "; ".join(
        f"{mode} {value.median:.2f} [{value.low:.2f}, {value.high:.2f}]"
        for mode, value in found.items()
    )
    name = f"tokens for best-of-{bench.settings.n}'s mean reward, 95% interval"
    return Figure(f"{name}: {best}", found[best], 0.5, False, detail)


async def _spend(bench: Bench, mode: str, settings: dict[str, Any]) -> Spent:
    prompts = len(bench.prompts)
    width = bench.width(int(settings["n"]))
    result = await bench.over_http(mode, prompts * REPEATS, width, **settings)
    rewards = [np.nan if reward is None else reward for reward in result.rewards]
    return Spent(
        np.reshape(rewards, (REPEATS, prompts)).mean(axis=0),
        np.reshape(result.generated_tokens, (REPEATS, prompts)).mean(axis=0),
    )


def relative_cost(curve: list[Spent], target: Spent) -> Spread:
    """Tokens at which the curve reaches the target's mean reward, over the target's.

    The value with its 95% interval over resampled prompts; infinite where the curve stays below.
    Prompts that could not be scored somewhere are left out everywhere.
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
        crossing(tokens[:, p].mean(axis=1), rewards[:, p].mean(axis=1), wanted[p].mean())
        / cost[p].mean()
        for p in picks
    ]
    point = crossing(tokens.mean(axis=1), rewards.mean(axis=1), wanted.mean()) / cost.mean()
    low, high = np.quantile(resampled, [0.025, 0.975], method="nearest")
    return Spread(float(point), float(low), float(high), count)


def crossing(tokens: Float, rewards: Float, wanted: float) -> float:
    """Least tokens at which the piecewise linear curve through the points reaches a reward."""
    order = np.argsort(tokens)
    tokens, rewards = tokens[order], rewards[order]
    if rewards[0] >= wanted:
        return float(tokens[0])
    for i in range(1, len(tokens)):
        if rewards[i] >= wanted:
            share = (wanted - rewards[i - 1]) / (rewards[i] - rewards[i - 1])
            return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))
    return float("inf")
