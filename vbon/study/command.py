"""The command ``vbon study``."""

from __future__ import annotations

import typer

from vbon.cli.settings_command import INTERRUPTED, add_settings_command
from vbon.config import Settings
from vbon.study.config import StudyConfig

app = typer.Typer(add_completion=False)


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def _settings() -> type[Settings]:
    return StudyConfig


def _run(config: StudyConfig) -> int:
    from vbon.study.run import run_study

    try:
        run_study(config)
    except KeyboardInterrupt:
        typer.echo("interrupted; give the same command again to go on", err=True)
        return INTERRUPTED
    return 0


add_settings_command(
    app,
    "study",
    "Answer for your own models: pay N times at inference, or fine-tune once?",
    _settings,
    _run,
)
