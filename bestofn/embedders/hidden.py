"""Mean-pooled hidden states of a causal language model, the policy itself for instance."""

from __future__ import annotations

from typing import Any

import numpy as np

from bestofn.checkpoints import check_checkpoint
from bestofn.embedders.protocol import Float
from bestofn.embedders.threaded import ThreadedEmbedder
from bestofn.errors import CheckpointError


class HiddenStateEmbedder(ThreadedEmbedder):
    """The mean over a text's tokens of the last layer's states, less what all texts have in common.

    Hidden states of a language model share a large common direction, which would make all cosines
    nearly 1; the mean over the texts at hand is taken out.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"hidden:{path}")
        self._path = check_checkpoint(path, "causal-lm").path
        self._model: Any = None
        self._tokenizer: Any = None

    def load(self) -> None:
        """Load weights and tokenizer, to the GPU if there is one."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._path)
            self._model = AutoModel.from_pretrained(self._path, use_safetensors=True, dtype="auto")
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot load embedder {self.name}: {error}") from error
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def compute(self, texts: list[str]) -> Float:
        """Centred means; a text without a token is a row of zeros."""
        import torch

        rows = np.zeros((len(texts), int(self._model.config.hidden_size)))
        filled = []
        with torch.inference_mode():
            for row, text in enumerate(texts):
                ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
                if ids.shape[1]:
                    states = self._model(input_ids=ids.to(self._model.device)).last_hidden_state
                    rows[row] = states[0].float().mean(dim=0).cpu().numpy()
                    filled.append(row)
        if len(filled) > 1:
            rows[filled] -= rows[filled].mean(axis=0)
        return rows
