"""Cosine similarity."""

from __future__ import annotations

import numpy as np

from vbon.embedders.protocol import Float


def cosine(vectors: Float) -> Float:
    """The cosines of all pairs of rows, shape ``(N, N)``: 1 on the diagonal, 0 with a row of zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return bounded(unit @ unit.T)


def bounded(similarity: Float) -> Float:
    """The cosines corrected for rounding: clipped to [-1, 1], with a diagonal of exactly 1."""
    clipped: Float = np.clip(similarity, -1.0, 1.0)
    np.fill_diagonal(clipped, 1.0)
    return clipped
