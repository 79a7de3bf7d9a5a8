"""``python -m training``: make the sandbox, sample, fine-tune, evaluate, compare."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer

from training import configs
from training.objectives import OBJECTIVES
from vbon.config import Settings, load_settings
from vbon.errors import VbonError
from vbon.storage.atomic import REMEDY

cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Distil best-of-N into one sample. In order: sandbox (or bring your own models), sample, "
    "vbon (or another objective), evaluate; or sweep and report, which compare them all. Every "
    "command takes --help, flags, or --config FILE.toml instead of flags.",
)
# What any write may meet, a plot's or a temporary file's too.
DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
PASS_THROUGH = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


@dataclass(frozen=True, slots=True)
class Command:
    """A command, which imports what it runs when it runs.

    Attributes:
        config_type: gives the type of its settings.
        target: ``module:function``, called with ``arguments`` and the settings.
    """

    help: str
    config_type: Callable[[], type[Settings]]
    target: str
    arguments: tuple[Any, ...] = ()
    panel: str = "Steps"


def _settings_of(objective: str) -> Callable[[], type[Settings]]:
    def config_type() -> type[Settings]:
        from training.objectives.config import train_config_type

        return train_config_type(objective)

    return config_type


COMMANDS = {
    "sandbox": Command(
        "Make a toy policy, reward model and gold reward model from nothing.",
        lambda: configs.SandboxConfig, "sandbox.build:build_sandbox",
    ),
    "sample": Command(
        "Draw and score M reference completions a prompt: the reward cache.",
        lambda: configs.SampleConfig, "cache.sample:build_cache",
    ),
    **{
        name: Command(line, _settings_of(name), "train.run:train", (name,), panel="Objectives")
        for name, (_, line) in OBJECTIVES.items()
    },
    "evaluate": Command(
        "Reward, gold reward, win rate and KL of reference, best-of-n and checkpoints.",
        lambda: configs.EvaluateConfig, "evaluation.evaluate:evaluate_checkpoints",
    ),
    "sweep": Command(
        "Train objectives x N (or beta) x seeds from one budget; resumable cell by cell.",
        lambda: configs.SweepConfig, "sweep.run:run_sweep",
    ),
    "report": Command(
        "Draw sweeps: frontier, Pareto shares, efficiency, cost; one HTML page.",
        lambda: configs.ReportConfig, "report.write:write_report",
    ),
    "bench": Command(
        "Samples trained a second, against TRL's RLOOTrainer in the same run.",
        lambda: configs.BenchConfig, "bench.run:run_bench",
    ),
}  # fmt: skip


def _run(name: str, command: Command, arguments: list[str]) -> None:
    config = load_settings(command.config_type(), arguments, program=f"python -m training {name}")
    # Of several processes (torchrun) one tells how it goes.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Each resumable state would be five lines, among them a warning about the tied output layer.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    module, _, function = command.target.partition(":")
    try:
        getattr(import_module(f"training.{module}"), function)(*command.arguments, config)
    except VbonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        typer.echo(f"error: could not write: {error}; {REMEDY}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from error


def _add(name: str, command: Command) -> None:
    def start(context: typer.Context) -> None:
        _run(name, command, context.args)

    cli.command(
        name, help=command.help, context_settings=PASS_THROUGH, rich_help_panel=command.panel
    )(start)


for _name, _command in COMMANDS.items():
    _add(_name, _command)


def main() -> None:
    """Entry point."""
    cli(args=sys.argv[1:], prog_name="python -m training")


if __name__ == "__main__":
    main()
