"""Settings of a trainer, and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from training.configs import TrainConfig


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """Settings of the training steps; ``TrainConfig`` describes each of them."""

    steps: int
    prompts_per_step: int
    samples_per_prompt: int
    micro_batch_size: int
    temperature: float
    learning_rate: float
    warmup_steps: int
    warm_start_steps: int
    warm_start_learning_rate: float
    max_grad_norm: float
    seed: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    missing_eos_reward: float | None = None

    @classmethod
    def of(
        cls, config: TrainConfig, learning_rate: float, seed: int | None = None
    ) -> TrainerOptions:
        """The options of a run.

        Args:
            learning_rate: replaces that of ``config``, which may leave it to the objective.
            seed: replaces that of ``config`` if given.
        """
        shared = {field.name: getattr(config, field.name) for field in fields(cls)}
        shared["learning_rate"] = learning_rate
        if seed is not None:
            shared["seed"] = seed
        return cls(**shared)


def scheduled_learning_rate(step: int, options: TrainerOptions) -> float:
    """Learning rate of a step: linear warm-up, then linear decay.

    The warm start and the main steps each have a warm-up and a decay of their own.
    """
    if step < options.warm_start_steps:
        peak, at, length = options.warm_start_learning_rate, step, options.warm_start_steps
    else:
        peak, at, length = options.learning_rate, step - options.warm_start_steps, options.steps
    rising = (at + 1) / (options.warmup_steps + 1)
    falling = max(0.0, (length - at) / max(1, length))
    return peak * min(rising, falling)
