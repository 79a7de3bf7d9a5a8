"""How alike vectors are."""

from __future__ import annotations

import numpy as np

from vbon.embedders.protocol import Float


def cosine(vectors: Float) -> Float:
    """Cosines of all pairs of rows, shape ``(N, N)``; 1 with itself, 0 with a row of zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return bounded(unit @ unit.T)


def bounded(similarity: Float) -> Float:
    """Cosines with what rounding did to them undone: in [-1, 1], and 1 on the diagonal."""
    clipped: Float = np.clip(similarity, -1.0, 1.0)
    np.fill_diagonal(clipped, 1.0)
    return clipped
