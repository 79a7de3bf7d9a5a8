"""The plan of a run: its variants, cells and load levels, and the order of its blocks."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.loadtest.config import LoadTestSettings
from service.loadtest.schema import Calibration

BON = "bon"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to answer: a mode, the policy it samples from, and N.

    Attributes:
        policy: ``None`` for the mode's own policy.
        n: 1 for single-sample modes.
        reranks: True if it samples several candidates and answers in one piece.
    """

    mode: str
    n: int = 1
    reranks: bool = False
    policy: str | None = None

    @property
    def name(self) -> str:
        """The name in the settings, without N."""
        return self.mode if self.policy is None else f"{self.mode}@{self.policy}"

    @property
    def label(self) -> str:
        """The name for people, unique within a run."""
        return f"{self.name} (N={self.n})" if self.reranks else self.name


@dataclass(frozen=True, slots=True)
class Load:
    """A load level: requests in flight (closed loop) or requests per second (open loop)."""

    kind: Literal["closed", "open"]
    value: float

    @property
    def label(self) -> str:
        """The level for people."""
        return f"{self.value:g} in flight" if self.kind == "closed" else f"{self.value:g}/s"


@dataclass(frozen=True, slots=True)
class LoadCell:
    """One variant at one load level."""

    variant: Variant
    load: Load

    @property
    def key(self) -> str:
        """The name of the cell, unique within a run."""
        return f"{self.variant.label}, {self.load.label}"


@dataclass(frozen=True, slots=True)
class Block:
    """One round of one cell."""

    cell: LoadCell
    round: int

    @property
    def key(self) -> str:
        """The name of the block, unique within a run."""
        return f"{self.cell.key}, round {self.round}"


def cells(variants: Iterable[Variant], loads: Sequence[Load]) -> list[LoadCell]:
    """Every variant at every load level; the variants of one level follow each other."""
    variants = list(variants)
    return [LoadCell(variant, load) for load in loads for variant in variants]


def schedule(
    cells: Sequence[LoadCell], rounds: int, order: Literal["alternating", "random"], seed: int
) -> list[Block]:
    """The blocks round by round; each round contains each cell once.

    ``alternating`` reverses every second round, so a steady drift cancels over two rounds. ``random``
    shuffles each round separately.
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


def planned_blocks(
    settings: LoadTestSettings,
    variants: Sequence[Variant],
    calibration: Calibration | None = None,
    rounds: int | None = None,
) -> list[Block]:
    """All blocks of a run at the levels given or calibrated, in order; none before the calibration.

    Args:
        rounds: their number if it is not that of the settings.
    """
    if settings.chooses_levels:
        by_label = {variant.label: variant for variant in variants}
        chosen = calibration.cells if calibration is not None else []
        line = [LoadCell(by_label[one.variant], Load("closed", one.in_flight)) for one in chosen]
    else:
        loads = [Load("closed", level) for level in settings.concurrency]
        line = cells(variants, loads + [Load("open", rate) for rate in settings.rate])
    return schedule(line, rounds or settings.rounds, settings.order, settings.seed)


def saturation_blocks(settings: LoadTestSettings, rates: Mapping[Variant, float]) -> list[Block]:
    """The rounds at the highest rate that a search has confirmed for each variant."""
    line = [LoadCell(variant, Load("open", rate)) for variant, rate in rates.items()]
    return schedule(line, settings.rounds, settings.order, settings.seed)


def scored_variants(variants: Sequence[Variant], settings: LoadTestSettings) -> list[Variant]:
    """The variants to score: all measured ones, and the baseline even if it is not measured."""
    names = [variant.name for variant in variants]
    extra = [] if settings.baseline in names else [Variant(settings.baseline)]
    return [*extra, *variants]


@dataclass(frozen=True, slots=True)
class ScoringPass:
    """One scoring pass: the variant that answers, and the variants that these answers are used for."""

    variant: Variant
    stands_for: tuple[Variant, ...]


def scoring_passes(variants: Sequence[Variant]) -> list[ScoringPass]:
    """The passes that score all variants; best-of-N of a policy needs only one, at its largest N."""
    by_name: dict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        by_name[variant.name if variant.mode == BON else variant.label].append(variant)
    return [
        ScoringPass(max(group, key=lambda one: one.n), tuple(group)) for group in by_name.values()
    ]
