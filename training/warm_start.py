"""The warm start: imitates best-of-N on the reference samples that are already in the cache.

Minimises the forward KL(p_bon || q) = E_{p_bon}[-log q] + const, the forward part of BOND's Jeffreys
divergence (arXiv 2407.14622), with the cached samples of p weighted by how often each is the best of
N over all subsets (they are unbiased estimates of p_bon/p, mean 1). It draws nothing new, and leaves
the policy near best-of-N along an efficient path: policy gradients from the reference reach the same
win rate at a much higher KL (docs/log.md). The reverse KL of vBoN takes over from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bestofn.curves import selection_weights
from bestofn.errors import DataError
from training.cache import CachedSamples
from training.rollout import CHUNK

# Samples that best-of-N returns less than a tenth as often as the policy draws them are dropped:
# two thirds of the cache, 0.4% of its weight at N = 16.
SMALLEST_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Example:
    """One cached sample worth imitating.

    Attributes:
        ids: prompt and response.
        response_tokens: how many of ``ids`` are response, EOS included.
        weight: p_bon/p.
    """

    ids: list[int]
    response_tokens: int
    weight: float


def weighted_examples(
    samples: Iterable[CachedSamples],
    prompt_ids: dict[str, list[int]],
    tokenizer: Any,
    num_samples: int,
    max_new_tokens: int,
) -> list[Example]:
    """Cached samples with their best-of-N weights.

    Responses are encoded anew, which is the tokenizer's spelling of them and not always the sampled
    one. Where the cache does not say whether a response was cut off, one of full length is taken to
    have been.

    Raises:
        DataError: if a prompt has fewer samples than N.
    """
    examples: list[Example] = []
    for cached in samples:
        total = len(cached.rewards)
        if total < num_samples:
            raise DataError(
                f"prompt {cached.prompt[:80]!r} has {total} cached samples, fewer than N = "
                f"{num_samples}; sample more, or --warm-start-epochs 0"
            )
        weights = selection_weights(cached.rewards, num_samples) * total
        for index in np.flatnonzero(weights >= SMALLEST_WEIGHT):
            text = cached.responses[index]
            response = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            if cached.truncated is None:
                cut = len(response) >= max_new_tokens
            else:
                cut = cached.truncated[index]
            response = response[:max_new_tokens] if cut else [*response, tokenizer.eos_token_id]
            if response:
                ids = prompt_ids[cached.prompt] + response
                examples.append(Example(ids, len(response), float(weights[index])))
    return examples


def imitation_loss(policy: Any, examples: Sequence[Example], temperature: float) -> torch.Tensor:
    """``sum w (-log q(y)) / sum w`` over the examples, by chunks of like length, with gradient."""
    device = next(policy.parameters()).device
    total = torch.zeros((), device=device)
    ordered = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(ordered), CHUNK):
        chunk = ordered[start : start + CHUNK]
        width = max(len(example.ids) for example in chunk)
        ids = torch.zeros((len(chunk), width), dtype=torch.long)
        attention = torch.zeros((len(chunk), width), dtype=torch.long)
        weight = torch.zeros((len(chunk), width))
        for row, example in enumerate(chunk):
            length = len(example.ids)
            ids[row, :length] = torch.tensor(example.ids)
            attention[row, :length] = 1
            weight[row, length - example.response_tokens : length] = example.weight
        ids, attention, weight = ids.to(device), attention.to(device), weight.to(device)
        logits = policy(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        log_q = torch.log_softmax(logits.float() / temperature, dim=-1)
        token_log_q = log_q.gather(-1, ids[:, 1:, None])[..., 0]
        total = total - (token_log_q * weight[:, 1:]).sum()
    return total / sum(example.weight for example in examples)
