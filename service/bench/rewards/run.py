"""Starts the sides, measures the grid, and prints what was found."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any

import numpy as np
import typer
from rich.table import Table

from service.bench.figures import ratios
from service.bench.rewards.cells import Cell, Contest
from service.bench.rewards.config import RewardBenchSettings, SideName
from service.bench.rewards.sides import classifier_of, started, threads_of, types_of
from vbon.errors import DataError, VbonError
from vbon.maths.statistics import median_range
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console


async def run_reward_bench(settings: RewardBenchSettings) -> dict[str, Any]:
    """Measure all cells, print the table, write the ``--json`` file, and return what is written to it.

    Raises:
        InvalidInputError: the reward model is not a classifier.
        CheckpointError: its directory holds no usable model.
        DataError: no side could be measured.
    """
    classifier = classifier_of(settings)
    classifier.load_tokenizer()
    contest = Contest(settings, lambda items: [len(ids) for ids in classifier.encode(items)])
    cells = [Cell(batch, length) for length in settings.lengths for batch in settings.batches]
    loads = [os.getloadavg()[0]]
    async with AsyncExitStack() as stack:
        for name in settings.sides:
            typer.echo(f"starting {name}", err=True)
            try:
                contest.sides.append(await stack.enter_async_context(started(name, settings)))
            except VbonError as error:
                contest.excluded[name] = str(error)
                typer.echo(f"{name} could not start and is left out: {error}", err=True)
        rng = np.random.default_rng(settings.seed)
        for cell in cells:
            if not contest.sides:
                cell.why_not = "no side is left"
                continue
            await contest.measure(cell, rng)
            loads.append(os.getloadavg()[0])
            typer.echo(_line(cell), err=True)
        memory = {side.name: side.peak_mib() for side in contest.sides}
    result = {
        **provenance(settings.model_dump(mode="json")),
        "reward_revision": classifier.revision,
        "threads": threads_of(settings),
        "types": types_of(settings),
        "cores": os.cpu_count(),
        "load_average": {"lowest": min(loads), "highest": max(loads)},
        "excluded": contest.excluded,
        "peak_mib": memory,
        "cells": [_cell_record(cell, settings.sides) for cell in cells],
        "agreement": [
            {"sides": list(names), **asdict(found), "agree": _agree(contest, names)}
            for names, found in contest.agreement.items()
        ],
    }
    if settings.json_file is not None:
        write_json(settings.json_file, result)
    if not any(cell.rates for cell in cells):
        reasons = [*contest.excluded.values(), *(cell.why_not for cell in cells)]
        raise DataError(f"no side could be measured: {reasons[0]}")
    console = table_console()
    console.print(table_of(result))
    for line in closing_lines(result):
        typer.echo(line)
    return result


def _agree(contest: Contest, names: tuple[SideName, SideName]) -> bool:
    found = contest.agreement[names]
    return found.largest <= contest.settings.tolerance and not found.one_sided


def _cell_record(cell: Cell, order: list[SideName]) -> dict[str, Any]:
    """The figures of a cell; ratios are those of the first side over each other one."""
    names = [name for name in order if name in cell.rates]
    return {
        "batch": cell.batch,
        "length": cell.length,
        "mean_tokens": cell.tokens,
        "calls": cell.calls,
        "left_out": cell.why_not or None,
        "texts_per_second": {
            name: {**asdict(median_range(cell.rates[name])), "values": cell.rates[name]}
            for name in names
        },
        "cpu_ms_per_text": {name: cell.cpu_ms[name] for name in names},
        "ratios": {
            f"{names[0]} / {name}": asdict(ratios(cell.rates[names[0]], cell.rates[name]))
            for name in names[1:]
            if len(cell.rates[name]) == len(cell.rates[names[0]])
        },
    }


def _line(cell: Cell) -> str:
    what = f"{cell.batch} texts of {cell.length} tokens"
    if cell.why_not:
        return f"{what}: left out: {cell.why_not}"
    rates = [f"{name} {_number(float(np.median(found)))}" for name, found in cell.rates.items()]
    return f"{what}: {', '.join(rates)} texts/s"


def table_of(result: dict[str, Any]) -> Table:
    """Texts per second of each side, and the ratios of the first side over the others."""
    sides = list(dict.fromkeys(n for cell in result["cells"] for n in cell["texts_per_second"]))
    pairs = list(dict.fromkeys(n for cell in result["cells"] for n in cell["ratios"]))
    table = Table(title="reward texts scored per second, median \\[smallest, largest]")
    for column in ("tokens", "texts a call", *sides, *pairs, "CPU ms a text"):
        table.add_column(column)
    for cell in result["cells"]:
        if cell["left_out"]:
            continue
        row = [f"{cell['mean_tokens']:.0f}", str(cell["batch"])]
        row += [_spread(cell["texts_per_second"].get(name)) for name in sides]
        row += [_spread(cell["ratios"].get(name)) for name in pairs]
        row.append(", ".join(f"{_number(ms)}" for ms in cell["cpu_ms_per_text"].values()))
        table.add_row(*row)
    return table


def _spread(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    middle, low, high = (_number(found[name]) for name in ("median", "low", "high"))
    return f"{middle} \\[{low}, {high}]"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def closing_lines(result: dict[str, Any]) -> list[str]:
    """Lines on everything left out, on the agreement of scores, the memory, and the machine's load."""
    lines = [f"{name} is left out: {reason}" for name, reason in result["excluded"].items()]
    left_out = [cell for cell in result["cells"] if cell["left_out"]]
    lines += [
        f"{cell['batch']} texts of {cell['length']} tokens are left out: {cell['left_out']}"
        for cell in left_out
    ]
    for found in result["agreement"]:
        first, second = found["sides"]
        verdict = "agree" if found["agree"] else "DISAGREE"
        one_sided = f"; {found['one_sided']} only one of them scored" if found["one_sided"] else ""
        lines.append(
            f"{first} and {second} {verdict}: scores of {found['texts']} texts differ by "
            f"{found['largest']:.2g} at most{one_sided}"
        )
    peaks = [f"{name} {mib:.0f} MiB" for name, mib in result["peak_mib"].items() if mib is not None]
    lines.append(f"most resident memory: {', '.join(peaks) or 'unknown'}")
    types = result["types"]
    kinds = ", ".join(f"{name} {type_}" for name, type_ in types.items())
    differ = "; the sides compute with different types" if len(set(types.values())) > 1 else ""
    lines.append(f"type: {kinds}{differ}")
    load, cores = result["load_average"], result["cores"]
    busy = "busy" if load["highest"] > cores + 0.5 else "quiet"
    lines.append(
        f"machine: load average {load['lowest']:.1f} to {load['highest']:.1f} on {cores} cores ({busy}); "
        f"{result['threads']} threads a side"
    )
    return lines
