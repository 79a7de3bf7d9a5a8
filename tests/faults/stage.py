"""Where faults happen: the sandbox, a folder, and a service that those share which it survives."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from tests.faults.service import Service, serving

RECEIVE_TIMEOUT_S = 5.0
# What is slow or hangs is found sooner than by default, or faults of that kind would take minutes.
SHARED_FLAGS = (
    "--engine.stall-timeout-s", "10", "--reward-stall-timeout-s", "10",
    "--limits.receive-timeout-s", f"{RECEIVE_TIMEOUT_S:g}",
)  # fmt: skip


class Stage:
    """What a fault is given.

    Attributes:
        sandbox: tiny models: ``policy``, ``vbon``, ``reward``, ``gold``, ``prompts``, ``cache.jsonl``.
        scratch: a folder for files of its own.
        size: 1 in full, less in CI.
    """

    def __init__(self, sandbox: Path, scratch: Path, size: float) -> None:
        self.sandbox, self.scratch, self.size = sandbox, scratch, size
        self._shared: Service | None = None
        self._stack = AsyncExitStack()

    def count(self, in_full: int, least: int = 1) -> int:
        """So many at this size."""
        return max(least, round(in_full * self.size))

    async def service(self) -> Service:
        """The shared one: for faults after which it must be as good as before."""
        if self._shared is None or self._shared.process.poll() is not None:
            self._shared = await self._stack.enter_async_context(
                serving(self.sandbox, self.scratch, *SHARED_FLAGS)
            )
        await self._shared.until_ready()
        return self._shared

    async def close(self) -> None:
        """Stop the shared service."""
        await self._stack.aclose()
