"""``python -m service``: serve (the default), compare the modes of a running server, keep API keys."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from service.auth.commands import keys_cli
from vbon.config import load_settings
from vbon.errors import VbonError

cli = typer.Typer(add_completion=False, no_args_is_help=False, help=__doc__)
cli.add_typer(keys_cli, name="keys")

PASS_THROUGH = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


@cli.command(context_settings=PASS_THROUGH)
def serve(context: typer.Context) -> None:
    """Serve the configured policies. Flags, VBON_* variables or --config FILE.toml; see serve --help."""
    from service.settings import ServiceSettings

    settings = load_settings(ServiceSettings, context.args, program="python -m service serve")
    from service.observability.logs import set_up_logs
    from service.server import serve_until_stopped

    set_up_logs(settings)
    try:
        raise typer.Exit(serve_until_stopped(settings))
    except VbonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@cli.command(context_settings=PASS_THROUGH)
def bench(context: typer.Context) -> None:
    """Measure the service against the bare engine under it, and modes against each other."""
    from service.bench.config import BenchSettings

    settings = load_settings(BenchSettings, context.args, program="python -m service bench")
    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore", "service.server"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from service.bench.run import run_bench

    try:
        run_bench(settings)
    except VbonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@cli.command()
def compare(
    url: Annotated[str, typer.Option(help="the running server")] = "http://127.0.0.1:8000",
    prompts: Annotated[
        str | None, typer.Option(help="file of prompts: JSONL with `prompt`, or one a line")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="use the first so many prompts")] = 64,
    idle_limit: Annotated[
        int, typer.Option(min=1, help="of them at concurrency 1, where each is waited for")
    ] = 16,
    modes: Annotated[str, typer.Option(help="comma-separated")] = "ref,bon,vbon",
    n: Annotated[int, typer.Option(help="N of the reranking modes")] = 16,
    max_tokens: Annotated[int, typer.Option(help="most new tokens of a candidate")] = 48,
    temperature: Annotated[float, typer.Option(help="1 samples the policy itself")] = 1.0,
    seed: Annotated[int, typer.Option(help="makes the answers repeatable")] = 0,
    concurrency: Annotated[
        str, typer.Option(help="prompts in flight; one table each, so idle and loaded show apart")
    ] = "1,64",
    repeats: Annotated[int, typer.Option(help="interleaved rounds per concurrency")] = 3,
    wait_s: Annotated[float, typer.Option(help="wait so long for the server to be ready")] = 0.0,
    while_pid: Annotated[
        int | None, typer.Option(help="stop waiting if this process (the server) ends")
    ] = None,
    json_file: Annotated[str | None, typer.Option("--json", help="write the full result")] = None,
) -> None:
    """Send the same prompts through several modes; print reward, win rate, latency, throughput."""
    from service.client import run_comparison

    body = {
        "modes": [mode.strip() for mode in modes.split(",") if mode.strip()],
        "n": n,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "repeats": repeats,
    }
    try:
        levels = [int(level) for level in concurrency.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{concurrency!r}: numbers separated by commas") from error
    try:
        run_comparison(
            url,
            prompts,
            limit,
            idle_limit,
            body,
            levels,
            wait_s=wait_s,
            while_pid=while_pid,
            json_file=json_file,
        )
    except VbonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@cli.command()
def reload(
    model: Annotated[str, typer.Argument(help="a policy's name, or reward, or gold")],
    url: Annotated[str, typer.Option(help="the running server")] = "http://127.0.0.1:8000",
) -> None:
    """Serve what a model's configured path holds now, failing no request. Needs an admin's key, in
    VBON_REMOTE_API_KEY."""
    from service.client import run_reload

    try:
        run_reload(url, model)
    except VbonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


def main() -> None:
    """Entry point; without a command, ``serve``."""
    known = {"serve", "bench", "compare", "keys", "reload", "--help", "-h"}
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.argv.insert(1, "serve")
    cli(prog_name="python -m service")


if __name__ == "__main__":
    main()
