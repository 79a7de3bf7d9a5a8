"""What a checkpoint's own record says of how it was made: ``training.json`` beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from vbon.maths.intervals import MeanInterval

RECORD = "training.json"
# A LoRA is exported merged, and beside it as it is, for serving on the reference engine.
ADAPTER = "adapter"


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Heldout(_Read):
    """Held-out figures, measured when the training ended."""

    reward: MeanInterval
    win_rate: MeanInterval = Field(description="against one sample of the reference, ties 1/2")
    kl_nats: MeanInterval = Field(description="from the reference policy")
    kl_kind: str | None = Field(None, description="the estimator, such as Rao-Blackwellised")
    gold: MeanInterval | None = None
    gold_win_rate: MeanInterval | None = None


class TrainingCost(_Read):
    """What the training took; cached samples of the reference were paid for apart."""

    training_seconds: float
    processes: int = Field(1, description="each with a device of its own")
    steps: int | None = None
    samples_drawn: int | None = None
    tokens_drawn: int | None = None

    @property
    def device_hours(self) -> float:
        """Seconds times processes, in hours."""
        return self.training_seconds * self.processes / 3600


class TrainingRecord(_Read):
    """The part of the record that readers of a served checkpoint need."""

    objective: str = "vbon"
    created: str | None = None
    git_revision: str | None = None
    settings: dict[str, Any] = Field(
        default={},
        validation_alias=AliasChoices("identity", "settings"),
        description="what makes the run this run",
    )
    cost: TrainingCost | None = None
    heldout: Heldout | None = None


def read_training_record(directory: str) -> TrainingRecord | None:
    """The record of a model directory, or of the one an adapter lies in.

    ``None`` where there is none, or one that cannot be read: a policy may come from anywhere.
    """
    path = Path(directory).expanduser()
    file = (path.parent if path.name == ADAPTER else path) / RECORD
    try:
        return TrainingRecord.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
