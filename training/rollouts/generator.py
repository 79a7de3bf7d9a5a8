"""The interface for drawing samples in training, and its implementation with transformers.

``vllm_generator.py`` has the implementation with vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from training.rollouts.rollout import Rollout, sample_responses


class Generator(Protocol):
    """Draws samples from a model with its current weights, at the run's temperature and length limit."""

    @property
    def extra_stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a response besides the tokenizer's EOS."""

    def sample(
        self, model: Any, prompts: Sequence[list[int]], num_samples: int, seeds: Sequence[int]
    ) -> Rollout:
        """Draw ``num_samples`` responses to each prompt.

        Args:
            prompts: token ids.
            seeds: one per prompt.

        Returns:
            The responses; those of a prompt are consecutive rows.
        """

    def close(self) -> None:
        """Free all resources that it holds."""


@dataclass(frozen=True, slots=True)
class TransformersGenerator:
    """Runs the model itself in this process, with a KV cache."""

    tokenizer: Any
    max_new_tokens: int
    temperature: float
    extra_stop_ids: tuple[int, ...] = ()

    def sample(
        self, model: Any, prompts: Sequence[list[int]], num_samples: int, seeds: Sequence[int]
    ) -> Rollout:
        """Draw ``num_samples`` responses to each prompt; see :class:`Generator`."""
        return sample_responses(
            model,
            self.tokenizer,
            prompts,
            num_samples=num_samples,
            max_new_tokens=self.max_new_tokens,
            seeds=seeds,
            temperature=self.temperature,
            extra_stop_ids=self.extra_stop_ids,
        )

    def close(self) -> None:
        """Do nothing, as it holds no resources of its own."""
