"""Defaults that depend on the size of the policy and the memory of the machine.

Below 20 million parameters, where the defaults were measured, nothing changes. Above, the values are the
starting points of public practice (docs/scale.md names the sources). A setting that was given is kept.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from training.configs import TrainConfig
from training.objectives.protocol import Objective
from training.rollouts.batch_size import SMALL
from training.rollouts.token_terms import chunk_bytes
from vbon.storage.model_shape import ModelShape
from vbon.storage.training_record import IMITATION

logger = logging.getLogger(__name__)

LARGE = 1_000_000_000  # parameters
LORA_RANK = 16
MAX_KL = 20.0
# A LoRA takes about ten times the learning rate of full weights.
LORA_FACTOR = 10.0
LARGEST_MICRO_BATCH = 256


@dataclass(frozen=True, slots=True)
class SizedValue:
    """A default that was chosen by size.

    Attributes:
        reason: the rest of a sentence that begins with the value and "because".
    """

    name: str
    value: Any
    reason: str


def with_size_defaults(
    name: str,
    config: TrainConfig,
    objective: Objective,
    shape: ModelShape,
    memory: int,
    *,
    kept: frozenset[str] = frozenset(),
) -> TrainConfig:
    """The settings with the defaults that suit the policy's size, which are logged.

    Args:
        name: the objective's name.
        memory: in bytes (:func:`training.rollouts.batch_size.machine_memory`).
        kept: settings that stay as they are although they were not given.
    """
    if shape.parameters < SMALL:
        return config
    chosen = list(size_defaults(name, config, objective, shape, memory, kept))
    title = f"policy of {_millions(shape.parameters)} parameters, {memory / 1e9:.0f} GB of memory"
    for one in chosen:
        flag = f"--{one.name.replace('_', '-')}"
        value = f"{one.value:.3g}" if isinstance(one.value, float) else one.value
        logger.info("%s: %s %s, because %s", title, flag, value, one.reason)
    return config.model_copy(update={one.name: one.value for one in chosen})


def size_defaults(
    name: str,
    config: TrainConfig,
    objective: Objective,
    shape: ModelShape,
    memory: int,
    kept: frozenset[str] = frozenset(),
) -> Iterator[SizedValue]:
    """The defaults for a policy of 20 million parameters or more; settings that were given have none."""
    given, large = config.model_fields_set | kept, shape.parameters >= LARGE
    if _under_fsdp():
        given |= {"lora_rank"}  # a LoRA cannot be merged from shards
    rank = config.lora_rank
    if "lora_rank" not in given:
        rank = LORA_RANK
        yield SizedValue(
            "lora_rank", rank, "all other weights stay frozen, and need no gradients or optimizer"
        )
    factor = 1.0 if rank is None else LORA_FACTOR
    kind = "full weights" if rank is None else "a LoRA"
    imitating, on_policy = (1e-5, 1e-6) if large else (2e-5, 1e-5)
    if "warm_start_learning_rate" not in given and config.warm_start_steps:
        yield SizedValue(
            "warm_start_learning_rate", imitating * factor, f"it suits {kind} of this size"
        )
    if config.learning_rate is None:
        ceiling = imitating if name == IMITATION else on_policy
        # The objective's own rate, found with all weights of a small policy, is lower for a large N.
        rate = factor * min(ceiling, objective.peak_learning_rate())
        yield SizedValue("learning_rate", rate, f"it suits {kind} of this size")
    if "max_kl" not in given:
        yield SizedValue("max_kl", MAX_KL, "best-of-N is only a few nats from the reference")
    half, reason = config.frozen_dtype == "bfloat16", ""
    if "frozen_dtype" not in given:
        if _resident(shape, rank, 4) > memory / 2:
            reason = "float32 would take more than half of the memory"
        elif large and torch.cuda.is_available():
            reason = "it halves them, and a GPU computes with it"
        if reason:
            half = True
            yield SizedValue("frozen_dtype", "bfloat16", reason)
            if "dtype" not in given:
                yield SizedValue("dtype", "bfloat16", "the frozen weights have this type")
    checkpointing = config.gradient_checkpointing
    if large and "gradient_checkpointing" not in given:
        checkpointing = True
        yield SizedValue("gradient_checkpointing", True, "activations would take most memory")
    if "micro_batch_size" not in given:
        free = memory * (1 - _share_of_vllm(config)) - _resident(shape, rank, 2 if half else 4)
        free -= _bytes_of_chunk(shape)
        each = _bytes_per_sequence(shape, config.max_new_tokens, half, checkpointing)
        yield SizedValue(
            "micro_batch_size",
            _micro_batch(free / 2, each, config.samples_per_prompt),
            f"a sequence takes about {each / 1e6:.0f} MB, and half of the free {max(free, 0) / 1e9:.1f} GB "
            "may be used",
        )


def expected_bytes(shape: ModelShape, config: TrainConfig) -> float:
    """Bytes that a training takes by the arithmetic of docs/scale.md, without reward model and vLLM."""
    half = config.frozen_dtype == "bfloat16"
    each = _bytes_per_sequence(
        shape, config.max_new_tokens, config.dtype == "bfloat16", config.gradient_checkpointing
    )
    resident = _resident(shape, config.lora_rank, 2 if half else 4)
    return resident + _bytes_of_chunk(shape) + config.micro_batch_size * each


def _resident(shape: ModelShape, rank: int | None, frozen_bytes: int) -> float:
    """Bytes of the reference and the policy with its gradients and optimizer (docs/scale.md).

    A LoRA's base is the reference itself.
    """
    policy = 16 if rank is None else 0
    return float(shape.parameters * (policy + frozen_bytes))


def _bytes_of_chunk(shape: ModelShape) -> int:
    """Bytes of the distributions that exist at once, whatever the number of sequences."""
    return chunk_bytes(shape.vocabulary, "cuda" if torch.cuda.is_available() else "cpu")


def _under_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _bytes_per_sequence(
    shape: ModelShape, max_new_tokens: int, half: bool, checkpointing: bool
) -> float:
    """Activations of one sequence (docs/scale.md); its prompt is taken to be as long again.

    Its logits count where the model has to make them all at once (:func:`output_layer`).
    """
    whole = shape.processed_logits or _under_fsdp()
    logits = 5 * 4 * max_new_tokens * shape.vocabulary if whole else 0
    tokens_width = 2 * max_new_tokens * shape.width * (1 if half else 2)
    layers = 2 * shape.layers + 34 if checkpointing else 34 * shape.layers
    return float(logits + tokens_width * layers)


def _micro_batch(free: float, each: float, samples_per_prompt: int) -> int:
    """The largest power of two that fits; a micro-batch has at least one prompt's samples."""
    size = LARGEST_MICRO_BATCH
    while size > 2 and size * each > free:
        size //= 2
    return max(size, samples_per_prompt, 2)


def _share_of_vllm(config: TrainConfig) -> float:
    uses_gpu = config.generation == "vllm" and torch.cuda.is_available()
    return config.generation_gpu_memory if uses_gpu else 0.0


def _millions(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= LARGE else f"{parameters / 1e6:.0f} M"
