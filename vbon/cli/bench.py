"""``vbon bench``: the benches of serving, reward models, fleets, training and tuning."""

from __future__ import annotations

import typer

from vbon.cli.typer_help import Lazy, group_type

BENCHES = {
    "serve": Lazy(
        "service.__main__:cli bench",
        "Measure the service against the bare engine under it, and modes against each other.",
        "Benches",
    ),
    "reward": Lazy(
        "service.bench.rewards.command:app reward",
        "Measure reward texts scored per second: our worker against vLLM's pooling runner.",
        "Benches",
    ),
    "train": Lazy(
        "training.__main__:cli bench",
        "Measure samples trained per second against TRL's RLOO trainer in the same run.",
        "Benches",
    ),
    "tune": Lazy(
        "vbon.tuning.bench.command:app tune",
        "Compare samplers of settings on the same problems, at equal numbers of evaluations.",
        "Benches",
    ),
    "fleet": Lazy(
        "service.bench.fleet.command:app fleet",
        "Simulate fleets of 1 to 64 replicas: p99, goodput, and the cost of limits that front ends share.",
        "Benches",
    ),
}

app = typer.Typer(cls=group_type(BENCHES), add_completion=False, no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Benches: each prints all its sides from one run, with their spread."""
