"""Sentence embeddings from sentence-transformers, an optional package."""

from __future__ import annotations

from typing import Any

import numpy as np

from vbon.embedders.protocol import Float
from vbon.embedders.threaded import ThreadedEmbedder
from vbon.errors import CheckpointError


class SentenceEmbedder(ThreadedEmbedder):
    """Embeds texts with a ``SentenceTransformer``, given by directory or name."""

    def __init__(self, model: str) -> None:
        super().__init__(f"sentences:{model}")
        self._path = model
        self._model: Any = None

    def load(self) -> None:
        """Import sentence-transformers and load the model."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise CheckpointError(
                f"embedder {self.name} needs sentence-transformers: pip install sentence-transformers"
            ) from error
        try:
            self._model = SentenceTransformer(self._path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot load embedder {self.name}: {error}") from error

    def compute(self, texts: list[str]) -> Float:
        """The sentence embeddings, shape ``(texts, dimensions)``."""
        return np.asarray(self._model.encode(texts, show_progress_bar=False), dtype=np.float64)
