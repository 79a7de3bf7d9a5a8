"""The limits of a fleet, which hold over all of its front ends: one replica hosts them."""

from __future__ import annotations

import asyncio
from contextvars import Context
from functools import partial
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address

from service.admission.host import AdmissionHost
from service.admission.shared import SharedAdmission
from service.observability.logs import set_up_logs
from service.runtime.limits import open_admission
from service.settings import ServiceSettings
from service.wire.limits import Place, limits_connector, limits_server
from vbon.errors import NotReadyError

# Seconds in which the replica must say where it listens; Serve lets a call wait for a replica otherwise.
_PLACE_TIMEOUT_S = 5.0


class LimitsReplica:
    """The host of the limits, which front ends ask over connections of their own."""

    async def __init__(self, settings: ServiceSettings, front_ends: int) -> None:  # type: ignore[misc]  # Serve awaits it
        set_up_logs(settings)
        host = AdmissionHost(open_admission(settings.limits), front_ends=front_ends)
        self._server = limits_server(f"tcp://{_host()}:*", host)
        await self._server.start()

    async def __del__(self) -> None:
        """End the connections when Serve takes the replica down."""
        await self._server.stop()

    async def place(self) -> Place:
        """The address at which the host listens, and the secret that its clients must know."""
        return self._server.address, self._server.secret


def shared_admission(
    handle: DeploymentHandle[Any], settings: ServiceSettings, front_ends: int
) -> SharedAdmission:
    """A front end's admission, which asks the replica that there is at each time."""

    async def place() -> Place:
        # Serve's router would take calls of the same HTTP request for one call.
        response = Context().run(handle.place.remote)
        try:
            async with asyncio.timeout(_PLACE_TIMEOUT_S):
                found: Place = await response
        except TimeoutError as error:
            response.cancel()
            raise NotReadyError(
                "no replica of the limits answers; Serve starts a new one"
            ) from error
        return found

    own = partial(open_admission, settings.limits)
    return SharedAdmission(limits_connector(place), own, front_ends=front_ends)


def _host() -> str:
    host = get_node_ip_address()
    return f"[{host}]" if ":" in host else host
