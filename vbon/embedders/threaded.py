"""What all embedders share: loading at first use, one thread off the event loop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from vbon.embedders.cosine import cosine
from vbon.embedders.protocol import Float


class ThreadedEmbedder(ABC):
    """Calls :meth:`compute` and :meth:`compare` in a thread of its own, after :meth:`load` once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loaded = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str]) -> Float:
        """One row a text."""
        return await self._off_loop(self.compute, texts)

    async def similarity(self, texts: Sequence[str]) -> Float:
        """Cosines of all pairs."""
        return await self._off_loop(self.compare, texts)

    async def _off_loop(self, work: Callable[[list[str]], Float], texts: Sequence[str]) -> Float:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._loaded_first, work, list(texts))

    def _loaded_first(self, work: Callable[[list[str]], Float], texts: list[str]) -> Float:
        if not self._loaded:
            self.load()
            self._loaded = True
        return work(texts)

    @abstractmethod
    def load(self) -> None:
        """Make the model ready.

        Raises:
            CheckpointError: it cannot be used.
        """

    @abstractmethod
    def compute(self, texts: list[str]) -> Float:
        """Vectors, shape ``(texts, dimensions)``."""

    def compare(self, texts: list[str]) -> Float:
        """Their cosines, shape ``(texts, texts)``."""
        return cosine(self.compute(texts))
