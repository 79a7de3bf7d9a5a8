"""Engine arguments that users pass through to vLLM: how they are given, and which are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.bench.vllm_serve import serve_flags
from service.settings import ServiceSettings
from training.configs import SampleConfig, TrainConfig
from vbon.config import load_settings
from vbon.engine.vllm.engine_args import (
    OWNED_BY_GENERATION,
    OWNED_BY_SAMPLE,
    OWNED_BY_SERVICE,
    one_line,
    refuse_owned,
    refuse_unknown,
)
from vbon.errors import InvalidInputError

KNOWN = ("max_num_batched_tokens", "enable_prefix_caching", "quantization", "_api_process_count")


def service(*arguments: str) -> ServiceSettings:
    return load_settings(ServiceSettings, arguments, program="serve")


def sample(*arguments: str) -> SampleConfig:
    return load_settings(SampleConfig, arguments, program="sample")


def test_flags_variables_and_tables_give_the_same_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"quantization": "fp8", "max_num_batched_tokens": 512, "enable_prefix_caching": False}
    pairs = [f"--engine.args={name}={json.dumps(value)}" for name, value in wanted.items()]
    assert service(*pairs).engine.args == wanted
    assert service("--engine.args", json.dumps(wanted)).engine.args == wanted
    file = tmp_path / "service.toml"
    file.write_text(
        "[engine.args]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in wanted.items())
    )
    assert service("--config", str(file)).engine.args == wanted
    monkeypatch.setenv("VBON_ENGINE__ARGS", json.dumps(wanted))
    assert service().engine.args == wanted


def test_values_may_be_tables_and_words() -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 3}
    given = json.dumps({"speculative_config": speculative, "cudagraph_capture_sizes": [1, 2]})
    args = sample("--engine-args", given, "--engine-args", "quantization=fp8").engine_args
    assert args == {
        "speculative_config": speculative,
        "cudagraph_capture_sizes": [1, 2],
        "quantization": "fp8",
    }


@pytest.mark.parametrize(
    ("load", "arguments", "words"),
    [
        (service, ["--engine.args", '{"dtype": "half"}'], "use --engine.dtype"),
        (service, ["--engine.args", '{"max-num-seqs": 4}'], "use --engine.max-num-seqs"),
        (service, ["--engine.args", '{"seed": 1}'], "give `seed` in each request"),
        (service, ["--engine.args", '{"load_format": "pt"}'], "only read from safetensors"),
        (service, ["--engine.args", "[1]"], "engine.args"),
        (sample, ["--engine-args", '{"seed": 1}'], "use --seed"),
        (sample, ["--engine-args", "a=1", "--backend", "transformers"], "add --backend vllm"),
    ],
)
def test_what_is_set_elsewhere_is_refused_at_the_start(
    load: Callable[..., object],
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        load(*arguments)
    assert exit_.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[0]


def test_training_takes_them_for_generation_by_vllm_only() -> None:
    args = {"max_num_batched_tokens": 512}
    assert TrainConfig(generation="vllm", engine_args=args).engine_args == args
    with pytest.raises(ValidationError, match="add --generation vllm"):
        TrainConfig(engine_args=args)
    with pytest.raises(ValidationError, match="--generation-gpu-memory"):
        TrainConfig(generation="vllm", engine_args={"gpu_memory_utilization": 0.5})


@pytest.mark.parametrize("config", [SampleConfig(), TrainConfig()])
def test_records_made_before_the_setting_existed_still_count(config: BaseModel) -> None:
    assert "engine_args" not in config.model_dump(mode="json")


def test_an_unknown_name_gets_the_closest_known_one() -> None:
    refuse_unknown({"quantization": "fp8"}, KNOWN, field="engine.args")
    with pytest.raises(InvalidInputError, match="did you mean 'max_num_batched_tokens'") as error:
        refuse_unknown({"max-num-batched-token": 5}, KNOWN, field="engine.args")
    assert error.value.field == "engine.args"
    for name in ("flux", "_api_process_count"):
        with pytest.raises(InvalidInputError, match=f"no engine argument '{name}'$"):
            refuse_unknown({name: 5}, ("max_num_batched_tokens",), field="engine.args")


@pytest.mark.parametrize("owned", [OWNED_BY_SERVICE, OWNED_BY_SAMPLE, OWNED_BY_GENERATION])
def test_every_refused_name_is_one_of_vllm_s(owned: Mapping[str, str]) -> None:
    arg_utils = pytest.importorskip("vllm.engine.arg_utils")
    assert owned.keys() <= {argument.name for argument in fields(arg_utils.AsyncEngineArgs)}
    for name in owned:
        with pytest.raises(ValueError, match=name):
            refuse_owned({name: None}, owned)


def test_errors_of_vllm_are_told_in_one_line() -> None:
    class CacheConfig(BaseModel):
        block_size: int

    with pytest.raises(ValidationError) as error:
        CacheConfig(block_size="seven")  # type: ignore[arg-type]
    told = one_line(error.value)
    assert told.startswith("block_size: Input should be a valid integer")
    assert told.endswith("(got 'seven')")
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"


def test_the_bench_hands_them_to_vllm_serve() -> None:
    arguments: dict[str, Any] = {
        "enable_prefix_caching": False,
        "speculative_config": {"method": "ngram"},
        "cudagraph_capture_sizes": [1, 2],
    }
    assert serve_flags(arguments) == [
        "--no-enable-prefix-caching",
        "--speculative-config",
        '{"method": "ngram"}',
        "--cudagraph-capture-sizes",
        "1",
        "2",
    ]
