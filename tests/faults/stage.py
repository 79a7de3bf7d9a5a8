"""The stage of a fault: the sandbox, a folder, and services that faults share."""

from __future__ import annotations

import shutil
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from service.auth.keys import new_key, write_keys
from tests.faults.service import Service, Start, serving, start_command

RECEIVE_TIMEOUT_S = 5.0
DRAIN_S = 4.0
# A part that hangs is found sooner than by default, or faults of that kind would take minutes.
SHARED_FLAGS = (
    *("--engine.stall-timeout-s", "10"),
    *("--reward-stall-timeout-s", "10"),
    *("--limits.receive-timeout-s", f"{RECEIVE_TIMEOUT_S:g}"),
)


class Stage:
    """The sandbox, a folder and the shared services, given to every fault.

    Attributes:
        sandbox: tiny models: ``policy``, ``vbon``, ``reward``, ``gold``, ``prompts``, ``cache.jsonl``.
        scratch: a folder for files of its own.
        served: the checkpoint that the second service serves as ``vbon``, to be changed.
        size: 1 in full, less in CI.

    Args:
        start: starts the process of a service.
    """

    def __init__(
        self, sandbox: Path, scratch: Path, size: float, start: Start = start_command
    ) -> None:
        self.sandbox, self.scratch, self.size = sandbox, scratch, size
        self._start = start
        self.served = scratch / "served-vbon"
        self._shared: Service | None = None
        self._second: Service | None = None
        self._stack = AsyncExitStack()

    def count(self, in_full: int, least: int = 1) -> int:
        """A number of requests or the like at this size."""
        return max(least, round(in_full * self.size))

    def serving(self, *flags: str, **options: Any) -> AbstractAsyncContextManager[Service]:
        """Another service, of a fault's own; see :func:`tests.faults.service.serving`."""
        return serving(self.sandbox, self.scratch, *flags, start=self._start, **options)

    async def service(self) -> Service:
        """The shared service, ready. It is started anew where a fault has ended it."""
        if self._shared is None or self._shared.process.poll() is not None:
            self._shared = await self._stack.enter_async_context(self.serving(*SHARED_FLAGS))
        await self._shared.until_ready()
        return self._shared

    async def second_service(self) -> Service:
        """A second service, ready, for faults that need an administrator or a low limit.

        It serves a copy of ``vbon``, decodes at most 16 sequences at once and takes 4 s to shut down. Its
        client has the key of an administrator. It is started anew where a fault has ended it.
        """
        if self._second is None or self._second.process.poll() is not None:
            keys = self.scratch / "keys.jsonl"
            # A fault may have damaged it, and another have ended the service, which would not start on it.
            shutil.rmtree(self.served, ignore_errors=True)
            shutil.copytree(self.sandbox / "vbon", self.served)
            key, token = new_key("root", "admin")
            write_keys(keys, [key])
            flags = (
                *("--policies", f"vbon={self.served}"),
                *("--auth.keys-file", str(keys)),
                *("--limits.drain-s", f"{DRAIN_S:g}"),
                *("--limits.running-sequences", "16"),
            )
            self._second = await self._stack.enter_async_context(self.serving(*flags, token=token))
        await self._second.until_ready()
        return self._second

    async def close(self) -> None:
        """Stop the services."""
        await self._stack.aclose()
