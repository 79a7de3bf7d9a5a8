"""The parts of a report that every format shows: a sweep, or several pooled, with summary and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.report.method_tables import sweep_tables
from training.report.spending_tables import cost_table, spending_tables
from training.report.summary import spending_sentences, summarize
from training.sweep.groups import groups_of
from training.sweep.records import Sweep
from vbon.errors import DataError
from vbon.report_html import ReportTable

POOLED = "All sandboxes"


@dataclass(frozen=True, slots=True)
class SweepReport:
    """One part of a report.

    Attributes:
        sweep: ``None`` for several sweeps that are pooled; these have no plots.
        summary: the findings, one sentence each.
        tables: all tables, in the order in which they are shown.
    """

    title: str
    sweep: Sweep | None
    summary: list[str]
    tables: list[ReportTable]


def report_on(sweep: Sweep) -> SweepReport:
    """Summarize a sweep and make its tables."""
    return SweepReport(sweep.baseline.title, sweep, summarize(sweep), sweep_tables(sweep))


def pooled_report(sweeps: Sequence[Sweep]) -> SweepReport:
    """Summarize sweeps of the same methods on several sandboxes, which are resampled too.

    Raises:
        DataError: there is only one sweep, or no method has cells in all of them.
    """
    if len(sweeps) < 2:
        raise DataError(
            "--pool needs at least two sweeps, one for each sandbox; pass more --sweeps"
        )
    groups = groups_of(sweeps)
    if not groups:
        raise DataError("no method was measured in all sweeps with the same setting or target")
    names = ", ".join(sweep.baseline.title for sweep in sweeps)
    cells = sum(group.seeds for group in groups)
    summary = [
        f"Sandboxes: {names}; {len(groups)} pairs of a method and a setting or target, {cells} cells.",
        *spending_sentences(sweeps, groups),
    ]
    return SweepReport(POOLED, None, summary, [*spending_tables(sweeps), cost_table(sweeps)])
