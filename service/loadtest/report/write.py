"""Writes the results of a run as JSON, CSV, and one HTML page that loads nothing."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from service.loadtest.analysis.decision_data import decision_data
from service.loadtest.report.charts import charts_of, grouped_warnings, variants_of
from service.loadtest.report.tables import (
    break_even_table,
    examples_table,
    latency_table,
    quality_table,
    saturation_table,
    settings_table,
    throughput_table,
)
from service.loadtest.schema import LoadTestResult, ServedModel
from service.page import page_contents
from vbon.report_html import render_page
from vbon.report_html.bundle import bundle, json_for_script
from vbon.storage.atomic import write_text

TEMPLATE = Path(__file__).parent / "templates" / "loadtest.html"
_STYLES = ("app.css", "charts.css", "views/decide.css")
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
    charts = {
        "variants": variants_of(result),
        "charts": [asdict(chart) | {"label": chart.label} for chart in charts_of(result)],
    }
    return render_page(
        TEMPLATE,
        {
            "title": TITLE,
            "terms": TERMS,
            "facts": _facts(result),
            "decision": result.decision or ["Nothing was measured."],
            "warnings": grouped_warnings(result),
            "tables": [table for table in tables if table.rows],
            "style": Markup("\n".join(page_contents()[name].decode() for name in _STYLES)),
            "script": Markup(bundle("report.js", page_contents())),
            "decision_json": Markup(json_for_script(decision_data(result).model_dump(mode="json"))),
            "chart_json": Markup(json_for_script(charts)),
        },
    )


def _facts(result: LoadTestResult) -> list[tuple[str, str, str]]:
    """Models, machine, date and price, each in short and in full: what a reader needs beside the verdict."""
    machine = result.provenance.get("machine") or {}
    models = [(policy.name, policy) for policy in result.server.policies]
    rewards = {
        mode.reward_model.path: mode.reward_model
        for mode in result.server.modes
        if mode.reward_model
    }
    models += [("reward model", model) for model in rewards.values()]
    if result.server.gold_model is not None:
        models.append(("gold reward model", result.server.gold_model))
    facts = [
        (name, _short(model), f"{model.path}, revision {model.revision}") for name, model in models
    ]
    facts.append(("measured", result.created[:16].replace("T", " "), result.created))
    if machine:
        told = ", ".join(str(value) for value in machine.values())
        facts.append(("machine", told, told))
    settings = result.settings
    price = f"{settings['price_per_hour']:g} {settings['currency']} per hour"
    facts += [("price", price, price), ("prompts", str(result.prompts), str(result.prompts))]
    return facts


def _short(model: ServedModel) -> str:
    """The last part of a model's path and the start of its revision; the settings have both in full."""
    name = model.path.rstrip("/").rpartition("/")[2]
    return f"{name} @ {model.revision.removeprefix('sha256:')[:8]}"
