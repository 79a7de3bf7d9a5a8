"""Matrix products of the policy's layers, by the faster library on this processor.

On a CPU, torch multiplies float32 matrices with Intel's MKL, which uses half the width of an AMD processor's
vector units: 95 GFLOP/s, where oneDNN, which torch also contains, reaches 215 (docs/log.md). Two thirds of a
training step are such products.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

_CPU_DESCRIPTION = Path("/proc/cpuinfo")


@cache
def _prefers_onednn() -> bool:
    """True on a processor that MKL does not use in full: of AMD, with AVX-512."""
    try:
        by_amd = "AuthenticAMD" in _CPU_DESCRIPTION.read_text()
    except OSError:
        return False
    return (
        by_amd
        and platform.machine() == "x86_64"
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(left_MK: torch.Tensor, right_NK: torch.Tensor) -> torch.Tensor:
    """``left @ right.T``, without gradient; the leading dimensions of ``left`` may be several."""
    if left_MK.dtype == torch.float32 and left_MK.device.type == "cpu" and _prefers_onednn():
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            left_MK, right_NK, None, "none", [], ""
        )
        return result
    return left_MK @ right_NK.mT


class _Product(torch.autograd.Function):
    """:func:`product` with gradient."""

    @staticmethod
    def forward(ctx: Any, left_MK: torch.Tensor, right_NK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left_MK, right_NK)
        return product(left_MK, right_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MN: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        left, right = ctx.saved_tensors
        of_left, of_right = ctx.needs_input_grad
        rows = grad_MN.flatten(0, -2)
        return (
            product(grad_MN, right.mT) if of_left else None,
            product(rows.mT, left.flatten(0, -2).mT) if of_right else None,
        )


class FastLinear(nn.Linear):
    """A linear layer whose float32 products on a CPU are those of :func:`product`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  as in torch
        """``input @ weight.T + bias``."""
        if input.dtype != torch.float32 or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        multiply = _Product.apply if torch.is_grad_enabled() else product
        result: torch.Tensor = multiply(input, self.weight)
        return result if self.bias is None else result + self.bias


def speed_up_linear_layers(model: nn.Module) -> None:
    """Let the linear layers of a model on the CPU multiply with the library that is faster there.

    The layers get another class and keep their weights, so a copy of the model, or a LoRA on it, has them
    too. On a GPU they would multiply as torch does, only with the bias added in a step of its own.
    """
    if next(model.parameters()).device.type == "cpu" and _prefers_onednn():
        _change_class(model, nn.Linear, FastLinear)


def use_stock_linear_layers(model: nn.Module) -> None:
    """Undo :func:`speed_up_linear_layers`."""
    _change_class(model, FastLinear, nn.Linear)


def _change_class(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
