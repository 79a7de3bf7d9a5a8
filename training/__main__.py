"""``python -m training``: make the sandbox, sample, fine-tune, evaluate, compare methods."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import typer

from training import configs
from training.objectives import OBJECTIVES
from vbon.cli.settings_command import INTERRUPTED, add_settings_command
from vbon.cli.typer_help import group_type
from vbon.config import Settings
from vbon.storage.atomic import REMEDY

# Errors that any write may meet, a plot's or a temporary file's too.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@dataclass(frozen=True, slots=True)
class Command:
    """A command and the function it runs, which is imported only then.

    Attributes:
        summary: the line in the list of commands.
        settings_type: gives the class of its settings.
        target: ``module:function`` inside ``training``, called with ``arguments`` and the settings.
    """

    summary: str
    settings_type: Callable[[], type[Settings]]
    target: str
    arguments: tuple[Any, ...] = ()


def _settings_of(objective: str) -> Callable[[], type[Settings]]:
    def settings_type() -> type[Settings]:
        from training.train.config import train_config_type

        return train_config_type(objective)

    return settings_type


STEPS = {
    "sandbox": Command(
        "Make a toy policy, reward model and gold reward model from nothing.",
        lambda: configs.SandboxConfig,
        "sandbox.build:build_sandbox",
    ),
    "sample": Command(
        "Draw and score M reference completions of each prompt: the reward cache.",
        lambda: configs.SampleConfig,
        "cache.sample:build_cache",
    ),
    "evaluate": Command(
        "Measure reward, win rate and KL of reference, best-of-n and checkpoints.",
        lambda: configs.EvaluateConfig,
        "evaluation.evaluate:evaluate_checkpoints",
    ),
    "sweep": Command(
        "Train objectives x N (or beta) x seeds under one budget.",
        lambda: configs.SweepConfig,
        "sweep.run:run_sweep",
    ),
    "report": Command(
        "Draw sweeps as tables, plots and one HTML page.",
        lambda: configs.ReportConfig,
        "report.write:write_report",
    ),
    "bench": Command(
        "Measure samples trained per second against TRL's RLOO trainer in the same run.",
        lambda: configs.BenchConfig,
        "bench.run:run_bench",
    ),
}
TRAININGS = {
    name: Command(OBJECTIVES.entry(name).summary, _settings_of(name), "train.run:train", (name,))
    for name in OBJECTIVES
}

cli = typer.Typer(cls=group_type(), add_completion=False, no_args_is_help=True)
objectives = typer.Typer(cls=group_type(), add_completion=False, no_args_is_help=True)


@cli.callback()
def _training() -> None:
    """Distil best-of-N into one sample.

    In order: sandbox (or bring your own models), sample, vbon (or another objective), evaluate; or sweep
    and report, which compare all objectives. Every command takes flags, or --config FILE.toml.
    """


@objectives.callback()
def _train() -> None:
    """Fine-tune a policy with one objective.

    Each objective is a command with its own --help. A run that was killed goes on when the same command is
    given again.

    Examples:
    vbon train vbon --policy DIR --reward DIR --cache cache.jsonl --out checkpoints/vbon
    vbon train kl-rl --beta 0.1 --lora-rank 16 --policy DIR --reward DIR --cache cache.jsonl
    """


def _run(command: Command, settings: Settings) -> int:
    # Of several processes (torchrun), only the first reports progress.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # accelerate logs five lines for each resumable state, among them a warning about tied weights.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    module, _, function = command.target.partition(":")
    try:
        getattr(import_module(f"training.{module}"), function)(*command.arguments, settings)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        typer.echo(f"error: could not write: {error}; {REMEDY}", err=True)
        return 1
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command again to go on", err=True)
        return INTERRUPTED
    return 0


for _app, _commands, _panel in (
    (cli, STEPS, "Steps"),
    (cli, TRAININGS, "Objectives"),
    (objectives, TRAININGS, "Objectives"),
):
    for _name, _command in _commands.items():
        add_settings_command(
            _app,
            _name,
            _command.summary,
            _command.settings_type,
            partial(_run, _command),
            panel=_panel,
        )


def main() -> None:
    """Run the command that the arguments name."""
    cli(args=sys.argv[1:], prog_name="python -m training")


if __name__ == "__main__":
    main()
