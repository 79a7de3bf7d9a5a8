"""The files of a run: the table of measured settings, the record of the search, and serve.toml."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.tune.choice import front
from service.tune.draws import digest_of_prompts
from service.tune.question import Priced, Question
from service.tune.search import Findings
from service.tune.server import Served
from service.tune.setting import BON, Setting
from service.tune.space import toml_value
from vbon.maths.intervals import MeanInterval
from vbon.measured.table import (
    MOST_ROWS,
    MeasuredPrompts,
    MeasuredSetting,
    MeasuredTable,
    write_table,
)
from vbon.prompts import Prompt
from vbon.storage.atomic import write_json, write_text
from vbon.storage.provenance import provenance

VERSION = 1
TABLE, RECORD, SERVE, SPACE = "table.json", "tune.json", "serve.toml", "space.toml"
SETTINGS = "settings.csv"
_ENDED = ("recommended", "unmet")  # the states of a run that came to its end
_COLUMNS = (
    "mode", "policy", "n", "temperature", "top_p", "top_k", "settings", "reward", "gold", "win_rate",
    "tokens", "latency_mean_ms", "latency_p95_ms", "feasible",
)  # fmt: skip


def measured_table(
    question: Question,
    found: Findings,
    served: Served,
    prompts: Sequence[Prompt],
    concurrency: int | None,
) -> MeasuredTable | None:
    """The table of the measured settings; ``None`` if none was measured.

    Settings that were measured again have the figures of the validation prompts, which chose nothing but the
    order of the test. Of more rows than a table takes, those of other rules than best-of-n that are far from
    the front are left out.

    Args:
        concurrency: requests in flight while latency was measured; without it, latencies are left out.
    """
    rows = {row.setting: row for row in found.rows}
    rows |= {row.setting: row for row in found.validated}
    if not rows:
        return None
    kept = _most_useful(question, list(rows.values()), MOST_ROWS)
    settings = [measured_setting(row, concurrency is not None) for row in kept]
    used = {row.policy for row in settings}
    by_key = {row.key: row for row in settings}
    return MeasuredTable(
        made_by="vbon tune",
        prompts=MeasuredPrompts(count=len(prompts), sha256=digest_of_prompts(prompts)),
        hardware=served.hardware,
        policies={name: revision for name, revision in served.policies.items() if name in used},
        reward_revision=served.reward,
        gold_revision=served.gold,
        concurrency=concurrency,
        rows=list(by_key.values()),
    )


def _most_useful(question: Question, rows: Sequence[Priced], most: int) -> list[Priced]:
    if len(rows) <= most:
        return list(rows)
    on_front = {row.setting for row in front(question, rows)}

    def place(row: Priced) -> tuple[bool, bool, float]:
        plain = row.setting.mode in (BON, row.setting.drawing.policy) or row.setting.live
        return row.setting not in on_front, not plain, -row.gains[question.metric].mean

    return sorted(rows, key=place)[:most]


def measured_setting(row: Priced, with_latency: bool) -> MeasuredSetting:
    """The row of a table for a setting; ``with_latency`` only where the stated load was closed."""
    setting, expected = row.setting, row.expected
    timed = expected if with_latency else None
    return MeasuredSetting(
        mode=setting.mode,
        policy=setting.drawing.policy,
        n=setting.n,
        settings=setting.settings,
        **setting.drawing.sampling,
        reward=row.gains.get("reward"),
        gold=row.gains.get("gold"),
        win_rate=row.gains.get("win-rate"),
        generated_tokens=row.tokens,
        latency_mean_s=None if timed is None else timed.mean_s,
        latency_p95_s=None if timed is None else timed.p95_s,
        failed=row.measured.failed,
        unscored=row.measured.unscored,
    )


def settings_text(rows: Sequence[Priced]) -> str:
    """All measured settings as CSV, with the means on the tuning prompts; no row is left out."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in {one.setting: one for one in rows}.values():
        setting, expected, gains = row.setting, row.expected, row.gains
        sampling = setting.drawing.sampling
        own = ", ".join(f"{name}={value}" for name, value in sorted(setting.settings.items()))
        latencies = () if expected is None else (expected.mean_s.mean, expected.p95_s.mean)
        figures = [
            *(
                gains[name].mean if name in gains else None
                for name in ("reward", "gold", "win-rate")
            ),
            row.tokens.mean,
            *((1e3 * value for value in latencies) if latencies else (None, None)),
        ]
        writer.writerow(
            [
                setting.mode, setting.drawing.policy, setting.n,
                *(f"{sampling[name]:g}" for name in ("temperature", "top_p", "top_k")), own,
                *("" if value is None else f"{value:.6g}" for value in figures),
                str(row.feasible).lower(),
            ]
        )  # fmt: skip
    return text.getvalue()


