"""``python -m training``: make the sandbox, sample, fine-tune, evaluate."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import TypeVar

import typer

from bestofn.config import Settings, load_settings
from bestofn.errors import BestOfNError
from training import configs
from training.objectives import OBJECTIVES

S = TypeVar("S", bound=Settings)

cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Distil best-of-N into one sample. In order: sandbox (or bring your own models), sample, "
    "vbon (or another objective), evaluate; or sweep and report, which compare them all. Every "
    "command takes --help, flags, or --config FILE.toml instead of flags.",
)
PASS_THROUGH = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


def _run(
    name: str, config_type: type[S], context: typer.Context, start: Callable[[S], None]
) -> None:
    config = load_settings(config_type, context.args, program=f"python -m training {name}")
    # Of several processes (torchrun) one tells how it goes.
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore", "matplotlib", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Each resumable state would be five lines, among them a warning about the tied output layer.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        start(config)
    except BestOfNError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("interrupted; run the same command again to go on", err=True)
        raise typer.Exit(130) from error


@cli.command(context_settings=PASS_THROUGH)
def sandbox(context: typer.Context) -> None:
    """Make a toy policy, reward model and gold reward model from nothing."""

    def start(config: configs.SandboxConfig) -> None:
        from training.sandbox.build import build_sandbox

        build_sandbox(config)

    _run("sandbox", configs.SandboxConfig, context, start)


@cli.command(context_settings=PASS_THROUGH)
def sample(context: typer.Context) -> None:
    """Draw and score M reference completions a prompt: the reward cache."""

    def start(config: configs.SampleConfig) -> None:
        from training.sample import build_cache

        build_cache(config)

    _run("sample", configs.SampleConfig, context, start)


def _add_objective(name: str, help_line: str) -> None:
    """One command an objective: ``python -m training NAME``."""

    def command(context: typer.Context) -> None:
        from training.objective_config import train_config_type

        def start(config: configs.TrainConfig) -> None:
            from training.run import train

            train(name, config)

        _run(name, train_config_type(name), context, start)

    cli.command(name, help=help_line, context_settings=PASS_THROUGH, rich_help_panel="Objectives")(
        command
    )


for _name, (_, _help_line) in OBJECTIVES.items():
    _add_objective(_name, _help_line)


@cli.command(context_settings=PASS_THROUGH)
def evaluate(context: typer.Context) -> None:
    """Reward, gold reward, win rate and KL of reference, best-of-n and checkpoints."""

    def start(config: configs.EvaluateConfig) -> None:
        from training.evaluate import evaluate_checkpoints

        evaluate_checkpoints(config)

    _run("evaluate", configs.EvaluateConfig, context, start)


@cli.command(context_settings=PASS_THROUGH)
def sweep(context: typer.Context) -> None:
    """Train objectives x N (or beta) x seeds from one budget; resumable cell by cell."""

    def start(config: configs.SweepConfig) -> None:
        from training.sweep import run_sweep

        run_sweep(config)

    _run("sweep", configs.SweepConfig, context, start)


@cli.command(context_settings=PASS_THROUGH)
def report(context: typer.Context) -> None:
    """Draw sweeps: frontier, Pareto shares, efficiency, cost; one HTML page."""

    def start(config: configs.ReportConfig) -> None:
        from training.report import write_report

        write_report(config.sweeps, config.out)

    _run("report", configs.ReportConfig, context, start)


@cli.command(context_settings=PASS_THROUGH)
def bench(context: typer.Context) -> None:
    """Samples trained a second, against TRL's RLOOTrainer in the same run."""

    def start(config: configs.BenchConfig) -> None:
        from training.bench import run_bench

        run_bench(config)

    _run("bench", configs.BenchConfig, context, start)


def main() -> None:
    """Entry point."""
    cli(args=sys.argv[1:], prog_name="python -m training")


if __name__ == "__main__":
    main()
