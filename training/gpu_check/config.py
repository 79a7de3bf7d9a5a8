"""Settings of ``scripts/gpu-check``. Importing this imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from vbon.config import NoneWord, OptionGroups, Settings


class GpuCheckConfig(Settings):
    """Measure training on a GPU in ten minutes: speed, memory, FSDP, vLLM, and vBoN against kl-rl.

    Each step is a command of this project with a time limit of its own. results.json and results.md are
    written after each step, so an interrupted check tells what it has measured; the same command goes on
    with the steps that are left. The exit status is 0 if every step that can run here is done, or 3.

    The policy is SmolLM2-135M of --models (made by scripts/real-model). Without it, nothing is downloaded:
    speed and memory are those of a model of the same shape with random weights, and vBoN and kl-rl are
    compared on the sandbox.

    Examples:
      scripts/gpu-check
      scripts/gpu-check --models real-model --out runs/gpu-check
      scripts/gpu-check --tiny
    """

    option_groups: ClassVar[OptionGroups] = {
        "Models": ("models", "layer_class"),
        "Run": ("out", "minutes", "only", "tiny", "dry_run"),
    }

    models: Annotated[Path | None, NoneWord] = Field(
        None, description="directory of scripts/real-model, with policy, reward, gold and prompts"
    )
    layer_class: str = Field(
        "LlamaDecoderLayer", description="decoder layer of the policy, which FSDP wraps"
    )
    out: Path = Field(Path("runs/gpu-check"), description="directory of the results")
    minutes: float = Field(10.0, gt=0, description="time for all steps together")
    only: list[str] = Field(
        default=[], description="names of steps to run, with those that they need; default: all"
    )
    tiny: bool = Field(
        False, description="tiny models and a few steps, to try the check itself without a GPU"
    )
    dry_run: bool = Field(False, description="print the steps and their commands, and run nothing")
