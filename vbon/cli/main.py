"""The `vbon` command: everything the project does, under one name."""

from __future__ import annotations

import sys

import typer

from vbon.cli.typer_help import Lazy, group_type

START, TRAIN, SERVE, MEASURE = "Start here", "Train", "Serve", "Measure"

# Service and training do not import each other; this table names both, and imports what is run.
COMMANDS = {
    "demo": Lazy(
        "vbon.demo.command:app demo",
        "Show live best-of-N beside a vBoN checkpoint on a toy, from nothing, in minutes.",
        START,
    ),
    "study": Lazy(
        "vbon.study.command:app study",
        "Answer for your own models: pay N times at inference, or fine-tune once?",
        START,
    ),
    "sandbox": Lazy(
        "training.__main__:cli sandbox",
        "Make a toy policy, reward model and gold reward model from nothing.",
        TRAIN,
    ),
    "sample": Lazy(
        "training.__main__:cli sample",
        "Draw and score M reference completions of each prompt: the reward cache.",
        TRAIN,
    ),
    "train": Lazy(
        "training.__main__:objectives", "Fine-tune a policy with an objective, such as vbon.", TRAIN
    ),
    "evaluate": Lazy(
        "training.__main__:cli evaluate",
        "Measure reward, win rate and KL of reference, best-of-n and checkpoints.",
        TRAIN,
    ),
    "sweep": Lazy(
        "training.__main__:cli sweep",
        "Train objectives x N (or beta) x seeds under one budget.",
        TRAIN,
    ),
    "report": Lazy(
        "training.__main__:cli report", "Draw sweeps as tables, plots and one HTML page.", TRAIN
    ),
    "serve": Lazy(
        "service.__main__:cli serve", "Serve policies and a reward model over HTTP.", SERVE
    ),
    "fleet": Lazy(
        "service.fleet.commands:fleet_cli",
        "Serve with front ends, policies and reward models as separate parts on Ray.",
        SERVE,
    ),
    "reload": Lazy(
        "service.__main__:cli reload",
        "Make a running server read one of its models again.",
        SERVE,
    ),
    "distil": Lazy(
        "vbon.distil.commands:distil_cli",
        "Train on what a service has collected: look at it, delete, make a reward cache.",
        TRAIN,
    ),
    "keys": Lazy("service.auth.commands:keys_cli", "Add, list and remove API keys.", SERVE),
    "compare": Lazy(
        "service.__main__:cli compare",
        "Send the same prompts through several modes of a running server.",
        MEASURE,
    ),
    "loadtest": Lazy(
        "service.loadtest.__main__:cli",
        "Load a running server with several modes in turns; keep and compare runs.",
        MEASURE,
    ),
    "tune": Lazy(
        "vbon.cli.tune:app",
        "Find the cheapest setting of a running server, or of training, that reaches a target.",
        MEASURE,
    ),
    "bench": Lazy(
        "vbon.cli.bench:app",
        "Measure the service against its bare engine, training against TRL, samplers against each other.",
        MEASURE,
    ),
}

app = typer.Typer(
    cls=group_type(COMMANDS),
    add_completion=False,
    no_args_is_help=True,
    epilog="Each command explains itself with --help.",
)


@app.callback()
def _vbon() -> None:
    """Best-of-N at inference, or one fine-tuned sample? Serve both, train the second, measure both."""


def main() -> None:
    """Run the command that the arguments name."""
    app(args=sys.argv[1:], prog_name="vbon")


if __name__ == "__main__":
    main()
