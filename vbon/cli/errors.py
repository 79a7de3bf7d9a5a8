"""Errors of the project as commands show them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from vbon.errors import VbonError


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turn a :class:`~vbon.errors.VbonError` into one line on standard error, and exit status 1."""
    try:
        yield
    except VbonError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
