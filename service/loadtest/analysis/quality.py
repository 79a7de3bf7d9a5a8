"""Rewards and win rates of each variant, from scored answers to the same prompts.

Timed requests of single-sample modes are not scored, because their users would not pay for scoring. Every
variant is therefore asked again with scores. Best-of-N is asked only once, at the largest N and for all its
candidates: every smaller N is estimated from them without bias (``vbon/maths/curves.py``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.loadtest.analysis.intervals import Float, interval
from service.loadtest.observation import ScoredAnswer
from service.loadtest.plan import Variant
from service.loadtest.schema import Quality, RewardAtN
from vbon.maths.curves import expected_best, pairwise_win_rate, selection_weights

Rows = Sequence[ScoredAnswer]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Rewards and gold rewards by prompt of the variant that win rates are computed against."""

    rewards: dict[int, Float]
    golds: dict[int, Float]


def baseline_of(rows: Rows) -> Baseline:
    """The baseline's rewards from its scored answers."""
    rewards: dict[int, list[float]] = defaultdict(list)
    golds: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.reward is not None:
            rewards[row.prompt].append(row.reward)
        if row.gold is not None:
            golds[row.prompt].append(row.gold)
    return Baseline(*({p: np.array(v) for p, v in found.items()} for found in (rewards, golds)))


def quality_of(variant: Variant, rows: Rows, baseline: Baseline | None) -> Quality:
    """The figures of one variant, without win rates if ``baseline`` is ``None``."""
    rewards, golds = _ByPrompt(), _ByPrompt()
    singles: list[float] = []
    truncated: list[float] = []
    for row in rows:
        values, weights = _answers(variant, row)
        if values is None:
            continue
        rewards.add(row.prompt, values, weights, None if baseline is None else baseline.rewards)
        ends = [row.truncated] if row.candidates is None else row.candidates_truncated
        if ends is not None and None not in ends:
            truncated.append(float(weights @ np.array(ends, dtype=np.float64)))
        singles += _independent_answers(variant, values)
        gold = _golds(row)
        if gold is not None:
            golds.add(row.prompt, gold, weights, None if baseline is None else baseline.golds)
    return Quality(
        variant=variant.label,
        mode=variant.name,
        n=variant.n,
        reward=interval(list(rewards.means.values())),
        win_rate=interval(list(rewards.win_rates.values())),
        gold=interval(list(golds.means.values())),
        gold_win_rate=interval(list(golds.win_rates.values())),
        prompt_golds={str(prompt): value for prompt, value in golds.means.items()},
        answers=len(singles),
        unscored=sum(row.unscored for row in rows),
        errors=dict(Counter(row.error for row in rows if row.error is not None)),
        truncated_share=float(np.mean(truncated)) if truncated else None,
        rewards=[round(value, 5) for value in singles],
        prompt_rewards={str(prompt): value for prompt, value in rewards.means.items()},
    )


class _ByPrompt:
    """Means and win rates by prompt of one kind of reward."""

    def __init__(self) -> None:
        self._rewards: dict[int, list[float]] = defaultdict(list)
        self._wins: dict[int, list[float]] = defaultdict(list)

    def add(
        self, prompt: int, values: Float, weights: Float, baseline: dict[int, Float] | None
    ) -> None:
        """Add an answer by the rewards that it may have and their probabilities."""
        self._rewards[prompt].append(float(weights @ values))
        against = None if baseline is None else baseline.get(prompt)
        if against is not None:
            beaten = [pairwise_win_rate(np.array([value]), against) for value in values]
            self._wins[prompt].append(float(weights @ np.array(beaten)))

    @property
    def means(self) -> dict[int, float]:
        """Mean rewards in the order of the prompts."""
        return {prompt: float(np.mean(found)) for prompt, found in sorted(self._rewards.items())}

    @property
    def win_rates(self) -> dict[int, float]:
        """Win rates in the order of the prompts that the baseline has too."""
        return {prompt: float(np.mean(found)) for prompt, found in sorted(self._wins.items())}


def _answers(variant: Variant, row: ScoredAnswer) -> tuple[Float | None, Float]:
    """Rewards of the possible answers and their probabilities.

    Those of the only answer, or of best-of-N over the candidates; ``None`` if too few could be scored.
    """
    if row.candidates is not None:
        if len(row.candidates) < variant.n:
            return None, np.zeros(0)
        values = np.array(row.candidates)
        return values, selection_weights(values, variant.n)
    if row.reward is None:
        return None, np.zeros(0)
    return np.array([row.reward]), np.ones(1)


def _golds(row: ScoredAnswer) -> Float | None:
    """Gold rewards of the answers of :func:`_answers`; ``None`` if one of them has none."""
    found = [row.gold] if row.candidates is None else (row.gold_candidates or [])
    known = [value for value in found if value is not None]
    wanted = 1 if row.candidates is None else len(row.candidates)
    return np.array(known) if len(known) == wanted else None


def _independent_answers(variant: Variant, values: Float) -> list[float]:
    """Rewards of independent answers: the best of each N consecutive candidates."""
    step = variant.n if len(values) > 1 else 1
    return [float(values[i : i + step].max()) for i in range(0, len(values) - step + 1, step)]


def curve_matrix(rows: Rows, largest: int, *, gold: bool = False) -> tuple[list[int], Float]:
    """Prompts with candidates, and the expected reward of the best of 1..largest of them by prompt.

    Args:
        gold: the gold reward of the candidate that has the best reward, instead of that reward.
    """
    by_prompt: dict[int, list[Float]] = defaultdict(list)
    for row in rows:
        if row.candidates is None or len(row.candidates) < largest:
            continue
        values = np.array(row.candidates)
        golds = _golds(row) if gold else None
        if gold and golds is None:
            continue
        line = [expected_best(values, n, golds) for n in range(1, largest + 1)]
        by_prompt[row.prompt].append(np.array(line))
    prompts = sorted(by_prompt)
    means = [np.mean(by_prompt[prompt], axis=0) for prompt in prompts]
    return prompts, np.array(means).reshape(len(prompts), largest)


def curve_of(matrix: Float) -> list[RewardAtN]:
    """The mean reward over prompts with its interval, for each n."""
    points = []
    for n, column in enumerate(matrix.T, start=1):
        found = interval(column.tolist())
        if found is not None:
            points.append(RewardAtN(n=n, reward=found))
    return points
