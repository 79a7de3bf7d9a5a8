"""Computes ``log p`` of every cached sample under the reference policy, once per cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.cache.reward_cache import RewardCache
from training.rollouts.sequence_logprobs import sequence_logprobs
from vbon.progress_bar import ProgressBar


def ensure_reference_logprobs(
    cache: RewardCache, reference: Any, tokenizer: Any, *, revision: str, temperature: float
) -> None:
    """Make ``cache.ref_logprob`` available: load stored values, or compute and store them.

    The values are in nats, at the temperature that the samples were drawn with. Concurrent runs wait for
    the one that computes them.

    Args:
        revision: the reference's; values are stored per revision, dtype and temperature.
    """
    dtype = str(next(reference.parameters()).dtype).removeprefix("torch.")
    key = f"{revision.replace(':', '-')}-{dtype}-T{temperature:g}"
    with cache.exclusive():
        if cache.load_ref_logprob(key):
            return
        cache.store_ref_logprob(_logprobs_by_row(cache, reference, tokenizer, temperature), key)


def _logprobs_by_row(
    cache: RewardCache, reference: Any, tokenizer: Any, temperature: float
) -> Iterator[NDArray[np.float64]]:
    """``log p`` of each row's samples, shape ``(M,)``, in the order of the rows."""
    with ProgressBar("log p of the cached samples", len(cache)) as progress:
        for row in range(len(cache)):
            prompt, responses = cache.prompt_ids(row), cache.responses(row)
            found = sequence_logprobs(reference, tokenizer, prompt, responses, temperature)
            progress.advance()
            yield found
