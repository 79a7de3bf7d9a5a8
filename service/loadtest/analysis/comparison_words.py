"""Puts the conclusion of a comparison into words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import log

from service.loadtest.analysis.comparison import DIFFERS, LEVEL, Difference
from service.loadtest.analysis.intervals import least_permutation_p
from service.loadtest.analysis.text import number, signed
from service.loadtest.schema import CellResult

_NAMED = 6  # the most figures that the statement names; the table lists all


def comparison_statement(found: Sequence[Difference]) -> str:
    """The conclusion in sentences: the figures that differ, and what could not be tested."""
    if not found:
        return "The runs have no cell or mode in common."
    tested = [one.p_adjusted for one in found if one.p_adjusted is not None]
    untested = {one.verdict for one in found if one.p_adjusted is None}
    if not tested:
        if "too few rounds" not in untested:
            return "Too few prompts to tell a change from chance."
        return (
            f"Too few rounds to tell a change from chance: measure at least {_rounds_for(LEVEL)} "
            "rounds in each run."
        )
    sentences = [_findings(found, tested)]
    if "too few rounds" in untested:
        sentences.append(
            "Speeds were not tested because there are too few rounds: measure at least "
            f"{_rounds_for(LEVEL / 2)} rounds in each run."
        )
    if "too few prompts" in untested:
        sentences.append("Rewards were not tested because there are too few prompts.")
    return " ".join(sentences)


def levels_statement(a: Sequence[CellResult], b: Sequence[CellResult]) -> str:
    """A sentence on variants that the runs measured at different load levels; empty if there are none.

    A calibration chooses the levels of each run, so two runs may have few of them in common.
    """
    ours, theirs = _levels_of(a), _levels_of(b)
    common = {key: (ours[key], theirs[key]) for key in ours.keys() & theirs.keys()}
    differing = {key: pair for key, pair in common.items() if pair[0] != pair[1]}
    if not differing:
        return ""
    told = "; ".join(
        f"{name} {_listed(one)} in A and {_listed(other)} in B"
        for (name, _), (one, other) in sorted(differing.items())
    )
    flags = [
        f"{flag} {','.join(f'{level:g}' for level in sorted(levels))}"
        for kind, flag in (("closed", "--concurrency"), ("open", "--rate"))
        if (levels := {level for (_, k), own in ours.items() if k == kind for level in own})
    ]
    return (
        f"Only equal load levels are compared, and these differ: {told}. To compare the others too, measure "
        f"B again with {' '.join(flags)}."
    )


def _levels_of(cells: Sequence[CellResult]) -> dict[tuple[str, str], set[float]]:
    """The load levels of each variant, apart for closed and open loops."""
    found: dict[tuple[str, str], set[float]] = {}
    for cell in cells:
        found.setdefault((cell.variant, cell.load_kind), set()).add(cell.load)
    return found


def _listed(levels: set[float]) -> str:
    return ", ".join(f"{level:g}" for level in sorted(levels))


def _rounds_for(level: float) -> int:
    return next(rounds for rounds in count(1) if least_permutation_p(rounds) <= level)


def _findings(found: Sequence[Difference], tested: Sequence[float]) -> str:
    differ = [one for one in found if one.verdict in DIFFERS]
    figures = f"{len(tested)} figure{'' if len(tested) == 1 else 's'}"
    if not differ:
        level = next(one.level for one in found if one.level is not None)  # the same for all
        return (
            f"No difference beyond chance: 0 of {figures} at the {LEVEL:.0%} level for all together; "
            f"the smallest adjusted p is {min(tested):.4f}, and at most {level:g} would count."
        )
    worse = sum(one.verdict == "worse" for one in differ)
    side = "worse" if worse == len(differ) else "partly better, partly worse" if worse else "better"
    named = "; ".join(_named(one) for one in sorted(differ, key=_weight)[:_NAMED])
    more = f"; and {len(differ) - _NAMED} more" if len(differ) > _NAMED else ""
    return (
        f"The runs differ, and B is {side}: {len(differ)} of {figures}, at the {LEVEL:.0%} level for all "
        f"together: {named}{more}."
    )


def _weight(one: Difference) -> tuple[bool, float, float]:
    """Sort key: worse figures first, then the smallest p-value, then the largest change."""
    size = abs(log(one.change)) if one.relative else abs(one.change)
    return one.verdict != "worse", one.p_adjusted or 0.0, -size


def _named(one: Difference) -> str:
    change = f"{number(one.change)}x" if one.relative else f"{signed(one.change)}"
    return f"{one.measure} ({one.what}) {change}, adjusted p {one.p_adjusted:.4f}"
