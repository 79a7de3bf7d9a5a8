"""``vbon bench``: the two benches, of serving and of training."""

from __future__ import annotations

import typer

from vbon.cli.typer_help import Lazy, group_type

BENCHES = {
    "serve": Lazy(
        "service.__main__:cli bench",
        "Measure the service against the bare engine under it, and modes against each other.",
        "Benches",
    ),
    "train": Lazy(
        "training.__main__:cli bench",
        "Measure samples trained per second against TRL's RLOO trainer in the same run.",
        "Benches",
    ),
}

app = typer.Typer(cls=group_type(BENCHES), add_completion=False, no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Benches: each prints both of its sides from one run, as ratios with their spread."""
