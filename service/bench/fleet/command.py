"""The command ``vbon bench fleet``."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import typer
from rich.table import Table

from service.bench.fleet.config import FleetBenchConfig
from service.bench.fleet.simulation import Outcome, capacity_of, simulate
from vbon.cli.settings_command import add_settings_command
from vbon.config import Settings
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

app = typer.Typer(add_completion=False)

Runs = dict[tuple[int, str], list[Outcome]]


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def run_bench(config: FleetBenchConfig) -> dict[str, Any]:
    """Simulate all fleets, print the table, write the file, and return what it has.

    Raises:
        DataError: the file of service times cannot be used.
    """
    runs: Runs = {}
    capacity = capacity_of(config)
    typer.echo(f"one replica answers {capacity:.4g} requests/s when it has too many", err=True)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    for replicas in config.replicas:
        for sharing in config.sharing:
            begun = time.perf_counter()
            found = runs[replicas, sharing] = [
                simulate(config, replicas, sharing, seed, rate=config.load * replicas * capacity)
                for seed in seeds
            ]
            typer.echo(
                f"{replicas} replicas, {sharing}: p99 {_mean(found, 'p99_s'):.3g} s, "
                f"{time.perf_counter() - begun:.1f} s for {len(found)} runs",
                err=True,
            )
    table_console().print(table_of(config, runs))
    result = {
        **provenance(config.model_dump(mode="json")),
        "times": config.times.model_dump(),
        "capacity": capacity,
        "objective_s": config.objective_s,
        "fleets": [
            {"replicas": replicas, "sharing": sharing, "runs": [_record(one) for one in found]}
            for (replicas, sharing), found in runs.items()
        ],
    }
    if config.json_file is not None:
        write_json(config.json_file, result)
    return result


def table_of(config: FleetBenchConfig, runs: Runs) -> Table:
    """The mean over the seeds of each fleet's figures; of the p99 also the smallest and the largest."""
    table = Table(
        title=f"N = {config.n}, load {config.load:g}, objective {config.objective_s:.3g} s, "
        f"engine: {config.times.source}, {config.speed:g} times as fast",
    )
    for column in (
        "replicas", "front ends", "limits", "requests/s", "goodput", "goodput a replica", "p50, s", "p99, s",
        "refused", "prompt tokens computed", "host busy",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column == "limits" else "right")
    for (replicas, sharing), found in runs.items():
        p99 = [one.p99_s for one in found]
        goodput = _mean(found, "goodput")
        table.add_row(
            str(replicas),
            str(config.front_ends(replicas)),
            sharing,
            f"{_mean(found, 'offered'):.4g}",
            f"{goodput:.4g}",
            f"{goodput / replicas:.3g}",
            f"{_mean(found, 'p50_s'):.3g}",
            f"{np.mean(p99):.3g} \\[{min(p99):.3g}, {max(p99):.3g}]",
            f"{_mean(found, 'refused'):.1%}",
            f"{_mean(found, 'prefill'):.0f}",
            f"{_mean(found, 'host_busy'):.1%}" if sharing == "shared" else "",
        )
    return table


def _record(outcome: Outcome) -> dict[str, float | None]:
    """The figures of a run; those that it does not have, as nobody was answered, are ``None``."""
    return {name: None if math.isnan(value) else value for name, value in asdict(outcome).items()}


def _mean(found: list[Outcome], figure: str) -> float:
    return float(np.mean([getattr(one, figure) for one in found]))


def _settings() -> type[Settings]:
    return FleetBenchConfig


def _run(config: Any) -> None:
    run_bench(config)


add_settings_command(
    app,
    "fleet",
    "Simulate fleets of 1 to 64 replicas: p99, goodput, and the cost of limits that front ends share.",
    _settings,
    _run,
)
