"""Commands whose options are the fields of a settings class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from vbon.cli.errors import errors_as_lines
from vbon.cli.typer_help import HelpCommand
from vbon.config import Settings, load_settings

# The settings class parses the options itself, and shows its own help.
PASS_THROUGH = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}

INTERRUPTED = 130  # exit status after Ctrl-C, as a shell reports it

# Packages that the base install leaves out, and the extra that brings each.
EXTRAS = {
    "accelerate": "train",
    "botorch": "botorch",
    "gguf": "real-model",
    "matplotlib": "train",
    "optuna": "tune",
    "optuna_integration": "botorch",
    "peft": "train",
    "psycopg": "postgres",
    "safetensors": "train",
    "tokenizers": "train",
    "torch": "train",
    "transformers": "train",
    "trl": "bench",
    "vllm": "cpu",
}


def add_settings_command(
    app: typer.Typer,
    name: str,
    summary: str,
    settings_type: Callable[[], type[Settings]],
    run: Callable[[Any], int | None],
    *,
    panel: str | None = None,
) -> None:
    """Add a command to a typer application.

    Args:
        settings_type: gives the settings class, so that naming the command imports nothing heavy.
        run: does the work with the settings and returns the exit status, ``None`` for 0.

    A :class:`~vbon.errors.VbonError` of either becomes one line on standard error and status 1.
    """

    def start(context: typer.Context) -> None:
        try:
            with errors_as_lines():
                settings = load_settings(
                    settings_type(), context.args, program=context.command_path
                )
                status = run(settings)
        except ModuleNotFoundError as error:
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            typer.echo(
                f"error: `{context.command_path}` needs the package {error.name}, which is not "
                f"installed; install vbon with the extra {extra}: pip install -e '.[{extra}]'",
                err=True,
            )
            raise typer.Exit(1) from error
        raise typer.Exit(status or 0)

    app.command(
        name, help=summary, cls=HelpCommand, context_settings=PASS_THROUGH, rich_help_panel=panel
    )(start)
