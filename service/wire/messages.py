"""The messages of the wire, each a frame of msgpack; those of one turn of the loop travel together.

Arguments and results are encoded by the types of the interface (:mod:`service.wire.interface`). Nothing is
unpickled, so that a message can only ever become data.
"""

from __future__ import annotations

import numbers
from typing import Any

import msgspec

from service.wire.errors import ErrorParts, WireError

VERSION = 1
# Limit of a value in bytes. The longest that is usual is a list of texts to score.
MAX_BYTES = 64 * 2**20
# Items of a stream that may be on their way to a client that has not taken them.
WINDOW = 64


class Hello(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """The first message of a client."""

    version: int
    secret: str


class Start(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """Begin a call."""

    call: int
    method: str
    args: msgspec.Raw
    trace: dict[str, str]


class More(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """Allow the stream of a call so many more items."""

    call: int
    items: int


class Stop(msgspec.Struct, tag=4, array_like=True, frozen=True):
    """Abort a call, whose answer nobody waits for any more."""

    call: int


class Tell(msgspec.Struct, tag=5, array_like=True, frozen=True):
    """A call without an answer."""

    method: str
    args: msgspec.Raw


class Beat(msgspec.Struct, tag=6, array_like=True, frozen=True):
    """A sign of life, of either side."""


class Welcome(msgspec.Struct, tag=7, array_like=True, frozen=True):
    """The server's answer to a greeting that it accepts."""

    version: int


class Refused(msgspec.Struct, tag=8, array_like=True, frozen=True):
    """The end of a connection by the server, with the reason."""

    reason: str


class Item(msgspec.Struct, tag=9, array_like=True, frozen=True):
    """One item of a stream."""

    call: int
    value: msgspec.Raw


class Ended(msgspec.Struct, tag=10, array_like=True, frozen=True):
    """The result of a call, or the end of a stream, whose value is ``None``."""

    call: int
    value: msgspec.Raw


class Failed(msgspec.Struct, tag=11, array_like=True, frozen=True):
    """The error with which a call ended."""

    call: int
    error: ErrorParts


class Leaving(msgspec.Struct, tag=12, array_like=True, frozen=True):
    """The server's notice that it takes no new calls."""


FromClient = Hello | Start | More | Stop | Tell | Beat
FromServer = Welcome | Refused | Item | Ended | Failed | Leaving | Beat


def _number(value: Any) -> Any:
    """The plain number of a numpy scalar and its like."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{type(value).__name__} is not plain data")


_encoder = msgspec.msgpack.Encoder(enc_hook=_number)
from_client = msgspec.msgpack.Decoder(FromClient)
from_server = msgspec.msgpack.Decoder(FromServer)
BEAT = _encoder.encode(Beat())
NOTHING = msgspec.Raw(_encoder.encode(None))


def encoded(message: msgspec.Struct) -> bytes:
    """The frame of a message."""
    return _encoder.encode(message)


def value_of(value: Any, max_bytes: int) -> msgspec.Raw:
    """An argument or result, ready to be part of a message.

    Raises:
        WireError: it is not data, or too large.
    """
    try:
        data = _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(
            f"a value cannot be sent to another process: {type(error).__name__}; it must be data, with whole "
            "numbers of 64 bits and texts of valid Unicode"
        ) from error
    if len(data) > max_bytes:
        raise WireError(
            f"a value of {len(data):,} bytes cannot be sent to another process, which takes {max_bytes:,} at "
            "most; send less at once"
        )
    return msgspec.Raw(data)
