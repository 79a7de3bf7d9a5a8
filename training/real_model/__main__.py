"""``scripts/real-model``: make a real language model and two reward models for it."""

from __future__ import annotations

import logging
import os
import sys

import typer

from training.real_model.config import RealModelConfig
from vbon.cli.settings_command import INTERRUPTED, add_settings_command
from vbon.config import Settings

app = typer.Typer(add_completion=False)


def _settings() -> type[Settings]:
    return RealModelConfig


def _run(config: RealModelConfig) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from training.real_model.build import build_real_model

    try:
        build_real_model(config)
    except KeyboardInterrupt:
        typer.echo("interrupted; give the same command again to go on", err=True)
        return INTERRUPTED
    return 0


add_settings_command(
    app,
    "real-model",
    "Make a directory with a real language model, two reward models for it and prompts.",
    _settings,
    _run,
)

if __name__ == "__main__":
    app(args=sys.argv[1:], prog_name="scripts/real-model")
