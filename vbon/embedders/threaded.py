"""The base class of all embedders: loads the model at first use, and computes in a thread of its own."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from vbon.embedders.cosine import cosine
from vbon.embedders.protocol import Float


class ThreadedEmbedder(ABC):
    """Runs :meth:`compute` and :meth:`compare` in one thread of its own, after calling :meth:`load` once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loaded = False
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedder")

    async def embed(self, texts: Sequence[str]) -> Float:
        """The vectors of the texts, one row each."""
        return await self._in_thread(self.compute, texts)

    async def similarity(self, texts: Sequence[str]) -> Float:
        """The cosines of all pairs of texts."""
        return await self._in_thread(self.compare, texts)

    async def _in_thread(self, work: Callable[[list[str]], Float], texts: Sequence[str]) -> Float:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._load_and_run, work, list(texts))

    def _load_and_run(self, work: Callable[[list[str]], Float], texts: list[str]) -> Float:
        if not self._loaded:
            self.load()
            self._loaded = True
        return work(texts)

    @abstractmethod
    def load(self) -> None:
        """Load the model.

        Raises:
            CheckpointError: the model cannot be used.
        """

    @abstractmethod
    def compute(self, texts: list[str]) -> Float:
        """The vectors of the texts, shape ``(texts, dimensions)``."""

    def compare(self, texts: list[str]) -> Float:
        """The cosines of all pairs of texts, shape ``(texts, texts)``."""
        return cosine(self.compute(texts))
