"""Blind preferences: which of two answers people prefer, beside what the reward model prefers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import select

from service.store.database import Store
from service.store.tables import PreferenceRow, storable
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import wilson_interval

Winner = Literal["a", "b", "tie", "bad"]
_SCORE = {"a": 1.0, "tie": 0.5, "bad": 0.5, "b": 0.0}


@dataclass(frozen=True, slots=True)
class Shown:
    """One of the two answers.

    Attributes:
        reward: ``None`` if it was not scored.
        revision: revision of the models that gave it; ``None`` if unknown.
    """

    mode: str
    n: int
    text: str
    reward: float | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Preference:
    """A verdict, given without knowing which mode wrote which answer; ``bad``: neither is any good."""

    prompt: str
    a: Shown
    b: Shown
    winner: Winner


@dataclass(frozen=True, slots=True)
class HumanWinRate:
    """The verdicts on one mode, N and revision against another.

    Attributes:
        revision: of the models behind the answers of the first; ``None`` for verdicts that were given before
            revisions were kept.
        both_bad: verdicts that neither answer is any good; they count 1/2, as ties do.
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
    both_bad: int = 0
    revision: str | None = None
    against_revision: str | None = None


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
        prompt=storable(preference.prompt),
        mode_a=a.mode,
        n_a=a.n,
        answer_a=storable(a.text),
        reward_a=a.reward,
        revision_a=a.revision,
        mode_b=b.mode,
        n_b=b.n,
        answer_b=storable(b.text),
        reward_b=b.reward,
        revision_b=b.revision,
        winner=preference.winner,
    )
    with store.session() as session:
        session.add(row)
        session.flush()
        return row.id


Key = tuple[str, int, str]  # mode, N, and revision, empty if unknown


def human_win_rates(store: Store) -> list[HumanWinRate]:
    """Win rates of each pair of modes and revisions, on whichever side; most verdicts first."""
    verdicts: dict[tuple[Key, Key], list[Verdict]] = defaultdict(list)
    with store.session(reads_only=True) as session:
        for row in session.scalars(select(PreferenceRow)):
            a = (row.mode_a, row.n_a, row.revision_a or "")
            b = (row.mode_b, row.n_b, row.revision_b or "")
            verdict = Verdict(_SCORE[row.winner], row.winner == "bad", _by_reward(row))
            pair = (min(a, b), max(a, b))
            verdicts[pair].append(verdict if pair == (a, b) else verdict.turned())
    found = [_win_rate(one, other, given) for (one, other), given in verdicts.items()]
    return sorted(found, key=lambda line: -line.win_rate.count)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict as the share of a win that goes to the first of a pair, by the person and by the reward."""

    person: float
    both_bad: bool
    reward: float | None

    def turned(self) -> Verdict:
        """The same for the other one of the pair."""
        reward = None if self.reward is None else 1 - self.reward
        return Verdict(1 - self.person, self.both_bad, reward)


def _by_reward(row: PreferenceRow) -> float | None:
    if row.reward_a is None or row.reward_b is None:
        return None
    return 0.5 * (1 + (row.reward_a > row.reward_b) - (row.reward_a < row.reward_b))


def _win_rate(one: Key, other: Key, given: Sequence[Verdict]) -> HumanWinRate:
    scores = [verdict.person for verdict in given]
    rewards = [verdict.reward for verdict in given if verdict.reward is not None]
    bad = sum(verdict.both_bad for verdict in given)
    return HumanWinRate(
        mode=one[0],
        n=one[1],
        against=other[0],
        against_n=other[1],
        wins=scores.count(1.0),
        losses=scores.count(0.0),
        ties=scores.count(0.5) - bad,
        win_rate=wilson_interval(scores),
        reward_win_rate=wilson_interval(rewards) if rewards else None,
        both_bad=bad,
        revision=one[2] or None,
        against_revision=other[2] or None,
    )
