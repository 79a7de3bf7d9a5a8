"""Linear layers and matrix products of models, by the faster library on this processor.

On a CPU, torch multiplies float32 matrices with Intel's MKL, which uses half the width of an AMD processor's
vector units: 95 GFLOP/s, where oneDNN, which torch also contains, reaches 215 (docs/log.md). Two thirds of a
training step and five sixths of a reward model's forward pass are such products. Results of the two libraries
differ in their last bits.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable


@cache
def prefers_onednn() -> bool:
    """True on a processor that MKL does not use in full: one with AVX-512 that is not Intel's."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and processor_vendor() not in (None, "GenuineIntel")
    )


def processor_vendor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The vendor of the processor as it tells it, such as ``AuthenticAMD``; ``None`` where it is unknown."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == "vendor_id"), None)


def product(
    left_MK: torch.Tensor, right_NK: torch.Tensor, bias_N: torch.Tensor | None = None
) -> torch.Tensor:
    """``left @ right.T + bias``, without gradient; the leading dimensions of ``left`` may be several."""
    if _is_plain(left_MK) and left_MK.numel() and prefers_onednn():
        # The operator that torch.compile uses for linear layers. It takes plain weights too; reordered ones
        # were faster by 4% at most, and take the memory a second time.
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            left_MK, right_NK, bias_N, "none", [], ""
        )
        return result
    return nn.functional.linear(left_MK, right_NK, bias_N)


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )


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
        if not torch.is_grad_enabled():
            return product(input, self.weight, self.bias)
        result: torch.Tensor = _Product.apply(input, self.weight)
        return result if self.bias is None else result + self.bias


def speed_up_linear_layers(model: nn.Module) -> None:
    """Let the linear layers of a model on the CPU multiply with the library that is faster there.

    The layers get another class and keep their weights, so a copy of the model, or a LoRA on it, has them
    too. Subclasses of torch's layer, which may compute something else, are left alone. On a GPU the layers
    would multiply as torch does, only with the bias added in a step of its own.
    """
    if next(model.parameters()).device.type == "cpu" and prefers_onednn():
        _change_class(model, nn.Linear, FastLinear)


def use_stock_linear_layers(model: nn.Module) -> None:
    """Undo :func:`speed_up_linear_layers`."""
    _change_class(model, FastLinear, nn.Linear)


def _change_class(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new
