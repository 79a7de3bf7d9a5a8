"""The weights that drew the candidates of the current request.

Replicas of one policy may have different ones for a while, so that the engine of all of them cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vbon.engine.protocol import ModelInfo

# Those of each engine, in the order in which they began, by the engine's identity.
Used = dict[int, list[ModelInfo]]

_used: ContextVar[Used | None] = ContextVar("used", default=None)


@contextmanager
def weights_noted() -> Iterator[Used]:
    """Note which weights are used in the block, and in the tasks that it starts."""
    used: Used = {}
    token = _used.set(used)
    try:
        yield used
    finally:
        _used.reset(token)


def note_weights(engine: object, info: ModelInfo) -> None:
    """Note that a replica with these weights has drawn for the current request."""
    used = _used.get()
    if used is not None:
        infos = used.setdefault(id(engine), [])
        if info not in infos:
            infos.append(info)


def forget_weights() -> None:
    """Forget those of the current request so far, of whose candidates none is used."""
    used = _used.get()
    if used is not None:
        used.clear()
