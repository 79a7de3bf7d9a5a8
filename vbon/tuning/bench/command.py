"""The command ``vbon bench tune``."""

from __future__ import annotations

import time
from typing import Any

import typer

from vbon.cli.settings_command import add_settings_command
from vbon.config import Settings
from vbon.errors import InvalidInputError
from vbon.storage.atomic import write_json, write_text
from vbon.storage.provenance import provenance
from vbon.tuning.bench.config import TuneBenchConfig
from vbon.tuning.registry import SAMPLERS

app = typer.Typer(add_completion=False)


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def run_bench(config: TuneBenchConfig) -> dict[str, Any]:
    """Run all studies, print the tables, write the files, and return what the JSON file has.

    Raises:
        InvalidInputError: a sampler or problem is unknown, or no problem or no trial after the start is left.
        DataError: a table cannot be used.
        ModuleNotFoundError: Optuna or torch is not installed.
    """
    import numpy as np
    import optuna

    from vbon.tuning.bench.functions import FUNCTIONS
    from vbon.tuning.bench.recorded import recorded_problem
    from vbon.tuning.bench.report import figures, markdown
    from vbon.tuning.bench.run import regrets

    known = {problem.name: problem for problem in FUNCTIONS}
    for name in config.samplers:
        SAMPLERS.entry(name)
    names = list(known) if config.problems is None else config.problems
    names = [] if names == ["none"] else names
    for name in names:
        if name not in known:
            raise InvalidInputError(
                f"unknown problem {name!r}; choose one of {', '.join(known)}", field="problems"
            )
    if not names and not config.tables:
        raise InvalidInputError(
            "no problem is left; name one with --problems or --tables", field="problems"
        )
    if config.start >= config.trials:
        raise InvalidInputError(
            f"trials is {config.trials} and start {config.start}; samplers need trials after the start",
            field="trials",
        )
    problems = [known[name] for name in names]
    problems += [recorded_problem(file, config.limit_n) for file in config.tables]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    curves: dict[str, dict[str, Any]] = {}
    seconds: dict[tuple[str, str], float] = {}
    for problem in problems:
        curves[problem.name] = {}
        for sampler in config.samplers:
            begun = time.perf_counter()
            rows = [regrets(problem, sampler, s, config.trials, config.start) for s in seeds]
            seconds[problem.name, sampler] = (time.perf_counter() - begun) / len(rows)
            curves[problem.name][sampler] = np.stack(rows)
            typer.echo(
                f"{problem.name} {sampler}: median regret {np.median(np.stack(rows)[:, -1]):.3g}, "
                f"{seconds[problem.name, sampler]:.1f} s per study",
                err=True,
            )
    found = figures(problems, curves)
    for (problem_name, sampler), value in seconds.items():
        found["problems"][problem_name]["samplers"][sampler]["seconds"] = value
    text = markdown(found)
    typer.echo(text)
    regret_lists = {
        name: {sampler: curve.tolist() for sampler, curve in own.items()}
        for name, own in curves.items()
    }
    result = {
        **provenance(config.model_dump(mode="json")), "figures": found, "regrets": regret_lists
    }  # fmt: skip
    if config.json_file is not None:
        write_json(config.json_file, result)
    if config.markdown_file is not None:
        write_text(config.markdown_file, text)
    return result


def _settings() -> type[Settings]:
    return TuneBenchConfig


def _run(config: Any) -> None:
    run_bench(config)


add_settings_command(
    app,
    "tune",
    "Compare samplers of settings on the same problems, at equal numbers of evaluations.",
    _settings,
    _run,
)
