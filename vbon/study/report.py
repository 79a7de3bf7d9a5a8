"""The report of a study: the verdict, the figures behind it, and the command that serves the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.report_html import ReportTable, render_page
from vbon.storage.atomic import write_json, write_text
from vbon.storage.evaluation_record import MethodRow, read_evaluation
from vbon.storage.training_record import read_training_record
from vbon.terminal import print_tables, print_verdict, print_warnings

_TEMPLATE = Path(__file__).parent / "templates" / "study.html"
TERMS = (
    "Win rate: share of comparisons with one sample of the reference policy that the answer wins, ties "
    "counted 1/2. KL in nats from the reference policy; best-of-n's is an upper bound. Brackets hold 95% "
    "intervals over prompts, or the range over rounds. All figures are of the test prompts, which neither "
    "training nor validation saw."
)


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of a study, read from the files of its steps.

    Attributes:
        verdict: sentences, the most important first.
        facts: what was measured, on what, with which settings.
        serve: the command that serves the result.
    """

    verdict: list[str]
    warnings: list[str]
    facts: dict[str, str]
    quality: ReportTable
    speed: ReportTable
    serve: str


def read_findings(directory: Path) -> Findings:
    """Read a finished study.

    Raises:
        DataError: a file of it is missing or damaged.
    """
    loadtest = _json(directory / "loadtest" / "result.json")
    evaluation = read_evaluation(str(directory / "evaluation" / "evaluation.json"))
    state = _json(directory / "study.json")
    return Findings(
        verdict=loadtest["decision"],
        warnings=loadtest["warnings"],
        facts=dict(_facts(state, loadtest, directory)),
        quality=_quality(evaluation.rows, state["config"]["n"]),
        speed=_speed(loadtest),
        serve=f"vbon serve --config {directory / 'serve.toml'}",
    )


def write_report(directory: Path) -> None:
    """Write ``report.html`` and ``report.json``."""
    found = read_findings(directory)
    write_text(directory / "report.html", _page(found, directory))
    write_json(
        directory / "report.json",
        {
            "verdict": found.verdict,
            "warnings": found.warnings,
            "facts": found.facts,
            "quality": found.quality.data,
            "speed": found.speed.data,
            "serve": found.serve,
        },
    )


def show_verdict(directory: Path, console: Console, *, full: bool = False) -> None:
    """Print the verdict in three sentences, one table, and where the rest is; all of it if ``full``."""
    found = read_findings(directory)
    console.print()
    print_verdict(console, found.verdict, full=full)
    print_tables(console, [found.quality, found.speed] if full else [found.quality])
    print_warnings(console, found.warnings, full=full)
    if not full:
        console.print("every sentence and figure: the same command with --full", style="dim")
    console.print(f"report: {directory / 'report.html'}", highlight=False)
    console.print(f"serve the result: {found.serve}", highlight=False)


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}; run the study again") from error


def _facts(
    state: Mapping[str, Any], loadtest: Mapping[str, Any], directory: Path
) -> Iterator[tuple[str, str]]:
    config, machine = state["config"], loadtest["provenance"].get("machine", {})
    made = "made from " + " ".join(config["corpus"]) if config["corpus"] else ""
    yield "Reference policy", made or config["policy"]
    yield "Reward model", made or config["reward"]
    yield "Gold reward model", made or config["gold"] or "none"
    counts = ", ".join(
        f"{_lines(directory / 'prompts' / f'{part}.jsonl')} {part}"
        for part in ("train", "validation", "test")
    )
    yield "Prompts", counts
    yield (
        "Sampling",
        f"temperature {config['temperature']:g}, max_tokens {config['max_new_tokens']}",
    )
    yield "N of best-of-N", str(config["n"])
    yield "Objectives", ", ".join(config["objectives"])
    yield from _checkpoints(directory)
    spent = {name: record["seconds"] for name, record in state.get("spent", {}).items()}
    yield "Time spent", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in spent.items())
    yield "Machine", ", ".join(str(value) for value in machine.values())
    yield "Measured", str(loadtest["created"])
    yield "Price", f"{config['price_per_hour']:g} {config['currency']} per hour"


