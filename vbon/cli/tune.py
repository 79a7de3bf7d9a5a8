"""``vbon tune``: the searches for settings of a running server and of training."""

from __future__ import annotations

import typer

from vbon.cli.typer_help import Lazy, group_type

EPILOG = (
    "Exit status: 0 with a recommendation, 1 if the search could not be run, 2 after wrong usage, 3 if "
    "nothing reaches the target, 130 after Ctrl-C (what was found is reported, and the same --out goes on)."
)
TUNES = {
    "run": Lazy(
        "service.tune.command:app run",
        "Find the cheapest setting of a running server that reaches a reward (the default command).",
        "Commands",
    ),
    "training": Lazy(
        "training.tune.command:app training",
        "Find the objective and the settings of training that reach the most, or a target.",
        "Commands",
    ),
    "against-plain": Lazy(
        "service.tune.command:app against-plain",
        "Compare the recommended setting with a client that samples n times and scores.",
        "Commands",
    ),
}

app = typer.Typer(cls=group_type(TUNES, default="run"), add_completion=False, epilog=EPILOG)


@app.callback()
def _tune() -> None:
    """Find the cheapest way to the reward you need, on a running server or by training.

    Without a command, `run` runs.
    """
