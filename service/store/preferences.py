"""Blind preferences: which of two answers people prefer, beside what the reward model prefers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import select

from service.store.database import Store
from service.store.tables import PreferenceRow
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import wilson_interval

Winner = Literal["a", "b", "tie"]
_SCORE = {"a": 1.0, "tie": 0.5, "b": 0.0}


@dataclass(frozen=True, slots=True)
class Shown:
    """One of the two answers; ``reward`` is ``None`` if it was not scored."""

    mode: str
    n: int
    text: str
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """A verdict, given without knowing which mode wrote which answer."""

    prompt: str
    a: Shown
    b: Shown
    winner: Winner


@dataclass(frozen=True, slots=True)
class HumanWinRate:
    """The verdicts on one mode and N against another.

    Attributes:
        win_rate: share of verdicts won, ties counting 1/2, with its 95% interval over verdicts.
        reward_win_rate: the same by the reward model; ``None`` if no pair was scored on both sides.
    """

    mode: str
    n: int
    against: str
    against_n: int
    wins: int
    losses: int
    ties: int
    win_rate: MeanInterval
    reward_win_rate: MeanInterval | None


def add_preference(store: Store, preference: Preference) -> int:
    """Store a verdict; return its id.

    Raises:
        ValueError: both answers are of the same mode and N, so the verdict compares nothing.
        StoreError: the database reported an error.
    """
    a, b = preference.a, preference.b
    if (a.mode, a.n) == (b.mode, b.n):
        raise ValueError(
            f"both answers are of mode {a.mode} with N = {a.n}, so the verdict compares nothing"
        )
    row = PreferenceRow(
        created=datetime.now(UTC),
        prompt=preference.prompt,
        mode_a=a.mode,
        n_a=a.n,
        answer_a=a.text,
        reward_a=a.reward,
        mode_b=b.mode,
        n_b=b.n,
        answer_b=b.text,
        reward_b=b.reward,
        winner=preference.winner,
    )
    with store.session() as session:
        session.add(row)
        session.flush()
        return row.id


Key = tuple[str, int]


def human_win_rates(store: Store) -> list[HumanWinRate]:
    """Win rates of each pair of modes, whichever side each was shown on; most verdicts first."""
    verdicts: dict[tuple[Key, Key], list[float]] = defaultdict(list)
    rewards: dict[tuple[Key, Key], list[float]] = defaultdict(list)
    with store.session(reads_only=True) as session:
        for row in session.scalars(select(PreferenceRow)):
            a, b = (row.mode_a, row.n_a), (row.mode_b, row.n_b)
            pair = (min(a, b), max(a, b))
            score = _SCORE[row.winner]
            verdicts[pair].append(score if pair == (a, b) else 1 - score)
            if row.reward_a is not None and row.reward_b is not None:
                better = 0.5 * (1 + (row.reward_a > row.reward_b) - (row.reward_a < row.reward_b))
                rewards[pair].append(better if pair == (a, b) else 1 - better)
    found = [
        HumanWinRate(
            mode=one[0],
            n=one[1],
            against=other[0],
            against_n=other[1],
            wins=scores.count(1.0),
            losses=scores.count(0.0),
            ties=scores.count(0.5),
            win_rate=wilson_interval(scores),
            reward_win_rate=wilson_interval(rewards[one, other]) if rewards[one, other] else None,
        )
        for (one, other), scores in verdicts.items()
    ]
    return sorted(found, key=lambda line: -(line.wins + line.losses + line.ties))
