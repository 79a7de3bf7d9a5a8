"""How many threads an engine has on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from bestofn.engine.vllm_host import TINY_BYTES, default_cpu_threads


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
