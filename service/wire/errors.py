"""The errors of the wire itself; those of an object that is called keep their types.

::

    VbonError
    └── WireError                  a call could not be made, or its answer could not be read
        ├── ConnectionLostError    the other process has died, does not answer, or refused the connection
        └── LeavingError           the other process takes no new calls, because it is about to end
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

import vbon.errors
from vbon.errors import VbonError


class WireError(VbonError):
    """A call over the wire could not be made, or its answer could not be read."""


class ConnectionLostError(WireError):
    """The other process has died, does not answer, or refused the connection."""


class LeavingError(WireError):
    """The other process takes no new calls, because it is about to end; others may take them."""


class ErrorParts(msgspec.Struct, array_like=True, frozen=True):
    """An error as data: the name of its class, its arguments and its attributes."""

    kind: str
    args: list[Any]
    attributes: dict[str, Any]


_KINDS: Mapping[str, type[VbonError]] = {
    kind.__name__: kind
    for kind in (
        *(
            kind
            for _, kind in inspect.getmembers(vbon.errors, inspect.isclass)
            if issubclass(kind, VbonError)
        ),
        WireError,
        ConnectionLostError,
        LeavingError,
    )
}


def error_parts(error: VbonError) -> ErrorParts:
    """The data of an error; of a class that is not known here, those of the nearest base class.

    They can always be sent: a caller whose error is lost would wait for ever.
    """
    kind = next(kind.__name__ for kind in type(error).__mro__ if _KINDS.get(kind.__name__) is kind)
    attributes = {name: _sent(value) for name, value in vars(error).items() if _is_plain(value)}
    args = [_sent(value if _is_plain(value) else str(value)) for value in error.args]
    return ErrorParts(kind, args, attributes)


def rebuilt_error(parts: ErrorParts) -> VbonError:
    """The error of these data."""
    kind = _KINDS.get(parts.kind, WireError)
    error = kind.__new__(kind)
    error.args = tuple(parts.args)
    error.__dict__.update(parts.attributes)
    return error


def _sent(value: Any) -> Any:
    """A plain value, or what can be sent of a text that is not valid Unicode, or of a number over 64 bits."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        value = str(value)
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
