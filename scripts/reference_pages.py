"""Writes the reference pages of the documentation site from the code.

Nothing in these pages is written by hand, so they cannot disagree with the code.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from service.app import create_app
from service.schemas import neutral_fields
from service.strategies import STRATEGIES
from tests.unit.fakes import make_runtime
from training.objectives import OBJECTIVES, objective_type
from vbon.cli.main import app as commands

METHODS = ("get", "post", "put", "delete")


def commands_page() -> str:
    """The help of every command, as the terminal prints it."""
    os.environ["COLUMNS"] = "100"
    parts = ["# Commands\n\nThe help of every command, as `--help` prints it.\n"]
    for path, text in _helps(typer.main.get_command(commands), ("vbon",)):
        parts.append(f"{'#' * min(len(path) + 1, 4)} `{' '.join(path)}`\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _helps(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command.main(["--help"], prog_name=" ".join(path))
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    yield path, "\n".join(lines).strip()
    if hasattr(command, "list_commands"):
        context = typer.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from _helps(inner, (*path, name))


def modes_page() -> str:
    """Every registered strategy with its settings, bounds and source."""
    parts = [
        "# Modes\n\nEach strategy is a mode: `POST /generate?mode=NAME`, or model `NAME` on `/v1`. Each "
        "served policy is a mode of one sample under its own name. [Strategies](../strategies.md) has the "
        "formulas and says which to use.\n"
    ]
    for name in STRATEGIES.built_in:
        strategy = STRATEGIES[name]
        source = getattr(strategy, "source", "")
        parts.append(f"## `{name}`\n\n{_sentence(strategy.description)}\n")
        if source:
            parts.append(f"Source: {source}.\n")
        parts.append(_fields(strategy, "It has no settings."))
    return "\n".join(parts)


def objectives_page() -> str:
    """Every registered objective with its settings."""
    parts = [
        "# Objectives\n\n`vbon train NAME` trains a checkpoint by one of these. "
        "[Objectives](../objectives.md) has the losses and what they assume.\n"
    ]
    for name in OBJECTIVES.built_in:
        objective = objective_type(name)
        summary = (objective.__doc__ or "").strip().splitlines()[0]
        parts.append(f"## `{name}`\n\n{_sentence(summary)}\n")
        parts.append(_fields(objective, "It has no settings of its own."))
    return "\n".join(parts)


def _fields(model: type[BaseModel], none: str) -> str:
    if not model.model_fields:
        return f"{none}\n"
    return _table(("setting", "values", "default", "meaning"), _rows(model.model_json_schema()))


def _rows(schema: dict[str, Any]) -> list[tuple[str, ...]]:
    required = schema.get("required", ())
    return [
        (
            f"`{name}`",
            _kind(field),
            "required" if name in required else _default(field),
            _text(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    ]


def http_page() -> str:
    """Every route with its parameters and the fields of its body, from the OpenAPI document."""
    spec = create_app(make_runtime(store="none")).openapi()
    parts = [
        "# HTTP API\n\nFrom `/openapi.json`, which a running service shows at `/docs`. [The API](../api.md) "
        "explains it, and [OpenAI clients](../openai.md) what they can send.\n"
    ]
    for path, operations in sorted(spec["paths"].items()):
        for method, operation in operations.items():
            if method in METHODS:
                parts.append(f"## `{method.upper()} {path}`\n\n{_prose(operation)}\n")
                parts.append(_parameters(operation))
                parts.append(_body(operation, spec))
    return "\n".join(part for part in parts if part)


def _prose(operation: dict[str, Any]) -> str:
    return str(operation.get("description") or operation.get("summary", "")).strip()


def _parameters(operation: dict[str, Any]) -> str:
    rows = [
        (f"`{one['name']}`", one["in"], _kind(one["schema"]), _text(one.get("description", "")))
        for one in operation.get("parameters", ())
    ]
    return _table(("parameter", "in", "values", "meaning"), rows) if rows else ""


def _body(operation: dict[str, Any], spec: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    rows = _rows(spec["components"]["schemas"].get(name, {}))
    return _table(("field of the body", "values", "default", "meaning"), rows) if rows else ""


def openai_fields_page() -> str:
    """Every field of OpenAI's and vLLM's APIs that is accepted only with values that change no answer."""
    owners = {
        "both": neutral_fields.COMMON,
        "`/v1/completions`": neutral_fields.COMPLETION,
        "`/v1/chat/completions`": neutral_fields.CHAT,
        "a message": neutral_fields.MESSAGE,
        "a part of its content": neutral_fields.PART,
    }
    rows = [
        (f"`{name}`", owner, _neutral(row))
        for owner, table in owners.items()
        for name, row in table.items()
    ]
    return (
        "# Fields without effect\n\nThese fields of [`/v1`](../openai.md) are accepted only with values that "
        "change no answer; any other value is refused with 422 and the remedy.\n\n"
        + _table(("field", "of", "values, besides null"), rows)
    )


def _neutral(row: neutral_fields.Neutral | neutral_fields.Label) -> str:
    if isinstance(row, neutral_fields.Label):
        return "any"
    return ", ".join(f"`{json.dumps(value)}`" for value in row.values) or "only null"


def metrics_page() -> str:
    """Every metric of the service itself, as `/metrics` describes it."""
    text = asyncio.run(_scraped())
    rows = [
        (f"`{family.name}`", family.type, _text(family.documentation))
        for family in sorted(text_string_to_metric_families(text), key=lambda one: one.name)
        if family.name.startswith("vbon") and not family.name.endswith("_created")
    ]
    return (
        "# Metrics\n\n`GET /metrics` also has the metrics of each vLLM engine under vLLM's own names. "
        "Counters end in `_total` there. Metrics of [distillation](../distil.md) appear when it is on.\n\n"
        + _table(("metric", "type", "meaning"), rows)
    )


async def _scraped() -> str:
    app = create_app(make_runtime(store="none"))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://docs") as client:
            return (await client.get("/metrics")).text


def _kind(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return ", ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    kind = {"null": "none", "array": "list", "boolean": "true or false"}.get(
        schema.get("type", "any"), schema.get("type", "any")
    )
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    bounds = [
        f"from {low:g}" if low is not None else "",
        f"to {high:g}" if high is not None else "",
    ]
    return " ".join([kind, *filter(None, bounds)])


def _default(schema: dict[str, Any]) -> str:
    # OpenAPI documents leave out a default of null.
    return "none" if schema.get("default") is None else f"`{json.dumps(schema['default'])}`"


def _sentence(text: str) -> str:
    text = _text(text).strip()
    return text if not text or text.endswith(".") else f"{text[0].upper()}{text[1:]}."


def _text(text: str) -> str:
    """Text that is safe in a cell of a table: one line, its bars and angle brackets escaped."""
    line = " ".join(text.replace("``", "`").split())
    return line.replace("|", "\\|").replace("<", "&lt;")


def _table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


PAGES = {
    "commands.md": commands_page,
    "http.md": http_page,
    "modes.md": modes_page,
    "objectives.md": objectives_page,
    "metrics.md": metrics_page,
    "openai-fields.md": openai_fields_page,
}


def write_pages(directory: Path) -> None:
    """Write every page into a directory, which is made if it does not exist."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text(page(), encoding="utf-8")
