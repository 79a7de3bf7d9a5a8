"""A GPU's memory shared between engines and the models beside them: reward models and an embedder.

Engines take a fixed share of the GPU at their start, so what the other models need must be left out of it.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from vbon.errors import InvalidInputError
from vbon.storage.json_files import parse_json, read_json_file

GIB = 2**30
# The rest is for what vLLM does not count: CUDA contexts, graphs and fragmentation.
ENGINES_SHARE = 0.9
# A model beside the engines needs its weights, a CUDA context, and room for the activations of a batch.
CONTEXT_BYTES = GIB // 2
LEAST_ACTIVATION_BYTES = GIB
ACTIVATIONS_PER_WEIGHT_BYTE = 0.25
# Less than this per engine cannot hold the KV cache of a useful batch.
LEAST_SHARE = 0.02
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_CONFIG_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def weight_bytes(directory: Path, dtype: Literal["auto", "float32"] = "auto") -> int:
    """Bytes of a model's weights once they are loaded.

    Args:
        directory: of a checked model; its safetensors files are read up to the end of their headers.
        dtype: ``auto`` loads in the type that ``config.json`` names, or else the stored one.
    """
    loaded_as = 4 if dtype == "float32" else _configured_bytes(directory)
    return sum(
        _loaded_bytes(tensor, loaded_as)
        for file in directory.glob("*.safetensors")
        for name, tensor in _header(file).items()
        if name != "__metadata__"
    )


def bytes_beside(weights: int) -> int:
    """Bytes of GPU memory that a model with this many bytes of weights needs in all."""
    activations = max(LEAST_ACTIVATION_BYTES, round(weights * ACTIVATIONS_PER_WEIGHT_BYTE))
    return weights + CONTEXT_BYTES + activations


def share_per_engine(num_engines: int, total_bytes: int | None, beside: Mapping[str, int]) -> float:
    """vLLM's ``gpu_memory_utilization`` for each of several engines on the same GPU.

    Args:
        total_bytes: memory of the GPU; ``None`` if there is none, or its size is not known.
        beside: bytes of weights of each other model on this GPU, by its name.

    Raises:
        InvalidInputError: the other models leave no memory for the engines.
    """
    if total_bytes is None:
        return round(ENGINES_SHARE / num_engines, 3)
    reserved = sum(map(bytes_beside, beside.values()))
    if not reserved:
        return round(ENGINES_SHARE / num_engines, 3)
    share = (ENGINES_SHARE - reserved / total_bytes) / num_engines
    if share < LEAST_SHARE:
        raise InvalidInputError(
            f"{' and '.join(beside)} need {reserved / GIB:.1f} GiB of the GPU's {total_bytes / GIB:.1f}, "
            f"which leaves no memory for {num_engines} engine(s); use smaller models, serve them on "
            "another machine and give their URL, or set --engine.gpu-memory-utilization",
            field="engine.gpu_memory_utilization",
        )
    return math.floor(share * 1000) / 1000


def total_gpu_bytes() -> int | None:
    """Memory of the first GPU that this process may use, or ``None`` if ``nvidia-smi`` finds none.

    Asking torch would start CUDA in this process, and vLLM could then not fork its engines.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    program = shutil.which("nvidia-smi")
    if program is None or visible in ("", "-1"):
        return None
    query = ["--query-gpu=memory.total", "--format=csv,noheader,nounits", f"--id={visible}"]
    try:
        told = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=20, check=True
        )
        return int(told.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _configured_bytes(directory: Path) -> int | None:
    try:
        config = read_json_file(directory / "config.json")
    except (OSError, ValueError):
        return None
    return _CONFIG_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")))


def _header(file: Path) -> dict[str, dict[str, object]]:
    with file.open("rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header: dict[str, dict[str, object]] = parse_json(handle.read(size))
    return header


def _loaded_bytes(tensor: Mapping[str, object], loaded_as: int | None) -> int:
    stored, shape = str(tensor["dtype"]), tensor["shape"]
    assert isinstance(shape, list)
    if (
        loaded_as is not None and stored in _FLOATS
    ):  # integers, also quantized weights, stay as they are
        return math.prod(shape) * loaded_as
    return math.ceil(math.prod(shape) * _BITS.get(stored, 8) / 8)
