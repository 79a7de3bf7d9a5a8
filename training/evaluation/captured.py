"""Captured nats of a policy, on cached or fresh samples of the reference policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from training.cache.reward_cache import RewardCache
from training.evaluation.measure import Float, PromptSamples
from training.rollouts.sequence_logprobs import sequence_logprobs
from vbon.errors import DataError
from vbon.maths.captured_nats import captured_interval, captured_nats
from vbon.maths.curves import selection_weights
from vbon.maths.distribution import kl_upper_bound
from vbon.progress_bar import ProgressBar
from vbon.prompts import Prompt
from vbon.storage.evaluation_record import CapturedNats

Kind = Literal["cache", "fresh", "heldout"]


@dataclass(frozen=True, slots=True)
class ReferenceSamples:
    """The scored samples that the reference policy gave to one prompt.

    Attributes:
        rewards: shape ``(M,)``.
        responses: the token ids of each sample.
        ref_logprob: ``log p`` in nats, shape ``(M,)``; NaN for samples that cannot be the best of N.
    """

    prompt_ids: list[int]
    rewards: Float
    responses: list[list[int]]
    ref_logprob: Float


ReferenceSets = Mapping[Kind, Sequence[ReferenceSamples]]


def samples_of_cache(
    cache: RewardCache,
    reference: Any,
    tokenizer: Any,
    *,
    num_samples: int,
    temperature: float,
    prompts: int,
    samples: int,
) -> list[ReferenceSamples]:
    """The first samples of the first prompts of a reward cache, with ``log p`` where it is needed.

    Args:
        num_samples: the N of best-of-N.
        prompts: number of prompts, at most.
        samples: samples of each prompt, at most.
    """
    found = []
    for row in range(min(prompts, len(cache))):
        rewards = cache.rewards(row)[:samples]
        responses, prompt_ids = cache.responses(row)[:samples], cache.prompt_ids(row)
        stored = cache.ref_logprob(row)
        if stored is None:
            logprob = _where_best(
                reference, tokenizer, prompt_ids, rewards, responses, num_samples, temperature
            )
        else:
            logprob = stored[:samples].astype(np.float64)
        found.append(ReferenceSamples(prompt_ids, rewards, responses, logprob))
    return found


def samples_of_measurement(
    prompts: Sequence[tuple[Prompt, list[int]]], measured: Sequence[PromptSamples]
) -> list[ReferenceSamples]:
    """The samples of a measurement of the reference policy, in the order of its prompts."""
    return [
        ReferenceSamples(
            ids, found.rewards, [one.tolist() for one in found.responses], found.ref_logprob
        )
        for (_, ids), found in zip(prompts, measured, strict=True)
    ]


def check_enough_samples(sets: ReferenceSets, num_samples: int) -> None:
    """Check that best-of-N can be formed from the samples of every prompt.

    Raises:
        DataError: a prompt has fewer than N samples.
    """
    for kind, samples in sets.items():
        fewest = min(len(one.rewards) for one in samples)
        if fewest < num_samples:
            raise DataError(
                f"captured nats of best-of-{num_samples} need {num_samples} scored samples of every prompt, "
                f"and some prompt of the {kind} samples has {fewest}; lower --num-samples, or take more"
            )


def measure_captured_nats(
    policy: Any, tokenizer: Any, sets: ReferenceSets, *, num_samples: int, temperature: float
) -> CapturedNats:
    """Measure a policy's captured nats on every set of reference samples."""
    by_kind: dict[Kind, Float] = {}
    total = sum(len(samples) for samples in sets.values())
    with ProgressBar("captured nats", total) as progress:
        for kind, samples in sets.items():
            nats = []
            for one in samples:
                logprob = _where_best(
                    policy,
                    tokenizer,
                    one.prompt_ids,
                    one.rewards,
                    one.responses,
                    num_samples,
                    temperature,
                )
                nats.append(captured_nats(one.rewards, logprob - one.ref_logprob, num_samples))
                progress.advance()
            by_kind[kind] = np.array(nats)
    memorised = None
    if "cache" in by_kind and "fresh" in by_kind:
        memorised = captured_interval(by_kind["cache"] - by_kind["fresh"])
    return CapturedNats(
        n=num_samples,
        most=kl_upper_bound(num_samples),
        memorised=memorised,
        **{kind: captured_interval(nats) for kind, nats in by_kind.items()},
    )


def _where_best(
    model: Any,
    tokenizer: Any,
    prompt_ids: list[int],
    rewards: Float,
    responses: Sequence[list[int]],
    num_samples: int,
    temperature: float,
) -> Float:
    """Log-probabilities of the samples that can be the best of N, NaN for the others, shape ``(M,)``."""
    logprob = np.full(len(rewards), np.nan)
    if len(rewards) < num_samples:
        return logprob
    picked = np.flatnonzero(selection_weights(rewards, num_samples))
    chosen = [responses[index] for index in picked]
    logprob[picked] = sequence_logprobs(model, tokenizer, prompt_ids, chosen, temperature)
    return logprob
