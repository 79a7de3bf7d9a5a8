"""The command ``vbon bench tune``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vbon.cli.settings_command import add_settings_command
from vbon.config import Settings
from vbon.errors import InvalidInputError
from vbon.storage.atomic import write_json, write_text
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance
from vbon.tuning.bench.config import TuneBenchConfig
from vbon.tuning.registry import SAMPLERS, missing_package

if TYPE_CHECKING:
    from vbon.tuning.bench.journal import Journal
    from vbon.tuning.bench.problem import Problem

INTERRUPTED = 130

app = typer.Typer(add_completion=False)


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def run_bench(config: TuneBenchConfig) -> dict[str, Any]:
    """Run all studies, print the tables, write the files, and return what the JSON file has.

    Raises:
        InvalidInputError: a sampler or problem is unknown, or no problem or no trial after the start is left.
        DataError: a table or the journal cannot be used.
        ModuleNotFoundError: a package that a sampler needs is not installed.
        KeyboardInterrupt: the user interrupted it before any seed was complete.
    """
    import optuna

    from vbon.tuning.bench.journal import Journal

    samplers = _samplers(config)
    if config.start >= config.trials:
        raise InvalidInputError(
            f"trials is {config.trials} and start {config.start}; samplers need trials after the start",
            field="trials",
        )
    problems = _problems(config)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked = {
        "trials": config.trials,
        "start": config.start,
        "limit_n": config.limit_n,
        "tables": {file.name: _digest(file) for file in config.tables},
    }
    path = config.journal_file
    if path is None:
        return _run(config, problems, samplers, Journal(None, asked))
    with sole_writer(path, remedy="wait for it to end, or give another --journal"):
        return _run(config, problems, samplers, Journal(path, asked))


def _run(
    config: TuneBenchConfig, problems: Sequence[Problem], samplers: Sequence[str], journal: Journal
) -> dict[str, Any]:
    """Run the studies that the journal lacks, and report."""
    from vbon.progress_bar import ProgressBar
    from vbon.tuning.bench.run import run_study

    # All samplers and problems of a seed before the next seed: what is complete is always paired.
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    wanted = [(p, name, seed) for seed in seeds for p in problems for name in samplers]
    missing = [one for one in wanted if (one[0].name, one[1], one[2]) not in journal.records]
    interrupted = False
    try:
        done = len(wanted) - len(missing)
        with ProgressBar("studies", total=len(wanted), done=done) as bar:
            for problem, sampler, seed in missing:
                record = run_study(problem, sampler, seed, config.trials, config.start)
                journal.add((problem.name, sampler, seed), record)
                bar.advance(1, f"seed {seed}, {problem.name}, {sampler}")
    except KeyboardInterrupt:
        interrupted = True
    names = [problem.name for problem in problems]
    complete = [
        seed
        for seed in seeds
        if all((p, s, seed) in journal.records for p in names for s in samplers)
    ]
    if not complete:
        raise KeyboardInterrupt
    return _report(config, problems, samplers, journal, complete, interrupted)


def _report(
    config: TuneBenchConfig, problems: Sequence[Problem], samplers: Sequence[str], journal: Journal,
    seeds: Sequence[int], interrupted: bool,
) -> dict[str, Any]:  # fmt: skip
    import numpy as np

    from vbon.tuning.bench.report import figures, markdown

    curves, seconds = {}, {}
    for problem in problems:
        records = {
            name: [journal.records[problem.name, name, seed] for seed in seeds] for name in samplers
        }
        curves[problem.name] = {
            name: np.stack([one.regrets for one in own]) for name, own in records.items()
        }
        seconds[problem.name] = {
            name: np.array([one.seconds for one in own]) for name, own in records.items()
        }
    found = figures(problems, curves, seconds, config.start)
    text = markdown(found, len(seeds))
    typer.echo(text)
    result = {
        **provenance(config.model_dump(mode="json")),
        "status": "interrupted" if interrupted else "complete",
        "seeds": list(seeds),
        "figures": found,
        "regrets": {
            name: {sampler: curve.tolist() for sampler, curve in own.items()}
            for name, own in curves.items()
        },
    }
    if config.json_file is not None:
        write_json(config.json_file, result)
    if config.markdown_file is not None:
        write_text(config.markdown_file, text)
    return result


def _samplers(config: TuneBenchConfig) -> list[str]:
    """The samplers to compare; those of the default whose packages are missing are named and left out."""
    if config.samplers is not None:
        for name in config.samplers:
            SAMPLERS.entry(name)
        return list(dict.fromkeys(config.samplers))
    found = []
    for name in SAMPLERS.built_in:
        lacking = missing_package(name)
        if lacking is None:
            found.append(name)
        else:
            package, extra = lacking
            typer.echo(
                f"Leaving out {name}: it needs {package} (pip install 'vbon[{extra}]').", err=True
            )
    return found


def _problems(config: TuneBenchConfig) -> list[Problem]:
    from vbon.tuning.bench.functions import FUNCTIONS
    from vbon.tuning.bench.prior_draws import DRAWS
    from vbon.tuning.bench.recorded import recorded_problem
    from vbon.tuning.bench.settings_table import (
        is_settings_table,
        settings_problems,
        shipped_problems,
    )

    known = {problem.name: problem for problem in (*FUNCTIONS, *DRAWS, *shipped_problems())}
    names = list(known) if config.problems is None else config.problems
    names = [] if names == ["none"] else list(dict.fromkeys(names))
    for name in names:
        if name not in known:
            raise InvalidInputError(
                f"unknown problem {name!r}; choose one of {', '.join(known)}", field="problems"
            )
    if not names and not config.tables:
        raise InvalidInputError(
            "no problem is left; name one with --problems or --tables", field="problems"
        )
    found = [known[name] for name in names]
    for file in config.tables:
        if is_settings_table(file):
            found += settings_problems(file)
        else:
            found.append(recorded_problem(file, config.limit_n))
    taken = [problem.name for problem in found]
    for name in taken:
        if taken.count(name) > 1:
            raise InvalidInputError(
                f"two problems are called {name}; rename one of the files", field="tables"
            )
    return found


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _settings() -> type[Settings]:
    return TuneBenchConfig


def _execute(config: Any) -> None:
    if run_bench(config)["status"] == "interrupted":
        raise typer.Exit(INTERRUPTED)


add_settings_command(
    app,
    "tune",
    "Compare samplers of settings on the same problems, at equal numbers of evaluations.",
    _settings,
    _execute,
)
