"""Removes dropout from a model, so that it is the same policy in training mode as in evaluation mode."""

from __future__ import annotations

from torch import nn

# Names of numbers that make a layer random in training mode: dropout, attn_pdrop, layerdrop, and the noise
# that mixtures of experts add to their router.
_RANDOM = ("drop", "jitter")


def remove_dropout(model: nn.Module) -> None:
    """Set the rate of every dropout and similar noise to 0, in layers and in their attributes.

    Many layers of transformers keep their rate as a number and drop values by a function, so the dropout
    layers alone are not all. The model's config stays as it is, for the export.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in [*vars(module).items()]:
            if isinstance(value, float) and any(part in name for part in _RANDOM):
                setattr(module, name, 0.0)
