"""``vbon distil checkpoints|promote|refuse|rollback``: the checkpoints of a running service."""

from __future__ import annotations

from typing import Annotated, Any

import httpx
import typer

from vbon.cli.errors import errors_as_lines
from vbon.cli.typer_help import HelpCommand
from vbon.errors import VbonError

LIMIT_S = 60.0
LOCAL = "http://127.0.0.1:8000"
NOTHING = "bon"

Url = Annotated[str, typer.Option(help="address of the running service")]
Key = Annotated[
    str,
    typer.Option(envvar="VBON_REMOTE_API_KEY", help="key of an admin", show_envvar=True),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="id of the checkpoint: its round")]


class ServiceError(VbonError):
    """The service cannot be reached, or refused; the message says why."""


def add_checkpoint_commands(cli: typer.Typer) -> None:
    """Add the commands to a group."""
    for command in (checkpoints, promote, refuse, rollback):
        cli.command(cls=HelpCommand)(command)


def checkpoints(url: Url = LOCAL, key: Key = "") -> None:
    """Show the checkpoints of a service with their shares and evidence, and what they have saved.

    Examples:
    VBON_REMOTE_API_KEY=$ADMIN vbon distil checkpoints --url https://host:8000
    """
    with errors_as_lines():
        found = ask(url, key, "GET", "checkpoints")
    _show(found)


def promote(checkpoint: Id, url: Url = LOCAL, key: Key = "") -> None:
    """Roll out a checkpoint whatever its decision; one that is being rolled out moves to its next share.

    Examples:
    VBON_REMOTE_API_KEY=$ADMIN vbon distil promote 0003
    """
    with errors_as_lines():
        seen = ask(url, key, "GET", f"checkpoints/{checkpoint}")
        body = {"status": seen["status"], "step": seen["step"]}
        found = ask(url, key, "POST", f"checkpoints/{checkpoint}/promote", body)
    typer.echo(_line(found))


def refuse(checkpoint: Id, url: Url = LOCAL, key: Key = "") -> None:
    """Refuse a checkpoint that waits for approval, or roll back one that is being rolled out.

    Examples:
    VBON_REMOTE_API_KEY=$ADMIN vbon distil refuse 0003
    """
    with errors_as_lines():
        found = ask(url, key, "POST", f"checkpoints/{checkpoint}/refuse")
    typer.echo(_line(found))


def rollback(
    to: Annotated[
        str,
        typer.Option(help="id of a checkpoint that was live before; default: best-of-N"),
    ] = NOTHING,
    url: Url = LOCAL,
    key: Key = "",
) -> None:
    """Give all requests of mode auto to an earlier checkpoint, or to best-of-N, at once.

    Requests in flight finish on what they began on.

    Examples:
    VBON_REMOTE_API_KEY=$ADMIN vbon distil rollback
    VBON_REMOTE_API_KEY=$ADMIN vbon distil rollback --to 0002
    """
    target = None if to == NOTHING else to
    with errors_as_lines():
        found = ask(url, key, "POST", "rollback", {"to": target})
    answering = "best-of-N" if found["live"] is None else f"checkpoint {found['live']}"
    typer.echo(f"{answering} answers mode auto")
    if not found["stored"]:
        typer.echo(
            "warning: the store could not be written yet; the service goes on trying, and forgets this if it "
            "restarts before",
            err=True,
        )


def ask(url: str, key: str, method: str, path: str, body: Any = None) -> dict[str, Any]:
    """The JSON that the service answers.

    Raises:
        ServiceError: it cannot be reached, or refused.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, timeout=LIMIT_S, headers=headers) as client:
            response = client.request(method, f"/distil/{path}", json=body)
        payload = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ServiceError(f"{url} did not answer: {error}; check --url") from error
    if response.status_code != httpx.codes.OK:
        said = payload.get("error", {}).get("message", payload)
        raise ServiceError(f"the service refused (HTTP {response.status_code}): {said}")
    return dict(payload)


def _line(found: dict[str, Any]) -> str:
    loading = "" if found["served"] or found["status"] not in ("rolling", "live") else ", loading"
    share = f" at {found['share']:.0%} of mode auto" if found["share"] else ""
    return f"checkpoint {found['id']} is {found['status'].replace('_', ' ')}{share}{loading}"


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    from vbon.terminal import table_console

    table = Table(title=f"checkpoints (a win rate of {found['threshold']:.3f} is required)")
    for column in ("id", "status", "share", "verdict", "win rate, held out", "live", "compared"):
        table.add_column(column, justify="left" if column in ("id", "status") else "right")
    for one in found["checkpoints"]:
        held_out, evidence = one["decision"]["figures"]["candidate"], one["evidence"]
        live = evidence["win_rate"]
        table.add_row(
            one["id"],
            one["status"].replace("_", " ") + (f" ({one['why']})" if one["why"] else ""),
            f"{one['share']:.0%}" if one["share"] else "",
            one["decision"]["verdict"],
            f"{held_out['win_rate']['mean']:.3f}",
            "" if live is None else f"{live:.3f}",
            str(evidence["shadows"] or ""),
        )
    table_console().print(table)
    typer.echo(
        f"mode auto has saved {found['saved_tokens']:,.0f} tokens against always best-of-{found['n']}; "
        f"training took {found['training_tokens']:,}"
    )
