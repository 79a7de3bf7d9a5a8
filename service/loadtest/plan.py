"""What is measured, and in which order: cells, and blocks that take turns."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from service.loadtest.config import LoadTestSettings

BON = "bon"


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to answer: a mode, the policy it draws from, and its N.

    Attributes:
        policy: ``None`` for the mode's own.
        n: 1 for modes of one sample.
        reranks: whether it draws several candidates and answers in one piece.
    """

    mode: str
    n: int = 1
    reranks: bool = False
    policy: str | None = None

    @property
    def name(self) -> str:
        """As settings name it, without its N."""
        return self.mode if self.policy is None else f"{self.mode}@{self.policy}"

    @property
    def label(self) -> str:
        """For people, and the variant's identity in a run."""
        return f"{self.name} (N={self.n})" if self.reranks else self.name


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in flight (closed) or requests a second (open)."""

    kind: Literal["closed", "open"]
    value: float

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.value:g} in flight" if self.kind == "closed" else f"{self.value:g}/s"


@dataclass(frozen=True, slots=True)
class LoadCell:
    """One variant at one load level."""

    variant: Variant
    load: Load

    @property
    def key(self) -> str:
        """Its identity in a run."""
        return f"{self.variant.label}, {self.load.label}"


@dataclass(frozen=True, slots=True)
class Block:
    """One round of one cell."""

    cell: LoadCell
    round: int

    @property
    def key(self) -> str:
        """Its identity in a run."""
        return f"{self.cell.key}, round {self.round}"


def cells(variants: Iterable[Variant], loads: Sequence[Load]) -> list[LoadCell]:
    """Every variant at every level, variants of a level beside each other."""
    variants = list(variants)
    return [LoadCell(variant, load) for load in loads for variant in variants]


def schedule(
    cells: Sequence[LoadCell], rounds: int, order: Literal["alternating", "random"], seed: int
) -> list[Block]:
    """Blocks round by round, each cell once a round.

    ``alternating`` goes there and back, so a steady drift cancels over two rounds; ``random`` shuffles each
    round by itself.
    """
    blocks = []
    for number in range(rounds):
        line = list(cells)
        if order == "random":
            random.Random(f"{seed} {number}").shuffle(line)
        elif number % 2:
            line.reverse()
        blocks += [Block(cell, number) for cell in line]
    return blocks


def planned_blocks(settings: LoadTestSettings, variants: Sequence[Variant]) -> list[Block]:
    """Every block of a run, in order."""
    loads = [Load("closed", level) for level in settings.levels]
    loads += [Load("open", rate) for rate in settings.rate]
    return schedule(cells(variants, loads), settings.rounds, settings.order, settings.seed)


def scored_variants(variants: Sequence[Variant], settings: LoadTestSettings) -> list[Variant]:
    """What is scored: all, and the baseline even if it is not loaded."""
    names = [variant.name for variant in variants]
    extra = [] if settings.baseline in names else [Variant(settings.baseline)]
    return [*extra, *variants]


@dataclass(frozen=True, slots=True)
class ScoringPass:
    """One pass: a variant and the variants that its answers stand for."""

    variant: Variant
    stands_for: tuple[Variant, ...]


def scoring_passes(variants: Sequence[Variant]) -> list[ScoringPass]:
    """Passes that score all variants: best-of-N of a policy once, at its largest N."""
    by_name: dict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        by_name[variant.name if variant.mode == BON else variant.label].append(variant)
    return [
        ScoringPass(max(group, key=lambda one: one.n), tuple(group)) for group in by_name.values()
    ]
