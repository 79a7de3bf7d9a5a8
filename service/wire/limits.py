"""The limits of several front ends over the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from service.admission.host import METHODS, AdmissionHost
from service.wire.client import WireClient
from service.wire.interface import interface_of
from service.wire.server import WireServer

LIMITS = interface_of(AdmissionHost, *METHODS, lasting=("join",))

# An address of a host, and the secret that its clients must know.
Place = tuple[str, str]


def limits_server(address: str, host: AdmissionHost, secret: str | None = None) -> WireServer:
    """A server of this host, not started."""
    return WireServer(address, host, LIMITS, secret=secret)


def limits_connector(place: Callable[[], Awaitable[Place]]) -> Callable[[], Awaitable[WireClient]]:
    """The function that connects to the host, which may be at another place each time."""

    async def connect() -> WireClient:
        address, secret = await place()
        client = WireClient(address, LIMITS, secret=secret)
        await client.connect()
        return client

    return connect
