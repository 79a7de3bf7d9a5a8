"""A direct connection between processes, for objects of this project's protocols in another process.

A :class:`WireServer` serves an object at an address, and a :class:`WireClient` calls its methods: see
:mod:`service.wire.server` and :mod:`service.wire.client`.
"""

from __future__ import annotations

from service.wire.client import WireClient
from service.wire.errors import ConnectionLostError, LeavingError, WireError
from service.wire.interface import Interface, interface_of
from service.wire.server import WireServer, current_client
from service.wire.timing import Timing

__all__ = [
    "ConnectionLostError",
    "Interface",
    "LeavingError",
    "Timing",
    "WireClient",
    "WireError",
    "WireServer",
    "current_client",
    "interface_of",
]
