"""The parts of a report that every format shows: a sweep with its summary and tables."""

from __future__ import annotations

from dataclasses import dataclass

from training.report.method_tables import sweep_tables
from training.report.summary import summarize
from training.sweep.records import Sweep
from vbon.report_html import ReportTable


@dataclass(frozen=True, slots=True)
class SweepReport:
    """One sweep of a report.

    Attributes:
        summary: the findings, one sentence each.
        tables: all tables, in the order in which they are shown.
    """

    sweep: Sweep
    summary: list[str]
    tables: list[ReportTable]

    @property
    def title(self) -> str:
        """The title that the sweep was given."""
        return self.sweep.baseline.title


def report_on(sweep: Sweep) -> SweepReport:
    """Summarize a sweep and make its tables."""
    return SweepReport(sweep, summarize(sweep), sweep_tables(sweep))
