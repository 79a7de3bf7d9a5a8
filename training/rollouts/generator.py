"""What draws a step's samples; :class:`TransformersGenerator` here, vLLM in ``vllm_generation``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from training.rollouts.rollout import Rollout, sample_responses


class Generator(Protocol):
    """Draws from a model as it is now, at the temperature and length of the run."""

    def sample(
        self, model: Any, prompts: Sequence[list[int]], num_samples: int, seeds: Sequence[int]
    ) -> Rollout:
        """``num_samples`` responses to each prompt, a prompt's rows consecutive; one seed a prompt."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class TransformersGenerator:
    """The model itself, with a KV cache, in this process."""

    tokenizer: Any
    max_new_tokens: int
    temperature: float

    def sample(
        self, model: Any, prompts: Sequence[list[int]], num_samples: int, seeds: Sequence[int]
    ) -> Rollout:
        """See :class:`Generator`."""
        return sample_responses(
            model,
            self.tokenizer,
            prompts,
            num_samples=num_samples,
            max_new_tokens=self.max_new_tokens,
            seeds=seeds,
            temperature=self.temperature,
        )

    def close(self) -> None:
        """Nothing is held."""
