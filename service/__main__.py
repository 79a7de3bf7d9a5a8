"""``python -m service``: serve (the default), compare modes, load-test, bench, reload, keep API keys."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from service.auth.commands import keys_cli
from vbon.child_output import ensure_standard_files
from vbon.cli.errors import errors_as_lines
from vbon.cli.settings_command import add_settings_command
from vbon.cli.typer_help import HelpCommand, Lazy, group_type
from vbon.config import PROMPT_FILE, Settings

if TYPE_CHECKING:
    from service.bench.config import BenchSettings
    from service.settings import ServiceSettings

LAZY = {
    "loadtest": Lazy(
        "service.loadtest.__main__:cli",
        "Load a running server with several modes in turns; keep and compare runs.",
        "Commands",
    )
}
cli = typer.Typer(cls=group_type(LAZY, default="serve"), add_completion=False)
cli.add_typer(keys_cli, name="keys")

# What becomes of requests in flight; as in service.runtime.reload, which would load too much here.
InFlightChoice = Literal["finish", "keep"]
Url = Annotated[str, typer.Option(help="address of the running server")]
LOCAL = "http://127.0.0.1:8000"


@cli.callback()
def _service() -> None:
    """Serve best-of-N and fine-tuned policies over HTTP, and measure a running server.

    Without a command, `serve` runs.
    """


def _serve_settings() -> type[Settings]:
    from service.settings import ServiceSettings

    return ServiceSettings


def _bench_settings() -> type[Settings]:
    from service.bench.config import BenchSettings

    return BenchSettings


def _serve(settings: ServiceSettings) -> int:
    from service.observability.logs import set_up_logs
    from service.server import serve_until_stopped
    from service.workers import check_wire

    ensure_standard_files()
    set_up_logs(settings)
    if settings.workers > 1:
        check_wire()
        from service.workers.serve import serve_with_workers

        return serve_with_workers(settings)
    return serve_until_stopped(settings)


def _bench(settings: BenchSettings) -> None:
    logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore", "service.server"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from service.bench.run import run_bench

    run_bench(settings)


add_settings_command(
    cli, "serve", "Serve policies and a reward model over HTTP.", _serve_settings, _serve
)
add_settings_command(
    cli,
    "bench",
    "Measure the service against the bare engine under it, and modes against each other.",
    _bench_settings,
    _bench,
)


@cli.command(cls=HelpCommand)
def compare(
    url: Url = LOCAL,
    prompts: Annotated[
        str | None,
        typer.Option(help=f"file of prompts: {PROMPT_FILE}; default: eight that are built in"),
    ] = None,
    prompt_column: Annotated[
        str | None,
        typer.Option(help="key or column of the prompts; default: messages, or else prompt"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="encoding of the prompt file; default: that of its byte order mark, or UTF-8"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="prompts to use, the first of the file")] = 64,
    idle_limit: Annotated[
        int,
        typer.Option(min=1, help="prompts to use at concurrency 1, where each is waited for"),
    ] = 16,
    modes: Annotated[str, typer.Option(help="modes, separated by commas")] = "ref,bon,vbon",
    n: Annotated[int, typer.Option(help="N of the modes that rerank")] = 16,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="new tokens of a candidate, at most; default: the server's"),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="sampling temperature; default: the server's")
    ] = None,
    seed: Annotated[int, typer.Option(help="seed that makes the answers repeatable")] = 0,
    concurrency: Annotated[
        str,
        typer.Option(help="prompts in flight; each level has its own table, so 1,64 shows both"),
    ] = "1,64",
    repeats: Annotated[int, typer.Option(help="interleaved rounds at each concurrency")] = 3,
    wait_s: Annotated[float, typer.Option(help="seconds to wait for the server to be ready")] = 0.0,
    while_pid: Annotated[
        int | None, typer.Option(help="process of the server; waiting stops if it ends")
    ] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", help="file for the full result")
    ] = None,
    full: Annotated[
        bool, typer.Option(help="print the table of each concurrency and the first answers")
    ] = False,
) -> None:
    """Send the same prompts through several modes of a running server.

    Prints a verdict, and reward, win rate, latency and throughput of each mode.

    Examples:
    vbon compare --prompts heldout.jsonl --n 16
    vbon compare --modes ref,bon,vbon --concurrency 1,64 --json comparison.json
    """
    from service.client import run_comparison

    body = {
        "modes": [mode.strip() for mode in modes.split(",") if mode.strip()],
        "n": n,
        "seed": seed,
        "repeats": repeats,
    }
    sampling = {"max_tokens": max_tokens, "temperature": temperature}
    body |= {name: value for name, value in sampling.items() if value is not None}
    try:
        levels = [int(level) for level in concurrency.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{concurrency!r}: numbers separated by commas") from error
    with errors_as_lines():
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
            prompt_column=prompt_column,
            encoding=encoding,
            full=full,
        )


@cli.command(cls=HelpCommand)
def reload(
    model: Annotated[str, typer.Argument(help="a policy's name, or reward, or gold")],
    url: Url = LOCAL,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place",
            help="change the weights in the running engine instead of starting another one beside it; only "
            "if the new version differs in its weights alone",
        ),
    ] = False,
    in_flight: Annotated[
        InFlightChoice,
        typer.Option(
            help="with --in-place: `finish` lets requests in flight finish with the old weights while new "
            "ones wait, with `keep` they go on with the new weights",
        ),
    ] = "finish",
) -> None:
    """Make a running server read one of its models again.

    The server loads what the model's configured path holds now, and fails no request meanwhile. The key of
    an admin is read from the environment variable VBON_REMOTE_API_KEY.

    Examples:
    vbon reload vbon
    vbon reload vbon --in-place
    VBON_REMOTE_API_KEY=$ADMIN vbon reload reward --url https://host:8000
    """
    from service.client import run_reload

    with errors_as_lines():
        run_reload(url, model, in_place=in_place, in_flight=in_flight)


def main() -> None:
    """Run the command that the arguments name; ``serve`` where they name none."""
    cli(args=sys.argv[1:], prog_name="python -m service")


if __name__ == "__main__":
    main()
