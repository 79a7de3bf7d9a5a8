"""What an output was made from, so that a second run knows whether to reuse, resume or refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vbon.errors import DataError


def read_record(path: Path) -> dict[str, Any] | None:
    """A JSON record, or ``None`` if there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last for what is nested too deep
        return None
    return value if isinstance(value, dict) else None


def trusted_record(path: Path) -> dict[str, Any] | None:
    """A JSON record that others are judged by; ``None`` only if there is none.

    Raises:
        DataError: there is one and it cannot be read.
    """
    record = read_record(path)
    if record is None and path.exists():
        raise DataError(
            f"{path} is damaged: no JSON object; restore it, or delete it with what it describes"
        )
    return record


def is_same(
    output: Path, recorded: dict[str, Any], wanted: dict[str, Any], *, replace: bool
) -> bool:
    """Whether an existing output was made from what is wanted now.

    Raises:
        DataError: it was not, and ``replace`` was not given; names what differs.
    """
    differing = sorted(key for key in {*recorded, *wanted} if recorded.get(key) != wanted.get(key))
    if not differing:
        return True
    if replace:
        return False
    changes = ", ".join(f"{k}: {recorded.get(k)!r} -> {wanted.get(k)!r}" for k in differing)
    raise DataError(
        f"{output} was made with other settings ({changes}); choose another --out, or --replace it"
    )