def record_of(
    question: Question, found: Findings, served: Served, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``tune.json``: the question, the trials, the checks and the recommendation."""
    return {
        "version": VERSION,
        **provenance(dict(asked)),
        "question": str(question),
        "level": found.level,
        "status": found.status,
        "models": served.identity,
        "hardware": served.hardware,
        "seconds": round(found.seconds, 3),
        "trials": found.trials,
        "failed_trials": found.failed,
        "history": found.history,
        "settings_measured": len({row.setting for row in found.rows}),
        "recommendation": _entry(found.recommended),
        "closest": _entry(found.nearest),
        "validated": [_entry(row) for row in found.validated],
        "tested": [_entry(row) for row in found.tested],
        "stress": [
            {
                "setting": setting.label,
                "timing": None if timing is None else asdict(timing),
                "failure": reason or None,
            }
            for setting, timing, reason in found.stress
        ],
        "front": [_entry(row) for row in front(question, found.rows)],
        "notes": found.notes,
    }


def _entry(row: Priced | None) -> dict[str, Any] | None:
    if row is None:
        return None
    setting, expected = row.setting, row.expected
    return {
        "label": setting.label,
        "mode": setting.mode,
        "policy": setting.drawing.policy,
        "n": setting.n,
        "sampling": setting.drawing.sampling,
        "settings": setting.settings,
        "gains": {name: asdict(value) for name, value in row.gains.items()},
        "margin": None if row.margin is None else asdict(row.margin),
        "tokens": asdict(row.tokens),
        "price": row.price if row.price < float("inf") else None,
        "latency_mean_s": None if expected is None else asdict(expected.mean_s),
        "latency_p95_s": None if expected is None else asdict(expected.p95_s),
        "answers_per_s": None if expected is None else 1 / expected.seconds_per_answer,
        "over_limits": list(row.over_limits),
    }


def serve_text(setting: Setting, served: Served, why: str) -> str:
    """A configuration of ``vbon serve`` with which requests that name no mode get the setting.

    Args:
        why: a sentence for the comment at its head.
    """
    drawing = setting.drawing
    lines = [
        f"# Made by `vbon tune`: {why}",
        "# vbon serve --config serve.toml; requests that name no mode get the mode `tuned`.",
        'default_mode = "tuned"',
    ]
    models = [name for name in ("reward", "gold") if name in served.paths]
    lines += [f"{name} = {toml_value(served.paths[name])}" for name in models]
    lines += [] if "reward" in models else ['reward = "none"']
    lines += ["", "[policies]"]
    lines += [f"{toml_value(name)} = {toml_value(served.paths[name])}" for name in served.policies]
    lines += ["", "[tuned]", f"mode = {toml_value(setting.mode)}"]
    if not setting.single:
        lines += [f"policy = {toml_value(drawing.policy)}", f"n = {setting.n}"]
    lines += [f"{name} = {toml_value(value)}" for name, value in drawing.sampling.items()]
    if setting.settings:
        lines += ["", "[tuned.settings]"]
        lines += [f"{name} = {toml_value(value)}" for name, value in setting.settings.items()]
    return "\n".join(lines) + "\n"


def write_outputs(
    directory: Path,
    question: Question,
    found: Findings,
    served: Served,
    prompts: Sequence[Prompt],
    asked: Mapping[str, Any],
    concurrency: int | None,
) -> MeasuredTable | None:
    """Write all files of a run; ``serve.toml`` only with a recommendation.

    Before a run ends, the files of an earlier one in the directory that ended stay as they are, unless there
    are more trials by now; its ``serve.toml`` stays in any case.

    Raises:
        ExportError: a file could not be written.
    """
    table = measured_table(question, found, served, prompts, concurrency)
    ended = found.status in _ENDED
    if not ended and found.trials <= _trials_of_ended(directory):
        return table
    if table is not None:
        write_table(directory / TABLE, table)
    write_json(directory / RECORD, record_of(question, found, served, asked))
    write_text(directory / SETTINGS, settings_text(found.rows))
    serve = directory / SERVE
    if found.recommended is not None:
        write_text(serve, recommended_config(question, found.recommended, served))
    elif ended:
        serve.unlink(missing_ok=True)
    return table


def _trials_of_ended(directory: Path) -> int:
    """The trials of the run whose record lies in a directory; -1 if there is none, or it did not end."""
    try:
        record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        return int(record["trials"]) if record["status"] in _ENDED else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def recommended_config(question: Question, row: Priced, served: Served) -> str:
    """The configuration of ``vbon serve`` for the recommended setting."""
    gain = row.gains[question.metric]
    why = f"{question.metric} {gain} on {gain.count} test prompts, for {question}."
    return serve_text(row.setting, served, why)


def interval_words(value: MeanInterval) -> str:
    """A mean with its interval in four digits."""
    return f"{value.mean:.4g} [{value.low:.4g}, {value.high:.4g}]"
