"""Runs a model once over each distinct prompt of a rollout; its responses start from the prompt's KV cache.

Shapes: B sequences, G distinct prompts, P prompt tokens, T response tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from training.rollouts.rollout import Rollout, positions, read_prompts

# Keys and values of one layer.
LayerStates = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """The distinct prompts of a rollout, padded on the left.

    Attributes:
        prompt_B: the prompt of each sequence, as a row of the others.
    """

    ids_GP: torch.Tensor
    attention_GP: torch.Tensor
    prompt_B: torch.Tensor


@dataclass(frozen=True, slots=True)
class PromptStates:
    """A model's results for some prompts.

    Attributes:
        last_GD: the output layer's input at each prompt's last token, or the logits in its place.
        layers: keys and values of each layer; may have gradients.
    """

    last_GD: torch.Tensor
    layers: list[LayerStates]


def shared_prompts(rollout: Rollout) -> SharedPrompts | None:
    """The distinct prompts of a rollout, or ``None`` if each sequence has its own.

    Sequences of one prompt must be consecutive to share it.
    """
    width = rollout.sequence_BL.shape[1] - rollout.response_BT.shape[1]
    both = torch.cat([rollout.sequence_BL[:, :width], rollout.attention_BL[:, :width]], 1)
    distinct, prompt_B = torch.unique_consecutive(both, dim=0, return_inverse=True)
    if len(distinct) == len(both):
        return None
    return SharedPrompts(distinct[:, :width], distinct[:, width:], prompt_B)


def prompt_states(model: Any, prompts: SharedPrompts, most: int) -> PromptStates:
    """Run a model over the prompts, ``most`` of them at once."""
    parts = [
        _run(model, ids, attention)
        for ids, attention in zip(
            prompts.ids_GP.split(most), prompts.attention_GP.split(most), strict=True
        )
    ]
    if len(parts) == 1:
        return parts[0]
    layers = [
        (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
        for layer in zip(*(part.layers for part in parts), strict=True)
    ]
    return PromptStates(torch.cat([part.last_GD for part in parts]), layers)


def _run(model: Any, ids: torch.Tensor, attention: torch.Tensor) -> PromptStates:
    output = read_prompts(model, ids, attention)
    return PromptStates(output.logits[:, -1], list(_layers(output.past_key_values)))


def _layers(cache: DynamicCache) -> Iterator[LayerStates]:
    for layer in cache.layers:
        assert type(layer) is DynamicLayer
        assert layer.keys is not None
        assert layer.values is not None
        yield layer.keys, layer.values


def response_outputs(
    model: Any, rollout: Rollout, prompt_B: torch.Tensor, states: PromptStates
) -> torch.Tensor:
    """The output layer's input that predicts each response token, or the logits in its place.

    Args:
        prompt_B: the prompt of each sequence, as a row of ``states``.

    Returns:
        Shape ``(B, T, D)``.
    """
    first = states.last_GD.index_select(0, prompt_B)[:, None]
    length = rollout.response_BT.shape[1]
    if length == 1:
        return first
    width = rollout.sequence_BL.shape[1] - length
    output = model(
        input_ids=rollout.response_BT[:, :-1],
        attention_mask=rollout.attention_BL[:, :-1],
        position_ids=positions(rollout.attention_BL)[:, width:-1],
        past_key_values=_cache_of(states.layers, prompt_B),
        use_cache=True,
    )
    return torch.cat([first, output.logits], 1)


def _cache_of(layers: list[LayerStates], prompt_B: torch.Tensor) -> DynamicCache:
    cache = DynamicCache()
    for states in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(*states)
        layer.keys, layer.values = (one.index_select(0, prompt_B) for one in states)
        cache.layers.append(layer)
    return cache


_KNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def can_share_prompts(model: Any) -> bool:
    """True if a model's outputs after the KV cache of a prompt are those of the whole sequence.

    False for a model that cannot keep such a cache with gradients (gradient checkpointing, FSDP), whose cache
    is of another kind (of a sliding window, of linear attention), or that does not give the same outputs.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if isinstance(inner, FSDPModule) or not isinstance(inner, PreTrainedModel | PeftModel):
        return False
    if inner.training and inner.is_gradient_checkpointing:
        return False
    if inner not in _KNOWN:
        _KNOWN[inner] = _gives_the_same(inner)
    return _KNOWN[inner]


@torch.no_grad()
def _gives_the_same(model: Any) -> bool:
    """Compare both ways on one short sequence; a cache that is not used changes the output by far more."""
    device = next(model.parameters()).device
    ids = torch.arange(4, device=device)[None] % model.get_input_embeddings().num_embeddings
    attention = torch.ones_like(ids)
    rollout = Rollout(ids, attention, ids[:, 2:], attention[:, 2:].bool())
    begun = model(input_ids=ids[:, :2], attention_mask=attention[:, :2], use_cache=True)
    cache = begun.past_key_values
    if not isinstance(cache, DynamicCache):
        return False
    if any(type(layer) is not DynamicLayer or not layer.is_initialized for layer in cache.layers):
        return False
    states = PromptStates(begun.logits[:, -1], list(_layers(cache)))
    found = response_outputs(model, rollout, torch.zeros_like(ids[0, :1]), states)
    expected = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, 1:3]
    tolerance = 1e-3 if expected.dtype == torch.float32 else 0.02
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