def _checkpoints(directory: Path) -> Iterator[tuple[str, str]]:
    """A description of each checkpoint of the study, from its training record."""
    for checkpoint in sorted((directory / "checkpoints").glob("*")):
        record = read_training_record(str(checkpoint))
        if record is not None:
            yield f"What {checkpoint.name} is", record.description


def _lines(file: Path) -> int:
    return sum(1 for line in file.read_text(encoding="utf-8").splitlines() if line.strip())


def _quality(rows: Sequence[MethodRow], num_samples: int) -> ReportTable:
    """Reference, best-of-n up to N, and every checkpoint."""
    shown = [row for row in rows if row.n <= num_samples]
    gold = any(row.gold is not None for row in shown)
    columns: list[tuple[str, Callable[[MethodRow], str]]] = [
        ("", lambda row: f"best-of-{row.n}" if row.n > 1 else row.method),
        ("KL, nats", _kl),
        ("win rate", lambda row: _interval(row.win_rate, 3)),
        ("reward", lambda row: _interval(row.reward, 2)),
    ]
    if gold:
        columns += [
            ("gold win rate", lambda row: _interval(row.gold_win_rate, 3)),
            ("gold reward", lambda row: _interval(row.gold, 2)),
        ]
    return ReportTable(
        key="cells",
        title="Quality on the test prompts",
        caption="Best-of-n's figures are unbiased estimates from one batch of reference samples.",
        columns=tuple(title for title, _ in columns),
        rows=tuple(tuple(cell(row) for _, cell in columns) for row in shown),
        data=[row.model_dump(mode="json") for row in shown],
    )


def _kl(row: MethodRow) -> str:
    if row.kl_kind == "upper bound":
        return f"<= {row.kl_nats.mean:.2f}"
    return "0" if row.kl_kind == "zero" else _interval(row.kl_nats, 2)


def _interval(value: MeanInterval | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def _speed(loadtest: Mapping[str, Any]) -> ReportTable:
    """Throughput and latency of each mode at each load level."""
    rows = []
    for cell in loadtest["cells"]:
        rate, latency = cell["requests_per_s"], cell["e2e_ms"]
        level = (
            f"{cell['load']:g} in flight"
            if cell["load_kind"] == "closed"
            else f"{cell['load']:g}/s"
        )
        rows.append(
            (
                cell["variant"],
                level,
                f"{rate['median']:.3g} [{rate['low']:.3g}, {rate['high']:.3g}]",
                "-" if latency is None else f"{latency['p50']:.0f}",
                "-" if latency is None else f"{latency['p95']:.0f}",
            )
        )
    return ReportTable(
        key="cells",
        title="Throughput and latency",
        caption="Median [range] over rounds; more in loadtest/report.html.",
        columns=("", "load", "requests/s", "E2E p50, ms", "E2E p95, ms"),
        rows=tuple(rows),
        data=loadtest["cells"],
    )


def _page(found: Findings, directory: Path) -> str:
    facts = ReportTable(
        "facts", "What was measured", "", ("", ""), tuple(found.facts.items()), found.facts
    )
    values = {
        "title": "Pay N times at inference, or fine-tune once?",
        "terms": TERMS,
        "verdict": found.verdict,
        "warnings": found.warnings,
        "tables": [found.quality, found.speed, facts],
        "serve": found.serve,
        "links": _links(directory),
    }
    return render_page(_TEMPLATE, values)


def _links(directory: Path) -> Sequence[tuple[str, str]]:
    plots = sorted((directory / "evaluation").glob("*.png"))
    checkpoints = sorted((directory / "checkpoints").glob("*/README.md"))
    return [
        ("loadtest/report.html", "the load test: latency, throughput, cost, answers"),
        ("evaluation/evaluation.json", "every figure of the evaluation"),
        ("comparison.json", "the comparison of the same prompts through all modes"),
        *((f"evaluation/{plot.name}", f"plot: {plot.stem.replace('_', ' ')}") for plot in plots),
        *(
            (f"checkpoints/{card.parent.name}/README.md", f"model card of {card.parent.name}")
            for card in checkpoints
        ),
    ]
