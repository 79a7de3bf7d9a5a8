"""Adapters of every rank: the limit that vLLM is started with, and errors that name the adapter."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_checkpoints import write_safetensors
from vbon.engine.vllm.host import AdapterRoom, VllmHost
from vbon.engine.vllm.lora import LORA_RANKS, adapter_rank, lora_rank_limit
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError


def write_model(directory: Path) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (directory / "tokenizer.json").write_text("{}")
    write_safetensors(directory / "model.safetensors")
    return directory


def write_adapter(directory: Path, **config: Any) -> str:
    """An adapter directory with weights that are valid as a file."""
    directory.mkdir(exist_ok=True)
    write_safetensors(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return str(directory)


def test_the_limits_are_those_that_vllm_accepts() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vllm is not installed")
    source = Path(spec.submodule_search_locations[0], "config", "lora.py").read_text()
    line = next(line for line in source.splitlines() if line.startswith("MaxLoRARanks"))
    assert ast.literal_eval(line.split("Literal")[1]) == list(LORA_RANKS)


def test_the_limit_is_the_smallest_that_vllm_accepts_and_that_is_large_enough() -> None:
    assert lora_rank_limit({}) == 8
    for rank in range(1, 513):
        limit = lora_rank_limit({"a": 1, "b": rank})
        assert limit in LORA_RANKS
        assert limit >= rank
        assert not any(rank <= smaller < limit for smaller in LORA_RANKS if smaller >= 8)


@pytest.mark.parametrize(
    ("config", "rank"),
    [
        ({"r": 12}, 12),
        ({"r": 4, "rank_pattern": {"q_proj": 40, "v_proj": 2}}, 40),
        ({"r": 16, "rank_pattern": {"q_proj": 2}}, 16),
        ({"r": 16, "rank_pattern": None}, 16),
        ({"r": 3, "peft_type": "LORA", "rank_pattern": {}}, 3),
    ],
)
def test_the_rank_is_the_largest_of_all_modules(
    tmp_path: Path, config: dict[str, Any], rank: int
) -> None:
    path = write_adapter(tmp_path / "adapter", **config)
    assert adapter_rank(path) == rank


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"r": 513}, "has rank 513, and vLLM serves at most 512"),
        ({"r": 8, "rank_pattern": {"q_proj": 600}}, "has rank 600"),
        ({}, "states the rank None"),
        ({"r": 0}, "states the rank 0"),
        ({"r": "8"}, "states the rank '8'"),
        ({"r": True}, "states the rank True"),
        ({"r": 8, "rank_pattern": {"q_proj": -1}}, "states the rank -1"),
        ({"r": 8, "rank_pattern": [3.5]}, "states the rank"),
        ({"peft_type": "IA3"}, "is an adapter of type IA3"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_named_before_an_engine_starts(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    base = write_model(tmp_path / "base")
    path = write_adapter(tmp_path / "adapter", **config)
    with pytest.raises(CheckpointError, match=words) as caught:
        VllmHost(str(base), VllmOptions(), (path,))
    assert path in str(caught.value)
    assert str(base) not in str(caught.value)


def test_the_engine_is_started_for_the_largest_rank_of_its_adapters(tmp_path: Path) -> None:
    base = str(write_model(tmp_path / "base"))
    small = write_adapter(tmp_path / "small", r=12)
    large = write_adapter(tmp_path / "large", r=8, rank_pattern={"q_proj": 33})
    assert VllmHost(base, VllmOptions(), (small,)).arguments["max_lora_rank"] == 16
    both = VllmHost(base, VllmOptions(), (small, large)).arguments
    assert (both["max_lora_rank"], both["max_loras"]) == (64, 2)


async def test_an_adapter_that_grew_names_itself_and_the_limit_at_a_reload(tmp_path: Path) -> None:
    base = str(write_model(tmp_path / "base"))
    path = write_adapter(tmp_path / "adapter", r=12)
    host = VllmHost(base, VllmOptions(), (path,))
    host._started_rank_limit = host.lora_rank_limit
    write_adapter(tmp_path / "adapter", r=24)
    with pytest.raises(CheckpointError, match=r"rank 24, and the engine was started for .* 16"):
        await host.load_adapter(host.new_adapter(path))


def test_an_engine_has_room_for_adapters_that_come_later_and_forgets_those_that_left(
    tmp_path: Path,
) -> None:
    base = str(write_model(tmp_path / "base"))
    assert "enable_lora" not in VllmHost(base, VllmOptions()).arguments
    host = VllmHost(base, VllmOptions(), room=AdapterRoom(2, 12))
    empty = host.arguments
    assert (empty["enable_lora"], empty["max_loras"], empty["max_lora_rank"]) == (True, 2, 16)
    paths = [write_adapter(tmp_path / name, r=8) for name in ("one", "two")]
    adapters = [host.new_adapter(path) for path in (*paths, paths[0])]
    for adapter in adapters:
        host.use(adapter)
    assert host.arguments["max_loras"] == 2
    # vLLM keeps the weights that it has loaded under a number, also of an adapter that has left.
    assert len({adapter.number for adapter in adapters}) == 3
    host.drop(adapters[0])  # its path has been read again since
    host.drop(adapters[1])
    assert host.adapters == {paths[0]: adapters[2]}
    assert host.new_adapter(paths[1]).number not in {adapter.number for adapter in adapters}
