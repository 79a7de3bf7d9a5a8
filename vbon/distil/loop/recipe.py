"""Training settings of a round, where the user gives none (measured in docs/log.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# From the last checkpoint, so many steps reach what takes the default of 300 from the reference policy.
STEPS_FROM_LAST = 100
# `vbon train` takes this rank for larger policies, too.
LORA_RANK = 16
# Objectives that imitate a best of N need N samples of every prompt; vBoN learns from half as many.
_FEWER_SAMPLES = {"vbon"}


def training_settings(
    objective: str, given: Mapping[str, Any], *, goes_on: bool, lora_rank: int | None = None
) -> dict[str, Any]:
    """The recipe of an objective with the settings that the user gives.

    Args:
        goes_on: whether training begins with an earlier checkpoint, of which no adapter can be made.
        lora_rank: highest rank of the adapters that the service serves, if it does.
    """
    recipe = {"steps": STEPS_FROM_LAST} if objective == "vbon" and goes_on else {}
    if lora_rank is not None and not goes_on:
        recipe["lora_rank"] = min(LORA_RANK, lora_rank)
    return {**recipe, **given}


def least_samples(objective: str, num_samples: int) -> int:
    """The number of samples that a prompt needs to be trained on.

    Args:
        num_samples: N of best-of-N.
    """
    return max(2, num_samples // 2) if objective in _FEWER_SAMPLES else num_samples
