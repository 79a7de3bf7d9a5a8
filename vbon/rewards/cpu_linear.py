"""Linear layers of a model on a CPU, computed by the faster one of torch's two libraries."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def use_onednn(model: torch.nn.Module) -> int:
    """Let oneDNN compute the float32 linear layers of a model, if the processor is one where that is faster.

    torch computes them with MKL, which uses AVX-512 on Intel's processors alone: on an AMD EPYC of 2025 it
    takes 2.3 times the time of oneDNN. Results differ in their last bits. Weights stay as they are, and a
    call that records gradients, or whose input is not of float32 on the CPU, is torch's own.

    Returns:
        The number of layers concerned.
    """
    import torch

    if not (mkl_is_slow() and torch.backends.mkldnn.is_available()):
        return 0
    linear = _onednn_linear()
    # Subclasses may compute something else.
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and _is_plain(m.weight)]
    for layer in layers:
        layer.__class__ = linear
    return len(layers)


@cache
def mkl_is_slow() -> bool:
    """Tell whether torch multiplies with MKL on a processor that has AVX-512 and is not Intel's."""
    import torch

    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
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


@cache
def _onednn_linear() -> type[torch.nn.Linear]:
    """The layer's class; torch is imported by then."""
    import torch

    # The operator that torch.compile uses for linear layers. It takes plain weights too; reordered ones were
    # faster by 4% at most, and take the memory a second time.
    multiply: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise

    class OneDnnLinear(torch.nn.Linear):
        """A linear layer that oneDNN computes."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's name)
            """The product with the weights, plus the bias; input of shape ``(..., in_features)``."""
            if torch.is_grad_enabled() or not _is_plain(input) or not input.numel():
                return super().forward(input)
            return multiply(input, self.weight, self.bias, "none", [], "")

    return OneDnnLinear


def _is_plain(tensor: torch.Tensor) -> bool:
    import torch

    return (
        tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
    )
