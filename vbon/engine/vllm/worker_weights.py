"""Methods that vLLM adds to its workers, to change the weights of a loaded model and to put old ones back.

vLLM's own ``reload_weights`` writes new weights into the tensors of a running engine, but it is not
transactional: an error leaves a mixture, and the next reload goes wrong where the failed one began. On a CPU
it also leaves packed copies of weights behind: that of an output layer that shares the embedding's weight,
and those in compiled code. This module is imported in the worker processes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import vbon.engine.vllm.worker_generators  # noqa: F401  (it mends the sampling of every worker on a CPU)


class WorkerWeights:
    """The methods; vLLM makes this class a base of its worker's (``worker_extension_cls``)."""

    model_runner: Any
    reload_weights: Any

    @torch.inference_mode()
    def vbon_change_weights(self, path: str, keep: bool) -> None:
        """Load a directory's weights into the running model.

        Args:
            keep: whether to keep a copy of the present weights, in the host's memory, for
                :meth:`vbon_put_back`.
        """
        model = self.model_runner.get_model()
        _end_loading(model)
        self.vbon_kept = _Kept(model) if keep else None
        with _packed_in_place(self.vbon_kept):
            self.reload_weights(weights_path=path)
            _pack_shared(model)

    @torch.inference_mode()
    def vbon_put_back(self) -> None:
        """Put back the weights that the last change has kept."""
        _end_loading(self.model_runner.get_model())
        assert self.vbon_kept is not None  # the host asks only after a change that has kept them
        self.vbon_kept.put_back()
        self.vbon_kept = None

    def vbon_forget_kept(self) -> None:
        """Free the kept copy of the weights before the last change."""
        self.vbon_kept = None


class _Kept:
    """A copy of all weights of a model in the host's memory."""

    def __init__(self, model: Any) -> None:
        tensors = {id(one): one for one in [*model.parameters(), *model.buffers()]}
        self._copies = [(one, one.detach().to("cpu", copy=True)) for one in tensors.values()]
        self.packed: list[tuple[Any, Any]] = []

    def put_back(self) -> None:
        """Write the copies into the tensors that they were taken from."""
        for tensor, copy in self._copies:
            tensor.data.copy_(copy)
        for present, old in reversed(self.packed):
            _exchange(present, old)


def _end_loading(model: Any) -> None:
    """Give every layer its own tensors again, where a reload that failed has left it without them."""
    from vllm.model_executor.model_loader.reload import layerwise

    for layer in model.modules():
        info = layerwise.get_layerwise_info(layer)
        if info.can_load():
            layerwise._place_kernel_tensors(layer, info)
            info.reset()
    layerwise.LOADING_LAYERS.clear()
    if hasattr(model, "_original_do_torchao_reload"):
        model._do_torchao_reload = model._original_do_torchao_reload


@contextmanager
def _packed_in_place(kept: _Kept | None) -> Iterator[None]:
    """Let layers on a CPU that pack their weights anew put the result where compiled code looks for it.

    Compiled code holds the tensors that the layer's function had when it was compiled. So the new function's
    tensors are exchanged for those of the old one, which stays.
    """
    from vllm.model_executor.layers import utils

    pack: Callable[..., None] = utils.dispatch_cpu_unquantized_gemm

    def pack_in_place(layer: Any, remove_weight: bool) -> None:
        present = layer.__dict__.get("cpu_linear")
        pack(layer, remove_weight)
        new = layer.cpu_linear
        if present is not None and present is not new:
            _exchange(present, new)
            layer.cpu_linear = present
            if kept is not None:
                kept.packed.append((present, new))

    utils.dispatch_cpu_unquantized_gemm = pack_in_place
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = pack


def _pack_shared(model: Any) -> None:
    """Renew the packed copies of shared weights, which have no name of their own in a checkpoint."""
    for layer in model.modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            layer.quant_method.process_weights_after_loading(layer)


def _exchange(one: Any, other: Any) -> None:
    """Exchange the contents of the tensors in two functions' closures that were made by the same code.

    Raises:
        RuntimeError: they were made by different code.
    """
    if getattr(one, "__code__", None) is not getattr(other, "__code__", None):
        raise RuntimeError("vLLM has packed the new weights in another way than the old ones")
    for ours, theirs in zip(one.__closure__ or (), other.__closure__ or (), strict=True):
        a, b = (_tensor_of(cell.cell_contents) for cell in (ours, theirs))
        if a is not None and b is not None:
            held = a.clone()
            a.copy_(b)
            b.copy_(held)


def _tensor_of(value: Any) -> torch.Tensor | None:
    """The tensor that a closure holds: packed weights, or the number of those that oneDNN holds."""
    value = getattr(value, "handler_tensor", value)
    return value if isinstance(value, torch.Tensor) else None
