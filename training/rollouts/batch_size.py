"""The memory of this machine, and the number of sequences to sample and measure at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vbon.storage.model_shape import ModelShape, shape_of

# Above this number of parameters, batches depend on the model and the machine.
SMALL = 20_000_000
# Operations of a batch: about 20 s of one CPU core and 2 s of a GPU, so that progress is seen.
CPU_WORK, GPU_WORK = 2.5e12, 5e14


def machine_memory() -> int:
    """Bytes of memory that training can use: of one GPU, or of this machine or container."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(installed, int((Path("/sys/fs/cgroup") / limit).read_text()))
        except (OSError, ValueError):
            continue
    return installed


def measuring_batch(model: Any, max_new_tokens: int, largest: int) -> int:
    """The number of sequences to sample and measure at once with a loaded model on this machine.

    It changes no sample: each has its own random numbers.
    """
    shape = shape_of(model.config.to_dict(), model.num_parameters())
    bytes_each = next(model.parameters()).element_size()
    return batch_of(shape, bytes_each, max_new_tokens, machine_memory(), largest)


def batch_of(
    shape: ModelShape, bytes_each: int, max_new_tokens: int, memory: int, largest: int
) -> int:
    """The largest power of two, at most ``largest``, that fits the memory and takes seconds.

    A batch is sampled, and then read by policy and reference: six operations for each parameter and token.
    Its KV cache, with prompts as long as the responses, and its distributions may take half of the memory
    that both models leave.

    Args:
        bytes_each: of one weight.
        memory: in bytes.
        largest: kept for a model of less than 20 million parameters.
    """
    if shape.parameters < SMALL:
        return largest
    cache = 2 * shape.layers * shape.width * bytes_each * 2 * max_new_tokens
    distribution = 20 * shape.vocabulary  # logits, log q and q in float32, the cdf in float64
    room = (memory - 2 * bytes_each * shape.parameters) / 2
    work = GPU_WORK if torch.cuda.is_available() else CPU_WORK
    size = 1
    while (
        2 * size <= largest
        and 2 * size * (cache + distribution) <= room
        and 2 * size * 6 * shape.parameters * max_new_tokens <= work
    ):
        size *= 2
    return size
