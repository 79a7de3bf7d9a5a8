"""A KV cache for sampling that writes new tokens in place.

The cache of transformers copies all keys and values for each token, and once more whenever a sequence ends.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

# Tokens that there is room for after each copy. Room for the longest possible response would take a GPU's
# memory for tokens that most responses never have.
BLOCK = 64


def growing_cache(prompts: Cache, num_samples: int) -> Cache:
    """A cache for ``num_samples`` responses to each prompt.

    Args:
        prompts: the model's own cache of the prompts; its kinds of layers that cannot be written in place (of
            a sliding window, of linear attention) are kept.
    """
    for layer in prompts.layers:
        if type(layer) is not DynamicLayer:
            prompts.batch_repeat_interleave(num_samples)
            return prompts
    grown = DynamicCache()
    grown.layers = [_GrowingLayer(layer, num_samples) for layer in prompts.layers]
    return grown


class _GrowingLayer(DynamicLayer):
    """Keys and values of one layer, in memory with room for more tokens."""

    def __init__(self, prompts: DynamicLayer, num_samples: int) -> None:
        super().__init__()
        assert prompts.keys is not None
        assert prompts.values is not None
        self.lazy_initialization(prompts.keys, prompts.values)
        self._stored = [
            _with_room(states, num_samples) for states in (prompts.keys, prompts.values)
        ]
        rows, _, self._length, _ = prompts.keys.shape
        self._show(rows * num_samples)

    def _show(self, rows: int) -> None:
        self.keys, self.values = (states[:rows, :, : self._length] for states in self._stored)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens; returns all keys and values."""
        assert self.keys is not None
        assert self.values is not None
        rows, _, tokens, _ = key_states.shape
        end = self._length + tokens
        if end > self._stored[0].shape[2]:
            self._stored = [_with_room(states, 1, tokens) for states in (self.keys, self.values)]
        for stored, states in zip(self._stored, (key_states, value_states), strict=True):
            stored[:rows, :, self._length : end] = states
        self._length = end
        self._show(rows)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some sequences: the first ``len(indices)``, of which some are replaced by later ones.

        Args:
            indices: where each kept sequence is now; every index is its own place, or lies beyond all of
                them (:func:`without_holes`).
        """
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        for states in self._stored:
            states[moved, :, : self._length] = states[indices[moved], :, : self._length]
        self._show(len(indices))


def _with_room(states: torch.Tensor, repeats: int, tokens: int = 1) -> torch.Tensor:
    """A copy of keys or values in memory with room for more tokens, each sequence ``repeats`` times."""
    rows, heads, length, width = states.shape
    room = length + max(BLOCK, tokens)
    stored = states.new_empty((rows, repeats, heads, room, width))
    stored[:, :, :, :length] = states[:, None]
    return stored.flatten(0, 1)


def without_holes(kept: torch.Tensor) -> torch.Tensor:
    """The sequences to keep, so ordered that as few as possible change their place.

    Args:
        kept: True for each sequence to keep, shape ``(B,)``.

    Returns:
        For each of the K places, the index of its sequence: its own, or one from K on.
    """
    places = kept.nonzero()[:, 0]
    order = torch.arange(len(places), device=kept.device)
    order[~kept[: len(places)]] = places[places >= len(places)]
    return order
