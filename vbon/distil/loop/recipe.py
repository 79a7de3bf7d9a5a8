"""Training settings of a round, where the user gives none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings of `vbon train` for caches of many prompts with N samples each.
DEFAULTS: dict[str, dict[str, Any]] = {
    "vbon": {"steps": 200, "prompts_per_step": 8, "samples_per_prompt": 8},
}


def training_settings(objective: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of an objective with the settings that the user gives."""
    return {**DEFAULTS.get(objective, {}), **given}
