"""The methods of an object that can be called over the wire, with their types."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from service.wire.errors import WireError


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        arguments: reads the arguments, as a tuple.
        result: reads the result, or one item of the stream.
        streams: whether the method is an async generator; otherwise it is a coroutine.
        lasting: whether a call lasts as long as the connection, so that a server that leaves ends it.
    """

    arguments: msgspec.msgpack.Decoder[tuple[Any, ...]]
    result: msgspec.msgpack.Decoder[Any]
    streams: bool
    lasting: bool


Interface = Mapping[str, Method]


def interface_of(kind: type, *names: str, lasting: tuple[str, ...] = ()) -> Interface:
    """The interface of these methods of a class, read from their annotations.

    Args:
        names: coroutines and async generators, all of whose parameters are annotated with types of data.
        lasting: those among them whose calls last as long as the connection.
    """
    return {name: _method(getattr(kind, name), lasting=name in lasting) for name in names}


def _method(function: Any, *, lasting: bool) -> Method:
    hints = get_type_hints(function)
    result = hints.pop("return")
    parameters = [hints[name] for name in list(inspect.signature(function).parameters)[1:]]
    streams = get_origin(result) in (AsyncGenerator, AsyncIterator)
    arguments: Any = tuple.__class_getitem__(tuple(parameters))
    return Method(
        arguments=msgspec.msgpack.Decoder(arguments),
        result=msgspec.msgpack.Decoder(get_args(result)[0] if streams else result),
        streams=streams,
        lasting=lasting,
    )


def read_value(decoder: msgspec.msgpack.Decoder[Any], value: msgspec.Raw, what: str) -> Any:
    """The value of these bytes.

    Raises:
        WireError: they are not of the method's types; says where.
    """
    try:
        return decoder.decode(value)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise WireError(
            f"{what} cannot be read: {error}; both processes must have the same version of vbon"
        ) from error
