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

S = TypeVar("S", bound=Settings)

cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Distil best-of-N into one sample. In order: sandbox (or bring your own models), sample, "
    "vbon, evaluate. Every command takes --help, flags, or --config FILE.toml instead of flags.",
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
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
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


@cli.command(context_settings=PASS_THROUGH)
def vbon(context: typer.Context) -> None:
    """Fine-tune the policy toward its own best-of-N."""

    def start(config: configs.VbonConfig) -> None:
        from training.vbon import train_vbon

        train_vbon(config)

    _run("vbon", configs.VbonConfig, context, start)


@cli.command(context_settings=PASS_THROUGH)
def evaluate(context: typer.Context) -> None:
    """Reward, gold reward, win rate and KL of reference, best-of-n and checkpoints."""

    def start(config: configs.EvaluateConfig) -> None:
        from training.evaluate import evaluate_checkpoints

        evaluate_checkpoints(config)

    _run("evaluate", configs.EvaluateConfig, context, start)


def main() -> None:
    """Entry point."""
    cli(args=sys.argv[1:], prog_name="python -m training")


if __name__ == "__main__":
    main()
