"""The share of GPU memory for each local engine, after reserving memory for the other models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from service.settings import ServiceSettings
from vbon.engine.vllm.gpu_memory import GIB, share_per_engine, total_gpu_bytes, weight_bytes
from vbon.rewards.registry import classifier_path
from vbon.storage.checkpoints import HUB_PREFIX

logger = logging.getLogger(__name__)


def gpu_share(settings: ServiceSettings, num_engines: int) -> float:
    """The fraction of GPU memory that each engine may use: the setting, or a computed default.

    Raises:
        InvalidInputError: the other models leave no memory for the engines.
    """
    if settings.engine.gpu_memory_utilization is not None:
        return settings.engine.gpu_memory_utilization
    total = total_gpu_bytes()
    beside = {} if total is None else models_beside(settings)
    share = share_per_engine(num_engines, total, beside)
    if total is not None and beside:
        logger.info(
            "each engine may use %.3f of the GPU's %.1f GiB; the rest is for %s",
            share,
            total / GIB,
            ", ".join(beside),
        )
    return share


def models_beside(settings: ServiceSettings) -> dict[str, int]:
    """The weights, bytes, of the reward models and the embedder, by the names of their settings.

    Remote scorers, ``python:`` callables and plug-ins are left out.
    """
    specs: dict[str, tuple[str, Literal["auto", "float32"]]] = {}
    for name, spec in (("reward", settings.reward), ("gold", settings.gold)):
        path = classifier_path(spec) if spec else None
        if path is not None:
            specs[name] = (path, "auto")
    kind, _, model = settings.embedder.partition(":")
    if model:  # sentence-transformers always loads float32
        specs["embedder"] = (model, "auto" if kind == "hidden" else "float32")
    return {name: _weights(name, spec, dtype) for name, (spec, dtype) in specs.items()}


def _weights(name: str, spec: str, dtype: Literal["auto", "float32"]) -> int:
    directory = _local_directory(spec)
    found = 0 if directory is None else weight_bytes(directory, dtype)
    if not found:
        logger.warning(
            "%s %s: the size of its weights is unknown, so no GPU memory is reserved for it; "
            "if an engine or the model runs out of memory, set --engine.gpu-memory-utilization",
            name,
            spec,
        )
    return found


def _local_directory(spec: str) -> Path | None:
    """The model's directory, or its copy in the Hugging Face cache; ``None`` if there is neither."""
    directory = Path(spec.removeprefix(HUB_PREFIX)).expanduser()
    if not spec.startswith(HUB_PREFIX) and directory.is_dir():
        return directory
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(spec.removeprefix(HUB_PREFIX), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
