"""The replicas of a deployment, found through Ray Serve and used over the wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from service.fleet import registry
from service.wire.interface import Interface
from service.wire.replicas import Address, Replicas
from vbon.engine.affinity import Placement

logger = logging.getLogger(__name__)

# Seconds between two looks for replicas, in case that Serve has told nothing; and while one is missing.
_LOOK_S, _MISSING_S = 5.0, 0.25
_ASK_TIMEOUT_S = 5.0

State = TypeVar("State")


class FoundReplicas(Replicas[State]):
    """The replicas of a deployment, whose set follows Serve's.

    Serve starts, checks, scales and replaces them. Each tells its address once (a method ``wire``); texts and
    tokens then pass without Ray.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        owner: str,
        interface: Interface,
        *,
        capacity: int = 1,
        placement: Placement = "least-busy",
        all_per_own: Callable[[], float] = lambda: 1.0,
    ) -> None:
        super().__init__(
            owner, interface, capacity=capacity, placement=placement, all_per_own=all_per_own
        )
        self._handle = handle
        self._deployment = (handle.app_name, handle.deployment_name)
        self._looking: asyncio.Task[None] | None = None
        self._told = asyncio.Event()
        self._closed = False

    async def begin(self) -> None:
        """Begin to look for replicas."""
        loop = asyncio.get_running_loop()
        self._closed = False

        def told() -> None:
            loop.call_soon_threadsafe(self._told.set)

        self._listener = told
        registry.LISTENERS[self._deployment].append(told)
        # A context of its own: Serve takes all calls of one HTTP request for the same one.
        self._looking = asyncio.create_task(self._look(), context=Context())

    async def close(self) -> None:
        """Stop looking, and close all connections."""
        if self._looking is not None:
            registry.LISTENERS[self._deployment].remove(self._listener)
            # Ray turns a cancellation that meets one of its calls into an error of its own.
            self._closed = True
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
        await super().close()

    async def _look(self) -> None:
        while not self._closed:
            self._told.clear()
            missing = await self._ask()
            if self._closed:
                return
            try:
                async with asyncio.timeout(_MISSING_S if missing else _LOOK_S):
                    await self._told.wait()
            except TimeoutError:
                pass

    async def _ask(self) -> bool:
        """Ask all replicas for their addresses; return whether one that runs has not answered."""
        try:
            answers = await self._handle.broadcast("wire").results_async(
                timeout_s=_ASK_TIMEOUT_S, return_exceptions=True
            )
        except (RayServeException, TimeoutError):  # there are none at the moment
            answers = []
        except Exception:  # looking goes on, whatever Ray says
            logger.exception("cannot look for the replicas of %s", self.owner)
            answers = []
        found = {
            name: Address(url, secret)
            for name, url, secret in (one for one in answers if not isinstance(one, BaseException))
        }
        running = registry.RUNNING.get(self._deployment, frozenset(found))
        # One that did not answer is of use as long as its connection is.
        kept = {name: self.address_of(name) for name in self.names if name in running}
        wanted = {name: address for name, address in (kept | found).items() if name in running}
        if not self._closed and wanted != {name: self.address_of(name) for name in self.names}:
            self.set(wanted)
        return not running or running != wanted.keys()
