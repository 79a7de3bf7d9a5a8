"""Engine settings that depend on the checkpoint: threads on a CPU, and the type of the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vbon.engine.vllm.options import TINY_BYTES, default_cpu_threads, served_dtype


@pytest.mark.parametrize(
    ("size", "cores", "threads"),
    [
        (TINY_BYTES - 1, 2, 1),
        (TINY_BYTES - 1, 1, 1),
        (TINY_BYTES, 2, 2),
        (TINY_BYTES, 7, 7),
        (TINY_BYTES, 8, 7),
        (None, 2, 2),  # on a hub: not known
    ],
)
def test_a_core_is_left_free_where_that_pays(
    tmp_path: Path, size: int | None, cores: int, threads: int
) -> None:
    if size is not None:
        for name, part in (("model-1.safetensors", 5), ("model-2.safetensors", size - 5)):
            with (tmp_path / name).open("wb") as file:
                file.truncate(part)
    assert default_cpu_threads(str(tmp_path), cores) == threads


@pytest.mark.parametrize(
    ("config", "asked", "served"),
    [
        ({"dtype": "float32"}, "auto", "float32"),
        ({"torch_dtype": "float32"}, "auto", "float32"),
        ({"dtype": "bfloat16"}, "auto", "auto"),
        ({}, "auto", "auto"),
        ({"dtype": "float32"}, "bfloat16", "bfloat16"),
    ],
)
def test_auto_is_the_checkpoints_own_type(
    tmp_path: Path, config: dict[str, str], asked: str, served: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert served_dtype(str(tmp_path), asked) == served


def test_a_hub_model_is_left_to_vllm() -> None:
    assert served_dtype("org/name", "auto") == "auto"
