"""The command ``vbon demo``."""

from __future__ import annotations

import signal

import typer

from vbon.cli.settings_command import INTERRUPTED, add_settings_command
from vbon.config import Settings
from vbon.demo.config import DemoConfig

app = typer.Typer(add_completion=False)


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def _settings() -> type[Settings]:
    return DemoConfig


def _run(config: DemoConfig) -> int:
    from vbon.demo.run import run_demo
    from vbon.demo.story import run_story

    # Its parts have sessions of their own, so a demo that is told to end must stop them.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        (run_story if config.distil else run_demo)(config)
    except KeyboardInterrupt:
        typer.echo("stopped; finished parts are kept for the next start", err=True)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


add_settings_command(
    app,
    "demo",
    "Show live best-of-N beside a vBoN checkpoint on a toy, from nothing, in minutes.",
    _settings,
    _run,
)
