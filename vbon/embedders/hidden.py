"""Embeddings from the mean-pooled hidden states of a causal language model, such as the policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from vbon.embedders.protocol import Float
from vbon.embedders.threaded import ThreadedEmbedder
from vbon.errors import CheckpointError
from vbon.storage.checkpoints import check_checkpoint

# Texts per forward pass.
_BATCH = 32
# Enough random texts that their mean hardly depends on which tokens were drawn.
_RANDOM_TEXTS, _RANDOM_TOKENS = 64, 16


class HiddenStateEmbedder(ThreadedEmbedder):
    """The mean of the last layer's states over a text's tokens, minus the mean over random texts.

    The hidden states of a language model share a large common direction, which would make all cosines
    nearly 1. The mean over random texts estimates that direction. The mean over the given texts cannot be
    used instead: two texts minus their own mean are always opposites, and no text would be central.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"hidden:{path}")
        self._path = check_checkpoint(path, "causal-lm").path
        self._model: Any = None
        self._tokenizer: Any = None
        self._common: Float | float = 0.0

    def load(self) -> None:
        """Load tokenizer and weights, onto the GPU if there is one, and embed the random texts."""
        import torch
        from transformers import AutoModel, AutoTokenizer

        from vbon.linear_layers import speed_up_linear_layers

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(self._path)
            self._model = AutoModel.from_pretrained(self._path, use_safetensors=True, dtype="auto")
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"cannot load embedder {self.name}: {error}") from error
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        speed_up_linear_layers(self._model)
        tokens = np.random.default_rng(0).integers(
            len(self._tokenizer), size=(_RANDOM_TEXTS, _RANDOM_TOKENS)
        )
        texts = [self._tokenizer.decode(row, skip_special_tokens=True) for row in tokens.tolist()]
        self._common = self._means([ids for text in texts if (ids := self._ids(text))]).mean(axis=0)

    def compute(self, texts: list[str]) -> Float:
        """The mean states minus the common mean; a text without tokens gives a row of zeros."""
        rows = np.zeros((len(texts), int(self._model.config.hidden_size)))
        ids = [self._ids(text) for text in texts]
        filled = [row for row, tokens in enumerate(ids) if tokens]
        if filled:
            rows[filled] = self._means([ids[row] for row in filled]) - self._common
        return rows

    def _ids(self, text: str) -> list[int]:
        """The token ids of a text; empty if it consists of special tokens only."""
        if not self._tokenizer(text, add_special_tokens=False)["input_ids"]:
            return []
        return list(self._tokenizer(text)["input_ids"])

    def _means(self, sequences: list[list[int]]) -> Float:
        """The mean states, shape ``(sequences, hidden)``; padding after a text does not affect it."""
        import torch

        parts = []
        for start in range(0, len(sequences), _BATCH):
            batch = sequences[start : start + _BATCH]
            length = max(map(len, batch))
            ids_BT = torch.tensor([ids + [0] * (length - len(ids)) for ids in batch])
            mask_BT = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in batch])
            ids_BT, mask_BT = ids_BT.to(self._model.device), mask_BT.to(self._model.device)
            with torch.inference_mode():
                states_BTD = self._model(
                    input_ids=ids_BT, attention_mask=mask_BT
                ).last_hidden_state.float()
            sums_BD = states_BTD.masked_fill(mask_BT[..., None] == 0, 0.0).sum(dim=1)
            parts.append((sums_BD / mask_BT.sum(dim=1, keepdim=True)).cpu().double().numpy())
        return np.concatenate(parts)
