"""``vbon distil``: look at collected answers, delete some, make a reward cache of them."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from vbon.cli.errors import errors_as_lines
from vbon.cli.settings_command import INTERRUPTED, add_settings_command
from vbon.cli.typer_help import HelpCommand, group_type
from vbon.config import Settings
from vbon.distil.checkpoint_commands import add_checkpoint_commands

distil_cli = typer.Typer(
    cls=group_type(),
    add_completion=False,
    no_args_is_help=True,
    help="Train on what a service has collected (vbon serve --distil.dir DIR).\n\n"
    "In order: serve with --distil.dir, `distil status`, `distil cache`, `vbon train vbon`; or `distil run`, "
    "which does all of this again and again.\n\n"
    "Examples:\n"
    "vbon distil cache collected --output cache.jsonl\n"
    "vbon train vbon --policy DIR --reward DIR --cache cache.jsonl --heldout cache.heldout.jsonl",
)

Directory = Annotated[Path, typer.Argument(help="directory of --distil.dir")]


@distil_cli.command(cls=HelpCommand)
def status(directory: Directory) -> None:
    """Show the answers of a directory by what made them: policy, reward model and sampling.

    A running service is not disturbed. Of each identity one reward cache can be made.

    Examples:
    vbon distil status collected
    """
    from rich.table import Table

    from vbon.distil.summary import read_contents, summarise
    from vbon.terminal import table_console

    with errors_as_lines():
        contents, troubles = read_contents(directory)
    found = summarise(contents)
    table = Table(title=f"{directory}: {found.lines:,} answers in {found.size / 2**20:,.1f} MiB")
    for column in ("identity", "answers", "sealed", "candidates", "oldest (UTC)", "newest (UTC)"):
        table.add_column(column, justify="left" if column == "identity" else "right")
    for one in found.identities:
        table.add_row(
            f"{one.identity.digest}: {one.identity.describe()}",
            f"{one.lines:,}",
            f"{one.sealed_lines:,}",
            f"{one.candidates:,}",
            _time(one.first_s),
            _time(one.last_s),
        )
    table_console().print(table)
    if found.largest_key is not None:
        _, share = found.largest_key
        typer.echo(
            f"{len([k for k in found.keys if k])} API keys; one sent {share:.0%} of all answers"
        )
    if found.open:
        typer.echo(
            f"{found.open} shards are open: their answers can be used once they are sealed "
            "(POST /distil/seal, or when the service stops)"
        )
    for trouble in troubles:
        typer.echo(f"warning: {trouble}", err=True)


@distil_cli.command(cls=HelpCommand)
def delete(
    directory: Directory,
    request_ids: Annotated[
        list[str], typer.Argument(metavar="REQUEST_ID...", help="ids that answers show")
    ],
) -> None:
    """Remove all answers to some requests from a directory that no service is using.

    A running service does it itself: DELETE /distil/requests/ID. Reward caches made before are not changed.

    Examples:
    vbon distil delete collected req-4f0c2d5e
    """
    from vbon.distil.directory import delete_offline

    with errors_as_lines():
        lines = delete_offline(directory, request_ids)
    typer.echo(f"removed {lines} answer{'' if lines == 1 else 's'} from {directory}")


@distil_cli.command(cls=HelpCommand)
def cache(
    directory: Directory,
    output: Annotated[Path, typer.Option(help="reward cache to write")] = Path("cache.jsonl"),
    identity: Annotated[
        str | None,
        typer.Option(
            help="identity to take, as `distil status` shows it; default: the one with the newest answer"
        ),
    ] = None,
    heldout: Annotated[
        Path | None,
        typer.Option(
            help="file for the held-out prompts; default: beside the cache, NAME.heldout.jsonl"
        ),
    ] = None,
    heldout_share: Annotated[
        float,
        typer.Option(
            min=0, max=0.9, help="share of the prompts that never train, the same in every cache"
        ),
    ] = 0.1,
    min_samples: Annotated[
        int,
        typer.Option(
            min=1,
            help="leave out prompts with fewer samples; a warm start with best of N needs N of them",
        ),
    ] = 2,
    max_samples: Annotated[
        int, typer.Option(min=1, help="take the first samples of a prompt, at most so many")
    ] = 1024,
    missing_eos_reward: Annotated[
        float | None,
        typer.Option(
            help="reward of samples that the token limit cut off, as in training; default: their own"
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="replace files that this command has not made")
    ] = False,
) -> None:
    """Make a reward cache of all sealed answers of one identity.

    Training and evaluation check it like a cache of `vbon sample`: same policy, reward model, max_new_tokens
    and temperature. Answers to the same prompt are merged. Samples that rewards have selected are left out,
    and so are prompts that a hash holds out for evaluation.

    Examples:
    vbon distil cache collected --output cache.jsonl
    vbon distil cache collected --output cache.jsonl --identity 3fa2 --heldout-share 0.2
    """
    from vbon.distil.cache import CacheOptions, make_cache

    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
    options = CacheOptions(
        directory,
        output,
        identity=identity,
        heldout=heldout,
        heldout_share=heldout_share,
        min_samples=min_samples,
        max_samples=max_samples,
        missing_eos_reward=missing_eos_reward,
        replace=replace,
    )
    with errors_as_lines():
        report = make_cache(options)
    for line in report.lines(options):
        typer.echo(line)
    for warning in report.suspicions.values():
        typer.echo(f"warning: {warning}", err=True)


def _run_settings() -> type[Settings]:
    from vbon.distil.loop.config import DistilRunConfig

    return DistilRunConfig


def _run(config: Any) -> int:
    from vbon.distil.loop.run import run_loop

    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    try:
        run_loop(config)
    except KeyboardInterrupt:
        typer.echo("interrupted; give the same command again to go on", err=True)
        return INTERRUPTED
    return 0


add_settings_command(
    distil_cli,
    "run",
    "Train on what comes in, round after round, and promote what is good enough.",
    _run_settings,
    _run,
)
add_checkpoint_commands(distil_cli)


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")
