"""What anything that says how alike texts are looks like to the service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


class Embedder(Protocol):
    """Turns texts into vectors whose cosine says how alike the texts are."""

    name: str

    async def embed(self, texts: Sequence[str]) -> Float:
        """One row a text, shape ``(texts, dimensions)``; a text without content is all zeros."""

    async def similarity(self, texts: Sequence[str]) -> Float:
        """The cosines of all pairs of those rows, shape ``(texts, texts)``; 1 with itself.

        Neither this nor :meth:`embed` computes on the event loop.
        """
