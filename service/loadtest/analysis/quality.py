"""Rewards and win rates of each variant, from scored answers to the same prompts.

Timed requests of single-sample modes are not scored, because their users would not pay for scoring. Every
variant is therefore asked again with scores. Best-of-N is asked only once, at the largest N and for all its
candidates: every smaller N is estimated from them without bias (``vbon/maths/curves.py``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from service.loadtest.analysis.intervals import Float, interval
from service.loadtest.observation import ScoredAnswer
from service.loadtest.plan import Variant
from service.loadtest.schema import Quality, RewardAtN
from vbon.maths.curves import expected_best, pairwise_win_rate, selection_weights

Rows = Sequence[ScoredAnswer]


def baseline_rewards(rows: Rows) -> dict[int, Float]:
    """Rewards by prompt of the baseline variant, against which win rates are computed."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row.reward is not None:
            found[row.prompt].append(row.reward)
    return {prompt: np.array(values) for prompt, values in found.items()}


def quality_of(variant: Variant, rows: Rows, baseline: dict[int, Float] | None) -> Quality:
    """The figures of one variant, without a win rate if ``baseline`` is ``None``."""
    rewards: dict[int, list[float]] = defaultdict(list)
    wins: dict[int, list[float]] = defaultdict(list)
    singles: list[float] = []
    truncated: list[float] = []
    for row in rows:
        against = None if baseline is None else baseline.get(row.prompt)
        values, weights = _answers(variant, row)
        if values is None:
            continue
        rewards[row.prompt].append(float(weights @ values))
        ends = [row.truncated] if row.candidates is None else row.candidates_truncated
        if ends is not None and None not in ends:
            truncated.append(float(weights @ np.array(ends, dtype=np.float64)))
        singles += _independent_answers(variant, values)
        if against is not None:
            beaten = [pairwise_win_rate(np.array([value]), against) for value in values]
            wins[row.prompt].append(float(weights @ np.array(beaten)))
    by_prompt = {str(prompt): float(np.mean(found)) for prompt, found in sorted(rewards.items())}
    return Quality(
        variant=variant.label,
        mode=variant.name,
        n=variant.n,
        reward=interval(list(by_prompt.values())),
        win_rate=interval([float(np.mean(found)) for found in wins.values()]),
        answers=len(singles),
        unscored=sum(row.unscored for row in rows),
        errors=dict(Counter(row.error for row in rows if row.error is not None)),
        truncated_share=float(np.mean(truncated)) if truncated else None,
        rewards=[round(value, 5) for value in singles],
        prompt_rewards=by_prompt,
    )


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


def _independent_answers(variant: Variant, values: Float) -> list[float]:
    """Rewards of independent answers: the best of each N consecutive candidates."""
    step = variant.n if len(values) > 1 else 1
    return [float(values[i : i + step].max()) for i in range(0, len(values) - step + 1, step)]


def curve_matrix(rows: Rows, largest: int) -> tuple[list[int], Float]:
    """Prompts with candidates, and the expected best reward of 1..largest of them by prompt."""
    by_prompt: dict[int, list[Float]] = defaultdict(list)
    for row in rows:
        if row.candidates is not None and len(row.candidates) >= largest:
            values = np.array(row.candidates)
            line = [expected_best(values, n) for n in range(1, largest + 1)]
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
