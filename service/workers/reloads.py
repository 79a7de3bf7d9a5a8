"""Reloads of the parent's models, which any worker may ask for."""

from __future__ import annotations

from service.runtime.reload import InFlight, Reloader, ReloadResult
from service.runtime.runtime import Runtime
from service.wire import WireClient, WireError
from service.wire.interface import interface_of
from service.wire.replicas import Address
from vbon.engine.remote.server import is_remote
from vbon.errors import InvalidInputError, NotReadyError


class HostedReloads:
    """The parent's reloads, one at a time; the wire calls them for workers."""

    def __init__(self, runtime: Runtime, reloader: Reloader) -> None:
        self._runtime, self._reloader = runtime, reloader

    async def reload(
        self, model: str, in_place: bool, in_flight: InFlight, limit_s: float | None
    ) -> ReloadResult:
        """Load a model again, as :meth:`Reloader.reload`.

        Raises:
            InvalidInputError: also for a model at a URL, whose server each worker asks itself.
        """
        settings = self._runtime.settings
        paths = {**settings.policies, "reward": settings.reward, "gold": settings.gold}
        if is_remote(paths.get(model) or ""):
            raise InvalidInputError(
                f"{model} is at a URL, and each of the {settings.workers} workers asks its server itself; "
                "reload it at that server, or restart this one",
                field="model",
            )
        return await self._reloader.reload(
            model, in_place=in_place, in_flight=in_flight, limit_s=limit_s
        )


RELOADS = interface_of(HostedReloads, "reload")


class ParentsReloads:
    """Reloads that a worker lets the parent do."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def reload(
        self,
        model: str,
        *,
        in_place: bool = False,
        in_flight: InFlight = "finish",
        limit_s: float | None = None,
    ) -> ReloadResult:
        """Load a model again, as :meth:`Reloader.reload`; a client that leaves does not interrupt it.

        Raises:
            NotReadyError: the parent cannot be reached.
        """
        client = WireClient(self._address.url, RELOADS, secret=self._address.secret)
        try:
            await client.connect()
            done: ReloadResult = await client.call("reload", model, in_place, in_flight, limit_s)
        except WireError as error:
            raise NotReadyError(
                f"the parent of the workers did not reload {model}: {error}"
            ) from error
        finally:
            client.close()
        return done
