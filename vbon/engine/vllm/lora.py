"""Ranks of LoRA adapters, and the rank limit that vLLM must be started with to serve them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vbon.errors import CheckpointError
from vbon.storage.json_files import read_json_file

# The values that vLLM accepts for `max_lora_rank`. It pads adapters of lower rank.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# A limit of 8 costs no more than one of 1, and leaves room for a reload.
_LEAST_LIMIT = 8


def adapter_rank(path: str) -> int:
    """The largest rank in an adapter: ``r``, or that of a module in ``rank_pattern``.

    Raises:
        CheckpointError: the adapter is not a LoRA, states no valid rank, or has one that vLLM cannot serve.
    """
    config = _adapter_config(path)
    kind = str(config.get("peft_type", "LORA")).upper()
    if kind != "LORA":
        raise CheckpointError(
            f"{path} is an adapter of type {kind}; only LoRA adapters can be served. Merge it into its base "
            "model and serve that"
        )
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise CheckpointError(
                f"the adapter_config.json of adapter {path} states the rank {rank!r}; r and the values of "
                "rank_pattern must be whole numbers from 1 on"
            )
    largest = max(ranks)
    if largest > LORA_RANKS[-1]:
        raise CheckpointError(
            f"adapter {path} has rank {largest}, and vLLM serves at most {LORA_RANKS[-1]}; merge it into its "
            "base model and serve that"
        )
    return int(largest)


def lora_rank_limit(ranks: Mapping[str, int]) -> int:
    """The smallest limit that vLLM accepts and that admits all adapters; ``ranks`` are by path."""
    largest = max([_LEAST_LIMIT, *ranks.values()])
    return next(limit for limit in LORA_RANKS if limit >= largest)


def _adapter_config(path: str) -> dict[str, Any]:
    file = Path(path) / "adapter_config.json"
    try:
        found: dict[str, Any] = read_json_file(file)
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be used: {error}") from error
    return found
