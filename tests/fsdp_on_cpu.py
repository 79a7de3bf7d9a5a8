"""Runs ``python -m training`` under FSDP2 on CPUs, with gloo, as ``accelerate launch`` does on GPUs.

    python -m torch.distributed.run --standalone --nproc-per-node N -m tests.fsdp_on_cpu OBJECTIVE ...

accelerate switches FSDP on for GPUs alone, so this does it where accelerate would. Its settings are those of
docs/accelerate-fsdp.yaml, except for the number type, which ``ACCELERATE_MIXED_PRECISION`` chooses.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import yaml

RECIPE = Path(__file__).resolve().parents[1] / "docs" / "accelerate-fsdp.yaml"
# The variable of accelerate that has another name than its setting in the file.
LAYER_CLASS = "FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP"


def set_environment() -> None:
    """Set what ``accelerate launch --config_file docs/accelerate-fsdp.yaml`` sets."""
    os.environ.update(ACCELERATE_USE_CPU="true", ACCELERATE_USE_FSDP="true")
    os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "no")
    settings = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["fsdp_config"]
    os.environ.update({key.upper(): str(value) for key, value in settings.items()})
    os.environ["FSDP_TRANSFORMER_CLS_TO_WRAP"] = os.environ.pop(LAYER_CLASS)


def allow_fsdp_on_cpu() -> None:
    """Let accelerate's state become one of FSDP on a CPU, as it does by itself on a GPU."""
    from accelerate import DistributedType
    from accelerate.state import AcceleratorState, PartialState

    original = AcceleratorState.__init__

    def initialise(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is None or self.distributed_type == DistributedType.FSDP:
            return
        if self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = DistributedType.FSDP
        # Every later AcceleratorState() takes the type from here; accelerate sets it here too.
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = initialise  # type: ignore[method-assign]


def allow_cached_samples() -> None:
    """Let objectives that draw no samples in a step train in several processes without vLLM.

    They are refused like the others, because the KL is measured on samples. But these have the same prompts
    and seeds in every process, so all processes sample equally many tokens.
    """
    from training.train.trainer import Trainer

    check = Trainer._check

    def checked(self: Trainer) -> None:
        if self._objective.samples_needed.policy:
            check(self)

    Trainer._check = checked  # type: ignore[method-assign]


if __name__ == "__main__":
    set_environment()
    allow_fsdp_on_cpu()
    allow_cached_samples()
    runpy.run_module("training", run_name="__main__", alter_sys=True)
