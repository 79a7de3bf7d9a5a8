"""Shares of a GPU's memory for engines and the models beside them; no GPU is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.runtime import gpu_share as gpu_share_module
from service.runtime.gpu_share import gpu_share, models_beside
from service.settings import EngineSettings, ServiceSettings
from vbon.engine.vllm import gpu_memory
from vbon.engine.vllm.gpu_memory import (
    GIB,
    bytes_beside,
    share_per_engine,
    total_gpu_bytes,
    weight_bytes,
)
from vbon.errors import InvalidInputError


def model_in(directory: Path, dtype: str | None, **tensors: tuple[str, list[int]]) -> Path:
    """A model directory whose weight file is a header only: types and shapes, without the numbers."""
    directory.mkdir()
    if dtype is not None:
        (directory / "config.json").write_text(json.dumps({"dtype": dtype}))
    header = {name: {"dtype": kind, "shape": shape} for name, (kind, shape) in tensors.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (directory / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return directory


def test_weights_count_in_the_type_they_are_loaded_in(tmp_path: Path) -> None:
    tensors = {"a": ("F32", [10, 20]), "b": ("BF16", [100]), "c": ("I8", [50]), "d": ("F32", [])}
    stored = model_in(tmp_path / "stored", None, **tensors)
    assert weight_bytes(stored) == 10 * 20 * 4 + 100 * 2 + 50 + 4
    half = model_in(tmp_path / "half", "bfloat16", **tensors)
    assert weight_bytes(half) == (200 + 100 + 1) * 2 + 50
    assert weight_bytes(half, "float32") == (200 + 100 + 1) * 4 + 50


def test_a_model_needs_its_weights_a_context_and_activations() -> None:
    assert bytes_beside(0) == 1.5 * GIB
    assert bytes_beside(2 * GIB) == 3.5 * GIB
    assert bytes_beside(16 * GIB) == (16 + 0.5 + 4) * GIB


@pytest.mark.parametrize(
    ("engines", "total_gib", "beside_gib", "share"),
    [
        (2, None, [16], 0.45),  # no GPU
        (2, 80, [], 0.45),
        (7, 80, [], 0.129),
        (1, 80, [2], 0.856),  # .9 - 3.5 / 80 = .85625
        (2, 80, [16], 0.321),  # (.9 - 20.5 / 80) / 2 = .321875
        (2, 80, [16, 16], 0.193),  # (.9 - 41 / 80) / 2 = .19375
    ],
)
def test_engines_share_what_the_other_models_leave(
    engines: int, total_gib: int | None, beside_gib: list[int], share: float
) -> None:
    total = None if total_gib is None else total_gib * GIB
    beside = {f"model {index}": gib * GIB for index, gib in enumerate(beside_gib)}
    found = share_per_engine(engines, total, beside)
    assert found == share
    if total is not None and beside:
        assert engines * found * total + sum(map(bytes_beside, beside.values())) <= 0.9 * total


def test_models_that_leave_nothing_are_refused_with_the_remedy() -> None:
    with pytest.raises(
        InvalidInputError, match=r"reward and gold need 41\.0 GiB of the GPU's 40"
    ) as error:
        share_per_engine(1, 40 * GIB, {"reward": 16 * GIB, "gold": 16 * GIB})
    assert "--engine.gpu-memory-utilization" in str(error.value)


def test_only_models_that_the_service_loads_itself_count(tmp_path: Path) -> None:
    policy = str(tmp_path / "policy")
    reward = model_in(tmp_path / "reward", "bfloat16", a=("F32", [1000]))
    settings = ServiceSettings(
        policies={"ref": policy}, reward=str(reward), gold="python:a:b", embedder=f"hidden:{reward}"
    )
    assert models_beside(settings) == {"reward": 2000, "embedder": 2000}
    settings = ServiceSettings(
        policies={"ref": policy}, reward="http://h/score", gold=None, embedder=f"sentences:{reward}"
    )
    assert models_beside(settings) == {"embedder": 4000}
    settings = ServiceSettings(policies={"ref": policy}, reward="hf://no/such-model-anywhere")
    assert models_beside(settings) == {"reward": 0}


def test_the_setting_overrides_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = model_in(tmp_path / "reward", "float32", a=("F32", [GIB // 2]))
    settings = ServiceSettings(policies={"ref": "p"}, reward=str(reward))
    monkeypatch.setattr(gpu_share_module, "total_gpu_bytes", lambda: 80 * GIB)
    assert gpu_share(settings, 1) == 0.856
    monkeypatch.setattr(gpu_share_module, "total_gpu_bytes", lambda: None)
    assert gpu_share(settings, 1) == 0.9
    chosen = settings.model_copy(update={"engine": EngineSettings(gpu_memory_utilization=0.3)})
    assert gpu_share(chosen, 1) == 0.3


def test_the_first_visible_gpu_is_asked_for_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\ncase "$*" in *--id=3) echo 81559;; *) exit 6;; esac\n')
    program.chmod(0o755)
    monkeypatch.setattr(gpu_memory.shutil, "which", lambda _: str(program))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    assert total_gpu_bytes() == 81559 * 2**20
    for hidden in ("", "-1", "9"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert total_gpu_bytes() is None
