"""Measures one cell of the grid: texts per second of all sides, in turns, and how far their scores agree."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from service.bench.rewards.config import LEAST_PAIRS, RewardBenchSettings, SideName
from service.bench.rewards.sides import Side
from service.bench.rewards.texts import Count, texts_of
from vbon.errors import VbonError
from vbon.rewards import Scorable

MOST_CALLS = 2000

Scores = list[float | None]


@dataclass
class Agreement:
    """Scores of the same texts by two sides.

    Attributes:
        texts: those that both sides scored.
        largest: the largest absolute difference.
        one_sided: texts that only one of them scored.
    """

    texts: int = 0
    largest: float = 0.0
    one_sided: int = 0

    def add(self, first: Scores, second: Scores) -> None:
        """Take up the scores of the same texts."""
        for one, other in zip(first, second, strict=True):
            if one is None or other is None:
                self.one_sided += (one is None) != (other is None)
            else:
                self.texts += 1
                self.largest = max(self.largest, abs(one - other))


@dataclass
class Cell:
    """A number of texts in a call and their length, with what was measured.

    Attributes:
        tokens: mean tokens of a text.
        calls: calls of one measurement.
        rates: texts per second of each side, one for each turn.
        cpu_ms: CPU time of each side for a text, ms, over all turns; other programs do not change it.
        why_not: why nothing was measured; empty if it was.
    """

    batch: int
    length: int
    tokens: float = 0.0
    calls: int = 0
    rates: dict[SideName, list[float]] = field(default_factory=dict)
    cpu_ms: dict[SideName, float] = field(default_factory=dict)
    why_not: str = ""


@dataclass
class Contest:
    """All sides that still run, and what their scores have in common.

    Attributes:
        excluded: sides that could not start or failed, with the reason.
        agreement: by the names of two sides.
    """

    settings: RewardBenchSettings
    count_tokens: Count
    sides: list[Side] = field(default_factory=list)
    excluded: dict[SideName, str] = field(default_factory=dict)
    agreement: dict[tuple[SideName, SideName], Agreement] = field(default_factory=dict)

    def exclude(self, name: SideName, error: VbonError) -> None:
        """Leave a side out from now on."""
        self.excluded[name] = str(error)
        self.sides = [side for side in self.sides if side.name != name]

    async def measure(self, cell: Cell, rng: np.random.Generator) -> None:
        """Measure a cell; a side that fails is left out from now on."""
        settings = self.settings
        if cell.batch * cell.length > settings.max_call_tokens:
            cell.why_not = f"a call has more than {settings.max_call_tokens} tokens"
            return
        begun = perf_counter()
        batch = self._batch(cell, rng)
        # The first call compiles and fills caches; the second says how long one takes.
        if not any(score is not None for score in await self._first_scores(batch)):
            cell.why_not = "no side scores such texts; they are longer than the model's limit"
            return
        seconds = [await self._timed(side, [batch]) for side in list(self.sides)]
        slowest = max((one for one in seconds if one is not None), default=settings.seconds)
        cell.calls = min(MOST_CALLS, max(1, round(settings.seconds / max(slowest, 1e-6))))
        counts: list[int] = []
        for turn in range(settings.pairs):
            if turn >= LEAST_PAIRS and perf_counter() - begun > settings.cell_seconds:
                break
            batches = [self._batch(cell, rng) for _ in range(cell.calls)]
            counts += self.count_tokens(batches[0])
            await self._turn(cell, turn, batches)
        cell.tokens = float(np.mean(counts))

    def _batch(self, cell: Cell, rng: np.random.Generator) -> list[Scorable]:
        shortest = max(1, round(cell.length * (1 - self.settings.spread)))
        lengths = rng.integers(shortest, cell.length, size=cell.batch, endpoint=True)
        return texts_of([int(length) for length in lengths], self.count_tokens, rng)

    async def _first_scores(self, batch: list[Scorable]) -> Scores:
        found: dict[SideName, Scores] = {}
        for side in list(self.sides):
            try:
                found[side.name] = await asyncio.to_thread(side.model.score, batch)
            except VbonError as error:
                self.exclude(side.name, error)
        self._compare(found)
        return [score for scores in found.values() for score in scores]

    async def _turn(self, cell: Cell, turn: int, batches: list[list[Scorable]]) -> None:
        """Let every side score the same texts once; who begins changes from turn to turn."""
        sides = list(self.sides)
        first = turn % max(1, len(sides))
        found: dict[SideName, Scores] = {}
        for side in sides[first:] + sides[:first]:
            scores: Scores = []
            before_s = side.cpu_seconds()
            seconds = await self._timed(side, batches, scores)
            if seconds is None:
                cell.rates.pop(side.name, None)
                cell.cpu_ms.pop(side.name, None)
                continue
            spent_ms = 1e3 * (side.cpu_seconds() - before_s) / (cell.batch * cell.calls)
            known = len(cell.rates.get(side.name, []))
            mean_ms = cell.cpu_ms.get(side.name, 0.0)
            cell.cpu_ms[side.name] = (known * mean_ms + spent_ms) / (known + 1)
            cell.rates.setdefault(side.name, []).append(cell.batch * cell.calls / seconds)
            found[side.name] = scores
        self._compare(found)

    async def _timed(
        self, side: Side, batches: Sequence[list[Scorable]], scores: Scores | None = None
    ) -> float | None:
        """Seconds that a side takes for the calls, one after the other; ``None`` if it fails."""

        def calls() -> float:
            begun = perf_counter()
            answers = [side.model.score(batch) for batch in batches]
            seconds = perf_counter() - begun
            if scores is not None:
                scores.extend(score for answer in answers for score in answer)
            return seconds

        try:
            return await asyncio.to_thread(calls)
        except VbonError as error:
            self.exclude(side.name, error)
            return None

    def _compare(self, found: dict[SideName, Scores]) -> None:
        names = [name for name in self.settings.sides if name in found]
        for place, one in enumerate(names):
            for other in names[place + 1 :]:
                self.agreement.setdefault((one, other), Agreement()).add(found[one], found[other])
