"""The interface of an embedder, as the service uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


class Embedder(Protocol):
    """Turns texts into vectors whose cosine measures the similarity of the texts.

    Both methods compute in another thread, never on the event loop.
    """

    name: str

    async def embed(self, texts: Sequence[str]) -> Float:
        """The vectors, shape ``(texts, dimensions)``; a text without content gives a row of zeros."""

    async def similarity(self, texts: Sequence[str]) -> Float:
        """The cosines of all pairs of vectors, shape ``(texts, texts)``; 1 on the diagonal."""
