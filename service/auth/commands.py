"""``vbon keys``: add, list and remove API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.auth.keys import MOST, ApiKey, Role, change_keys, new_key, read_keys
from vbon.cli.errors import errors_as_lines
from vbon.cli.typer_help import HelpCommand, group_type
from vbon.errors import DataError

keys_cli = typer.Typer(
    cls=group_type(),
    add_completion=False,
    no_args_is_help=True,
    help="Add, list and remove the API keys of a server.",
)

File = Annotated[
    Path,
    typer.Option("--file", help="file of the keys, which the server reads by --auth.keys-file"),
]
DEFAULT_FILE = Path("keys.jsonl")


@keys_cli.command(cls=HelpCommand)
def add(
    name: Annotated[str, typer.Argument(help="name of the key, shown in logs and limits")],
    file: File = DEFAULT_FILE,
    role: Annotated[
        Role, typer.Option(help="user, or admin, which may also use /admin and /distil")
    ] = "user",
    max_sequences: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="candidates that may decode at once")
    ] = None,
    tokens_per_minute: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST, help="tokens that may be decoded per minute, discarded ones included"
        ),
    ] = None,
) -> None:
    """Make a key and print its token, which is shown only now: the file keeps a hash."""
    with errors_as_lines():
        key, token = new_key(name, role, max_sequences, tokens_per_minute)

        def with_key(keys: list[ApiKey]) -> list[ApiKey]:
            if any(other.name == name for other in keys):
                raise DataError(f"{file} has a key {name!r} already; remove it first")
            return [*keys, key]

        change_keys(file, with_key)
    typer.echo(token)
    typer.echo(f"added {name!r} to {file}; the token is not stored, so keep it", err=True)


@keys_cli.command("list", cls=HelpCommand)
def list_keys(file: File = DEFAULT_FILE) -> None:
    """List the names, roles and limits of the keys."""
    with errors_as_lines():
        keys = read_keys(file)
    for key in keys:
        typer.echo(key.model_dump_json(exclude={"sha256"}, exclude_none=True))


@keys_cli.command(cls=HelpCommand)
def remove(
    name: Annotated[str, typer.Argument(help="name of the key")], file: File = DEFAULT_FILE
) -> None:
    """Remove a key; a running server refuses it within a second."""

    def without_key(keys: list[ApiKey]) -> list[ApiKey]:
        rest = [key for key in keys if key.name != name]
        if len(rest) == len(keys):
            raise DataError(f"{file} has no key {name!r}")
        return rest

    with errors_as_lines():
        if not file.exists():
            read_keys(file)  # raises the error of a missing file
        change_keys(file, without_key)
    typer.echo(f"removed {name!r} from {file}", err=True)
