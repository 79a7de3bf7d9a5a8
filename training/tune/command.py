"""The command ``vbon tune training``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import typer

from vbon.cli.settings_command import add_settings_command
from vbon.config import Settings

if TYPE_CHECKING:
    from training.tune.config import TuneTrainingConfig
    from training.tune.run import TrainingFindings

UNMET, INTERRUPTED = 3, 130

app = typer.Typer(add_completion=False)


@app.callback()
def _group() -> None:
    """Hold the one command below."""


def _settings() -> type[Settings]:
    from training.tune.config import TuneTrainingConfig

    return TuneTrainingConfig


def _run(config: TuneTrainingConfig) -> int:
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    from training.tune.run import tune_training

    found = tune_training(config, typer.echo)
    for line in verdict(config, found):
        typer.echo(line)
    typer.echo(f"files: {config.out} (tune.json, search/cells, test/cells)")
    return {"recommended": 0, "unmet": UNMET, "interrupted": INTERRUPTED}[found.status]


def verdict(config: TuneTrainingConfig, found: TrainingFindings) -> list[str]:
    """Three lines: what was found, by how much it holds, and where the checkpoint is."""
    metric = config.goal.metric if config.goal is not None else config.maximise
    if found.recommended is not None and found.tested is not None:
        tested, winner = found.tested, found.recommended
        return [
            f"Recommended: {winner.label}",
            f"{metric} {tested.gain} at KL {tested.kl} nats on the held-out prompts; on the validation "
            f"prompts, with {winner.seeds} fresh seeds, {winner.gain} at {winner.kl.mean:.3f} nats.",
            f"Trained in {tested.seconds:.0f} s with {tested.samples} scored samples: "
            f"{tested.directory / 'checkpoint'}",
        ]
    if found.status == "interrupted":
        return [
            f"Interrupted after {found.trials} trials; nothing was trained again or tested.",
            "The same command goes on.",
        ]
    return ["Not reached.", f"{found.nearest[:1].upper()}{found.nearest[1:]}.", *found.notes]


add_settings_command(
    app,
    "training",
    "Find the objective and the settings of training that reach the most, or a target at the lowest price.",
    _settings,
    _run,
)
