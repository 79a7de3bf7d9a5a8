"""Decides what a run supports for a pair of variants: not measured, preliminary, or decided.

A number that later runs contradict is worse than none. With five rounds, the smallest and the largest of
them enclose the true median with a probability of 94%, so the range over rounds serves as the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isinf
from typing import Literal

from service.loadtest.analysis.break_even import Capacity, MeasuredVariant, paired_prices
from service.loadtest.analysis.full_load import GIVEN_LEVELS, load_reason
from service.loadtest.analysis.text import number
from service.loadtest.schema import BreakEven, CellResult

State = Literal["not measured", "preliminary", "decided"]
LEAST_ROUNDS = 5
LEAST_PROMPTS = 10  # a bootstrap over fewer prompts gives intervals that are too narrow
WIDEST = 1.5  # the largest ratio of the ends of a price ratio's range over rounds
WIDEST_BREAK_EVEN = 3.0  # the same of the range of answers to break-even
SAME_LOAD = 1.25  # factor within which sequences are the same load, since requests are whole


@dataclass(frozen=True, slots=True)
class Side:
    """One variant of a pair with its cells; ``adapter``: served as an unmerged LoRA adapter.

    ``remedy`` says what to do if the variant was not fully loaded.
    """

    measured: MeasuredVariant
    cells: Sequence[CellResult]
    adapter: bool = False
    remedy: str = GIVEN_LEVELS

    @property
    def name(self) -> str:
        """The variant's name for people."""
        return self.measured.variant

    @property
    def capacity(self) -> Capacity:
        """The variant's highest throughput."""
        return self.measured.capacity

    @property
    def levels(self) -> set[tuple[str, float]]:
        """The load levels at which it was measured, in requests."""
        return {(cell.load_kind, cell.load) for cell in self.cells}

    @property
    def sequences(self) -> list[float]:
        """The closed-loop levels in sequences, without that of one request by itself."""
        return sorted(
            cell.load * cell.n
            for cell in self.cells
            if cell.load_kind == "closed" and cell.load > 1
        )


def judged(pair: BreakEven, tuned: Side, sampled: Side, *, complete: bool) -> BreakEven:
    """The pair with its state and the reasons for it."""
    state, reasons = assess(pair, tuned, sampled, complete=complete)
    return pair.model_copy(update={"state": state, "reasons": reasons})


def assess(
    pair: BreakEven, tuned: Side, sampled: Side, *, complete: bool
) -> tuple[State, list[str]]:
    """The state of a pair and what is missing for a decision.

    Args:
        complete: True if every planned block was measured.
    """
    if pair.reward_given_up is None:
        return "not measured", ["their rewards were not measured on the same prompts"]
    reasons = [] if complete else ["only part of the run was measured"]
    reasons += _loads(tuned, sampled)
    reasons += [_unsaturated(side) for side in (tuned, sampled) if not _saturated(side)]
    reasons += _rounds(tuned, sampled)
    reasons += width_reasons(pair)
    prompts = pair.reward_given_up.count
    if prompts < LEAST_PROMPTS:
        reasons.append(
            f"rewards were measured on {prompts} of at least {LEAST_PROMPTS} prompts (--prompts, "
            "--quality-prompts)"
        )
    if _streamed(tuned) != _streamed(sampled):
        reasons.append("one side was streamed and the other was not (--no-stream)")
    reasons += [
        f"{side.name} was served as an unmerged adapter, which is slower than merged weights: serve the "
        "merged checkpoint"
        for side in (tuned, sampled)
        if side.adapter
    ]
    return ("preliminary" if reasons else "decided"), reasons


def widths(pair: BreakEven) -> list[tuple[float, float]]:
    """The width of each range of a pair, as the ratio of its ends, and its limit."""
    found = [(_width(pair.cost_ratio.low, pair.cost_ratio.high), WIDEST)]
    low, high = pair.requests_low, pair.requests_high
    if low is not None and high is not None:
        found.append((_width(low, high), WIDEST_BREAK_EVEN))
    return found


def width_reasons(pair: BreakEven) -> list[str]:
    """The reasons, if ranges over rounds are too wide for a decision."""
    told = (
        ("the price ratio", "measure on a quieter machine, or more rounds (--rounds 10)"),
        ("the break-even point", "measure more rounds (--rounds 10)"),
    )
    return [
        f"{name} differs between rounds by a factor of {_factor(width)} (at most {limit:g}): {remedy}"
        for (name, remedy), (width, limit) in zip(told, widths(pair), strict=False)
        if width > limit
    ]


def _loads(tuned: Side, sampled: Side) -> list[str]:
    """The reason, if the two did not get the same load, in requests or in sequences; searches are exempt."""
    searched = [side for side in (tuned, sampled) if side.capacity.searched]
    if len(searched) == 1:
        return [f"the search for the highest rate was finished for {searched[0].name} only"]
    if searched or tuned.levels == sampled.levels:
        return []
    own, other = tuned.sequences, sampled.sequences
    near = all(max(a, b) <= SAME_LOAD * min(a, b) for a, b in zip(own, other, strict=False))
    if own and len(own) == len(other) and near:
        return []
    return [f"{tuned.name} and {sampled.name} were measured at different load levels"]


def _saturated(side: Side) -> bool:
    """True if a search confirmed the highest rate, or a higher level added little."""
    return side.capacity.searched or not side.capacity.rising


def _unsaturated(side: Side) -> str:
    return (
        f"{side.name} was not fully loaded, because {load_reason(side.capacity.source, len(side.levels))}: "
        f"{side.remedy}"
    )


def _rounds(tuned: Side, sampled: Side) -> list[str]:
    empty = [
        f"{side.name} answered nothing in {zero} of {len(side.capacity.by_round)} rounds"
        for side in (tuned, sampled)
        if (zero := sum(rate <= 0 for rate in side.capacity.by_round.values()))
    ]
    shared = len(paired_prices(tuned.capacity, sampled.capacity, 1.0).rounds)
    if shared < LEAST_ROUNDS:
        empty.append(f"{shared} of at least {LEAST_ROUNDS} rounds compare the two (--rounds)")
    return empty


def _width(low: float, high: float) -> float:
    return high / low if low > 0 else inf


def _factor(width: float) -> str:
    return "any size" if isinf(width) else number(width)


def _streamed(side: Side) -> bool:
    return any(cell.streamed for cell in side.cells)
