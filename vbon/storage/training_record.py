"""Reads ``training.json``, the record beside a checkpoint's weights of how it was trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from vbon.maths.intervals import MeanInterval

TRAINING_RECORD = "training.json"
# A LoRA is exported merged, and also as an adapter in this subdirectory, for serving on the reference
# engine.
ADAPTER_DIRECTORY = "adapter"


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class HeldoutFigures(_Read):
    """The held-out figures of a checkpoint, measured at the end of its training."""

    reward: MeanInterval
    win_rate: MeanInterval = Field(description="against one sample of the reference, ties 1/2")
    kl_nats: MeanInterval = Field(description="from the reference policy")
    kl_kind: str | None = Field(None, description="the estimator, such as Rao-Blackwellised")
    truncated_share: float | None = Field(
        None, description="share of its samples that the token limit cut off; null: not recorded"
    )
    gold: MeanInterval | None = None
    gold_win_rate: MeanInterval | None = None


class TrainingCost(_Read):
    """The time and samples that the training took, without the cached samples of the reference."""

    training_seconds: float
    processes: int = Field(1, description="each with a device of its own")
    steps: int | None = None
    samples_drawn: int | None = None
    tokens_drawn: int | None = None

    @property
    def device_hours(self) -> float:
        """Training time multiplied by the number of processes, in hours."""
        return self.training_seconds * self.processes / 3600


class CachedSamples(_Read):
    """The reference samples that a training used; several trainings may share them."""

    prompts: int
    samples_per_prompt: int = Field(
        validation_alias=AliasChoices("smallest_M", "samples_per_prompt"),
        description="of the prompt with the fewest",
    )
    sampling_seconds: float | None = Field(
        None, description="time to sample and score them, on one device; null: not recorded"
    )
    truncated_share: float | None = Field(
        None, description="share of them that the token limit cut off; null: not recorded"
    )

    @property
    def total(self) -> int:
        """The number of samples, if every prompt has as many as the one with the fewest."""
        return self.prompts * self.samples_per_prompt


class TrainingRecord(_Read):
    """The parts of a training record that the service shows."""

    objective: str = "vbon"
    created: str | None = None
    git_revision: str | None = None
    settings: dict[str, Any] = Field(
        default={},
        validation_alias=AliasChoices("identity", "settings"),
        description="what makes the run this run",
    )
    cost: TrainingCost | None = None
    cache: CachedSamples | None = None
    heldout: HeldoutFigures | None = None

    @property
    def sampled_with(self) -> dict[str, float]:
        """The ``max_tokens`` and ``temperature`` of the training, as far as the record has them."""
        names = {"max_tokens": "max_new_tokens", "temperature": "temperature"}
        found = {name: self.settings.get(recorded) for name, recorded in names.items()}
        return {name: value for name, value in found.items() if _is_number(value)}

    def sampling_differences(
        self,
        max_tokens: int,
        temperature: float,
        *,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> list[str]:
        """The differences between this sampling and the one that the checkpoint was trained with, in words.

        Its KL and rewards are those of its own sampling. Training samples the policy itself, without top_p,
        top_k and stop strings. A field that the record lacks is not compared.
        """
        served = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
        }
        trained = {**self.sampled_with, "top_p": 1.0, "top_k": 0}
        found = [
            f"{name} is {value:g}, but the checkpoint was trained and measured with {own:g}"
            for name, value in served.items()
            if (own := trained.get(name)) is not None and own != value
        ]
        if stop:
            found.append("stop strings end answers, but the checkpoint was trained without them")
        if ignore_eos:
            found.append("ignore_eos is on, but the checkpoint was trained to end at EOS")
        return found

    def reward_differences(self) -> list[str]:
        """The differences between the rewards of its own figures and the reward model's, in words."""
        own = self.settings.get("missing_eos_reward")
        if own is None:
            return []
        return [
            "the checkpoint's own figures give an answer that max_tokens cuts off a reward of "
            f"{own:g}; the service scores it like the others"
        ]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_training_record(directory: str) -> TrainingRecord | None:
    """The training record of a model directory; an adapter's is in its parent directory.

    ``None`` if the record is missing or unreadable: a policy may come from elsewhere.
    """
    path = Path(directory).expanduser()
    file = (path.parent if path.name == ADAPTER_DIRECTORY else path) / TRAINING_RECORD
    try:
        return TrainingRecord.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
