"""What embedders that run a model share: loading at first use, one thread off the event loop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bestofn.embedders.protocol import Float


class ThreadedEmbedder(ABC):
    """Calls :meth:`compute` in a thread of its own, after :meth:`load` once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loaded = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str]) -> Float:
        """One row a text."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._embed, list(texts))

    def _embed(self, texts: list[str]) -> Float:
        if not self._loaded:
            self.load()
            self._loaded = True
        return self.compute(texts)

    @abstractmethod
    def load(self) -> None:
        """Make the model ready.

        Raises:
            CheckpointError: it cannot be used.
        """

    @abstractmethod
    def compute(self, texts: list[str]) -> Float:
        """Vectors, shape ``(texts, dimensions)``."""
