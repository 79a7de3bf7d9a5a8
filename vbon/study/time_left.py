"""The time that a study will still take, from the pace of each kind of work that has been measured.

Every estimate is a span. A kind of work counts with its measured pace once a tenth of a piece of it is done;
before, it counts with the bounds that its step names, and without bounds the span has no upper end. A span
whose ends are at most a factor of 1.5 apart is shown by its middle, so what is called "about" is wrong by at
most a quarter as long as the paces hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vbon.terminal import duration
from vbon.work_report import LOAD_TEST, Reading

SHARE = 0.1  # of a piece of work, from which its own pace counts
NARROW = 1.5  # upper over lower end of a span that is shown by its middle
# Bounds per unit of work that tells of itself in seconds; scoring comes on top of a load test's plan.
UNIT_BOUNDS_S: Mapping[str, tuple[float, float]] = {LOAD_TEST: (1.0, 1.4)}
_SHORT_S = 15.0  # a difference that nobody plans by


@dataclass(frozen=True, slots=True)
class Work:
    """Work to come.

    Attributes:
        kind: as in :class:`vbon.work_report.Reading`.
        low_s, high_s: bounds of its time where its pace is not known; ``None``: no upper bound.
        name: words for people, where the kind is not one.
    """

    kind: str
    amount: float = 1.0
    low_s: float = 0.0
    high_s: float | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """Lower and upper end of a time, and the work for which there is no upper end."""

    low_s: float = 0.0
    high_s: float | None = 0.0
    unmeasured: tuple[str, ...] = ()

    def __add__(self, other: Span) -> Span:
        high = None if self.high_s is None or other.high_s is None else self.high_s + other.high_s
        names = tuple(dict.fromkeys((*self.unmeasured, *other.unmeasured)))
        return Span(self.low_s + other.low_s, high, names)

    @property
    def narrow(self) -> bool:
        """True if the middle is wrong by at most a quarter wherever in the span the truth lies."""
        return self.high_s is not None and self.high_s <= max(
            NARROW * self.low_s, self.low_s + _SHORT_S
        )

    @property
    def middle_s(self) -> float:
        """The middle of a span that has both ends."""
        return self.low_s if self.high_s is None else (self.low_s + self.high_s) / 2

    def __str__(self) -> str:
        if self.high_s is None:
            return (
                f"at least {duration(self.low_s)} (not measured yet: {', '.join(self.unmeasured)})"
            )
        if self.narrow:
            return f"about {duration(self.middle_s)}"
        return f"{duration(self.low_s)} to {duration(self.high_s)}"


@dataclass(slots=True)
class _Piece:
    """A piece of work of the running step, from its first to its latest reading."""

    first: Reading
    last: Reading

    @property
    def amount(self) -> float:
        return (self.last.done or 0.0) - (self.first.done or 0.0)

    @property
    def seconds(self) -> float:
        return self.last.at_s - self.first.at_s

    @property
    def left(self) -> float:
        return max(0.0, self.last.total - (self.last.done or 0.0))

    @property
    def counts(self) -> bool:
        whole = self.last.total - (self.first.done or 0.0)
        return 0 < self.amount >= SHARE * whole * (1 - 1e-9)


@dataclass(slots=True)
class Paces:
    """Paces by kind of work, from earlier steps and starts (``known``) and from the running step.

    Attributes:
        known: units and the seconds that they took.
    """

    known: dict[str, list[float]] = field(default_factory=dict)
    _pieces: dict[str, list[_Piece]] = field(default_factory=dict)
    _foreseen: dict[str, float] = field(default_factory=dict)
    _start: str = ""
    _begun_s: float = 0.0

    def begin(self, start: str, now_s: float) -> None:
        """Begin a step; ``start`` is the kind of work before its first reading."""
        self._pieces, self._foreseen = {}, {}
        self._start, self._begun_s = start, now_s

    def read(self, reading: Reading) -> None:
        """Take up a reading of the running step."""
        if self._start and not self._pieces and not self._foreseen:
            self.learn(self._start, 1, reading.at_s - self._begun_s)
        if reading.done is None:
            self._foreseen[reading.kind] = reading.total
            return
        pieces = self._pieces.setdefault(reading.kind, [])
        last = pieces[-1].last if pieces else None
        if last is None or last.total != reading.total or (last.done or 0.0) > reading.done:
            pieces.append(_Piece(reading, reading))
        elif pieces[-1].amount == 0 and reading.done == last.done:  # it begins only now
            pieces[-1] = _Piece(reading, reading)
        else:
            pieces[-1].last = reading
        if pieces[-1].counts:
            self.learn(
                reading.kind,
                sum(piece.amount for piece in pieces),
                sum(piece.seconds for piece in pieces),
            )

    def learn(self, kind: str, amount: float, seconds: float) -> None:
        """Remember what some work took."""
        self.known[kind] = [amount, round(seconds, 3)]

    def seconds_of(self, kind: str, amount: float = 1.0) -> float | None:
        """The time of some work at its known pace."""
        units, seconds = self.known.get(kind, (0.0, 0.0))
        return amount * seconds / units if units > 0 else None

    def span(self, works: Iterable[Work]) -> Span:
        """The time of work to come."""
        found = Span()
        for work in works:
            known = self.seconds_of(work.kind, work.amount)
            if known is not None:
                found += Span(known, known)
            elif work.high_s is not None:
                found += Span(work.low_s, work.high_s)
            else:
                found += Span(work.low_s, None, (work.name or work.kind,))
        return found

    def left(self, works: Iterable[Work], now_s: float) -> Span:
        """The time that the running step will still take.

        Args:
            works: the work of the step, which counts until a piece of it has begun.
        """
        if self._pieces:
            return self.span(_bounded(kind, amount) for kind, amount in self._amounts().items())
        whole = list(works)
        # What has passed was spent on the start, however long that takes; without one, on the whole.
        running = [work for work in whole if work.kind == self._start] or whole
        found, elapsed = self.span(running), now_s - self._begun_s
        high = None if found.high_s is None else max(0.0, found.high_s - elapsed)
        left = Span(max(0.0, found.low_s - elapsed), high, found.unmeasured)
        return left + self.span(work for work in whole if work not in running)

    def _amounts(self) -> Mapping[str, float]:
        """Units left by kind: of what has begun, and of what is foreseen."""
        found = dict(self._foreseen)
        for kind, pieces in self._pieces.items():
            done = sum(piece.last.done or 0.0 for piece in pieces)
            # What was left of a piece when another one began is in that one, or was given up.
            found[kind] = max(found.get(kind, 0.0) - done, pieces[-1].left)
        return {kind: amount for kind, amount in found.items() if amount > 0}


def _bounded(kind: str, amount: float) -> Work:
    if kind not in UNIT_BOUNDS_S:
        return Work(kind, amount)
    low, high = UNIT_BOUNDS_S[kind]
    return Work(kind, amount, low * amount, high * amount)
