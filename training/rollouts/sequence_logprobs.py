"""Log-probabilities of given responses to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.rollouts.predictor import Predictor, logprobs_of
from training.rollouts.rollout import rollout_of

BATCH = 256


@torch.no_grad()
def sequence_logprobs(
    model: Any,
    tokenizer: Any,
    prompt_ids: list[int],
    responses: Sequence[list[int]],
    temperature: float,
) -> NDArray[np.float64]:
    """``log`` probability of each response under a model in nats, shape ``(K,)``."""
    device = next(model.parameters()).device
    parts = [np.zeros(0)]
    for start in range(0, len(responses), BATCH):
        part = responses[start : start + BATCH]
        rollout = rollout_of([prompt_ids] * len(part), part, tokenizer, device)
        logprob = logprobs_of(Predictor(model, temperature), rollout)
        parts.append(logprob.sum(1).double().cpu().numpy())
    return np.concatenate(parts)
