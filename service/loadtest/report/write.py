"""Writes the results of a run as JSON, CSV, and one HTML page that loads nothing."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from markupsafe import Markup

from service.loadtest.report.tables import (
    break_even_table,
    examples_table,
    latency_table,
    quality_table,
    saturation_table,
    settings_table,
    throughput_table,
)
from service.loadtest.schema import LoadTestResult
from vbon.report_html import plot_html, render_page
from vbon.storage.atomic import write_text

TEMPLATE = Path(__file__).parent / "templates" / "loadtest.html"
RESULT, CSV, PAGE = "result.json", "cells.csv", "report.html"
TITLE = "N times inference, or one fine-tune?"
TERMS = (
    "Modes took turns in one run, so a drift of the machine affects all of them alike. Reward is that of the "
    "serving reward model, by which best-of-N selects, so that of best-of-N is biased upwards; verdicts are "
    "by the gold reward model where the server has one. [a, b] is a 95% bootstrap interval over prompts, "
    "(a to b) the smallest and the largest round; of ratios and break-even points, the range over rounds "
    "that encloses the median with a probability of 94% or more."
)


def write_report(result: LoadTestResult, directory: Path) -> None:
    """Write ``result.json``, ``cells.csv`` and ``report.html`` into the directory.

    Raises:
        ExportError: a file could not be written; its previous content is unchanged.
    """
    write_text(directory / RESULT, result.model_dump_json(indent=1) + "\n")
    write_text(directory / CSV, cells_csv(result))
    write_text(directory / PAGE, html_page(result))


def cells_csv(result: LoadTestResult) -> str:
    """The cells as CSV, one line each; nested figures become columns such as ``e2e_ms.p95``."""
    rows = [_flat(cell.model_dump(exclude={"rounds", "errors"})) for cell in result.cells]
    for row, cell in zip(rows, result.cells, strict=True):
        row["errors"] = sum(cell.errors.values())
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif value is not None:
            flat[name] = value
    return flat


def html_page(result: LoadTestResult) -> str:
    """The report as one page; every text of the run, the server or a model is escaped."""
    examples = examples_table(result)
    tables = [
        quality_table(result),
        break_even_table(result),
        saturation_table(result),
        throughput_table(result),
        latency_table(result),
        *([examples] if examples else []),
        settings_table(result),
    ]
    return render_page(
        TEMPLATE,
        {
            "title": TITLE,
            "terms": TERMS,
            "decision": result.decision or ["Nothing was measured."],
            "warnings": result.warnings,
            "legend": _legend(result),
            "plots": _plots(result),
            "tables": [table for table in tables if table.rows],
        },
    )


def _legend(result: LoadTestResult) -> list[tuple[str, str, str]]:
    from service.loadtest.report.plots import CURVE_COLOUR, CURVE_NAME, variant_styles

    entries = [(name, colour) for name, (colour, _) in variant_styles(result).items()]
    return [
        (name, colour, "\N{BLACK SQUARE}")
        for name, colour in [*entries, (CURVE_NAME, CURVE_COLOUR)]
    ]


def _plots(result: LoadTestResult) -> list[tuple[Markup, str]]:
    """Every plot that the result has figures for, with its caption."""
    from service.loadtest.report import plots

    styles = plots.variant_styles(result)
    scored = any(one.reward is not None for one in result.quality)
    compared = any(one.win_rate is not None for one in result.quality)
    priced = bool(plots.decided_pairs(result))
    wanted = [
        (
            plots.break_even_figure,
            priced,
            "Total cost including training. Where two lines cross, the fine-tune has paid for itself.",
        ),
        (
            plots.reward_cost_figure,
            scored and bool(result.costs),
            "Reward against cost. Bars: 95% interval over prompts, and range over rounds. Up and left is "
            "better.",
        ),
        (
            plots.latency_figure,
            bool(result.cells),
            "Throughput against p95 latency, with one line per mode through its load levels: requests in "
            "flight, or requests per second where marked so and dotted. Right and down is better.",
        ),
        (
            plots.curve_figure,
            bool(result.curve),
            "Reward of best-of-n over n (unbiased, from one batch of candidates) and of the tuned policy. "
            "Where they meet, both have the same reward.",
        ),
        (
            plots.frontier_figure,
            compared,
            "KL and win rate. Grey: best-of-n in theory, at its KL upper bound. The KL of tuned policies is "
            "from their training records; win rates were measured here.",
        ),
        (plots.reward_figure, scored, "Rewards of single answers; the line is the mean."),
    ]
    shown = [(draw, caption) for draw, measured, caption in wanted if measured]
    return [
        (plot_html(draw(result, styles), f"plot-{number}", first=number == 0), caption)
        for number, (draw, caption) in enumerate(shown)
    ]
