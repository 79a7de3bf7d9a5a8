"""An exponential average of the weights along the run.

The gradient's noise makes the last iterate wander around where the run is heading; each step of
wandering costs KL and earns nothing. The average is what is exported.
"""

from __future__ import annotations

from typing import Any

import torch


class WeightAverage:
    """Average of the trainable weights with decay ``min(decay, (1 + t) / (10 + t))``.

    Args:
        model: whose trainable weights to follow; its present weights are where the average starts.
        decay: 0 keeps the last iterate only.
    """

    def __init__(self, model: Any, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._weights = {
            name: parameter.detach().float().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, model: Any) -> None:
        """Take in the weights after a step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        for name, parameter in model.named_parameters():
            if name in self._weights:
                self._weights[name].lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: Any) -> None:
        """Put the average in the place of the model's weights."""
        for name, parameter in model.named_parameters():
            if name in self._weights:
                parameter.copy_(self._weights[name])

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"updates": self._updates, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._updates = int(state["updates"])
        for name, value in state["weights"].items():
            self._weights[name].copy_(value)
