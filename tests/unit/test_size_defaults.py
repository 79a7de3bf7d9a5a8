"""Defaults by the policy's size: nothing changes for a small one, and what was given is kept."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.train

from safetensors.numpy import save_file  # noqa: E402
from transformers import GPT2Config, GPT2LMHeadModel  # noqa: E402

from training.configs import TrainConfig  # noqa: E402
from training.objectives import objective_type  # noqa: E402
from training.rollouts import batch_size as sizing  # noqa: E402
from training.rollouts.batch_size import SMALL, batch_of, machine_memory, measuring_batch  # noqa: E402
from training.rollouts.load_policy import hub_shape  # noqa: E402
from training.train.config import objective_of, train_config_type  # noqa: E402
from training.train.size_defaults import with_size_defaults  # noqa: E402
from vbon.errors import CheckpointError  # noqa: E402
from vbon.storage.model_shape import ModelShape, read_model_shape, shape_of  # noqa: E402

GB = 10**9
SANDBOX = ModelShape(1_500_000, 3, 192, 4096)
SMOL = ModelShape(134_515_008, 30, 576, 49_152)  # SmolLM2-135M
LLAMA = ModelShape(8_030_261_248, 32, 4096, 128_256)  # Llama 3.1 8B


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def config_of(name: str = "vbon", **changes: Any) -> TrainConfig:
    return train_config_type(name)(**changes)


def sized(shape: ModelShape, memory: int = 25 * GB, name: str = "vbon", **changes: Any) -> Any:
    config = config_of(name, **{"warm_start_steps": 40, **changes})
    return with_size_defaults(name, config, objective_of(name, config), shape, memory)


@pytest.mark.parametrize("name", ["vbon", "kl-rl", "bon-sft", "dpo", "j-bond"])
@pytest.mark.parametrize("shape", [SANDBOX, ModelShape(19_999_999)])
@pytest.mark.parametrize("memory", [GB // 10, 200 * GB])
def test_a_small_policy_keeps_every_default(name: str, shape: ModelShape, memory: int) -> None:
    config = config_of(name)
    assert with_size_defaults(name, config, objective_of(name, config), shape, memory) is config


def test_a_real_policy_gets_a_lora_and_sane_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = sized(SMOL, num_samples=4)
    assert (found.lora_rank, found.lora_alpha, found.max_kl) == (16, 32, 20.0)
    assert (found.warm_start_learning_rate, found.learning_rate) == pytest.approx((2e-4, 1e-4))
    assert (found.frozen_dtype, found.dtype, found.gradient_checkpointing) == (
        "float32", "float32", False,
    )  # fmt: skip
    # Activations of 2 x 40 x 576 x 2 x 34 x 30 bytes: 94 MB a sequence; half of what 25 GB leave beside
    # 4 x 134.5 MB and .1 GB of chunks holds 129 of them.
    assert found.micro_batch_size == 128
    told = caplog.text
    for part in (
        "135 M parameters",
        "25 GB",
        "--lora-rank 16, because",
        "--learning-rate 0.0001,",
        "94 MB",
    ):
        assert part in told


def test_a_large_policy_fits_one_gpu_of_80_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = sized(LLAMA, 80 * GB, num_samples=4, max_new_tokens=256, generation="vllm")
    assert (found.frozen_dtype, found.dtype, found.gradient_checkpointing) == (
        "bfloat16", "bfloat16", True,
    )  # fmt: skip
    assert (found.warm_start_learning_rate, found.learning_rate) == pytest.approx((1e-4, 1e-5))
    # 56 GB beside vLLM hold 16 GB of weights and 2.6 GB of chunks; half of the rest holds 91 sequences of
    # 206 MB.
    assert found.micro_batch_size == 64


def test_all_logits_at_once_take_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequence takes .21 GB and 5 x 4 x 256 x 128,256 bytes of logits, so 21 fit."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings: dict[str, Any] = {"num_samples": 4, "max_new_tokens": 256, "generation": "vllm"}
    capped = replace(LLAMA, processed_logits=True)
    assert sized(capped, 80 * GB, **settings).micro_batch_size == 16
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    shape = ModelShape(1_500_000_000, 28, 1536, 151_936)
    sharded = sized(shape, 80 * GB, **settings).micro_batch_size
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    assert sharded < sized(shape, 80 * GB, lora_rank="none", **settings).micro_batch_size


def test_memory_decides_the_type_of_frozen_weights() -> None:
    shape = ModelShape(500_000_000, 24, 896, 151_936)
    assert sized(shape, 5 * GB).frozen_dtype == sized(shape, 5 * GB).dtype == "float32"
    small = sized(shape, 3 * GB)
    assert (small.frozen_dtype, small.dtype) == ("bfloat16", "bfloat16")
    assert sized(shape, 3 * GB, dtype="float32").dtype == "float32"
    assert sized(shape, GB).micro_batch_size == 8  # nothing is free; one prompt's samples remain


def test_full_weights_take_a_tenth_of_the_learning_rates() -> None:
    lora, full = sized(SMOL, num_samples=4), sized(SMOL, num_samples=4, lora_rank="none")
    assert full.lora_rank is None
    for rate in ("learning_rate", "warm_start_learning_rate"):
        assert getattr(full, rate) == pytest.approx(getattr(lora, rate) / 10)


def test_an_objective_s_lower_rate_counts_and_imitation_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sized(SMOL, num_samples=64).learning_rate == pytest.approx(1e-4)
    monkeypatch.setattr(objective_type("vbon"), "peak_learning_rate", lambda _: 2e-7)
    assert sized(SMOL, num_samples=64).learning_rate == pytest.approx(2e-6)
    assert sized(SMOL, name="bon-sft").learning_rate == pytest.approx(2e-4)
    assert sized(SMOL, name="kl-rl").learning_rate == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", 1e-3),
        ("warm_start_learning_rate", 8e-4),  # given, although it is the default
        ("lora_rank", 4),
        ("micro_batch_size", 256),
        ("max_kl", 50.0),
        ("frozen_dtype", "float32"),
        ("gradient_checkpointing", False),
    ],
)
def test_a_setting_that_was_given_is_kept(setting: str, value: Any) -> None:
    assert getattr(sized(LLAMA, 8 * GB, **{setting: value}), setting) == value
    assert getattr(sized(LLAMA, 8 * GB), setting) != value


def test_runs_that_share_a_reference_keep_its_type() -> None:
    config = config_of()
    found = with_size_defaults(
        "vbon", config, objective_of("vbon", config), LLAMA, 8 * GB,
        kept=frozenset({"frozen_dtype"}),
    )  # fmt: skip
    assert (found.frozen_dtype, found.lora_rank) == ("float32", 16)


def test_fsdp_trains_full_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # as `accelerate launch` sets it
    found = sized(LLAMA, 80 * GB, num_samples=4)
    assert found.lora_rank is None
    assert found.learning_rate == pytest.approx(1e-6)


def test_shape_comes_from_config_and_headers(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    total = sum(weights.numel() for weights in model.parameters())
    expected = ModelShape(total, 2, 16, 32)
    save_file({"w": np.zeros(9, np.float32)}, tmp_path / "unrelated.safetensors")
    assert read_model_shape(tmp_path) == expected
    # The same from the config alone, as for a model of the hub.
    assert hub_shape(str(tmp_path)) == expected
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such"}))
    with pytest.raises(CheckpointError, match="cannot load policy"):
        hub_shape(str(tmp_path))


def test_configs_of_other_families_and_without_figures() -> None:
    nested = {"text_config": {"hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 5}}
    assert shape_of(nested, 7) == ModelShape(7, 3, 8, 5)
    assert shape_of({"hidden_size": "large"}, 7) == ModelShape(7)
    for capped in ({"final_logit_softcapping": 30.0}, {"logits_scaling": 8}, {"logit_scale": 0.06}):
        assert shape_of(capped, 7) == ModelShape(7, processed_logits=True)
    for plain in ({"final_logit_softcapping": None}, {"logits_scaling": 1.0}):
        assert shape_of(plain, 7) == ModelShape(7)
    assert sized(ModelShape(100_000_000)).micro_batch_size == 256


def test_memory_is_that_of_the_container_if_it_is_limited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = machine_memory()
    assert installed > 10**8
    real = Path

    def moved(path: str) -> Path:
        return tmp_path if path == "/sys/fs/cgroup" else real(path)

    monkeypatch.setattr(sizing, "Path", moved)
    (tmp_path / "memory.max").write_text("100000000\n")
    assert machine_memory() == 100_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_memory() >= installed


def test_a_measured_batch_fits_work_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert batch_of(SANDBOX, 4, 40, GB, 512) == 512
    assert batch_of(ModelShape(SMALL - 1), 4, 1000, GB // 10, 500) == 500
    # 6 x 134.5 M x 40 operations a sequence: 2.5e12 are 77 of them; with 24 tokens 129.
    assert batch_of(SMOL, 4, 40, 25 * GB, 512) == 64
    assert batch_of(SMOL, 4, 24, 25 * GB, 512) == 128
    assert batch_of(SMOL, 4, 24, 25 * GB, 100) == 64
    # 2 x 30 x 576 x 4 x 48 bytes of cache and 20 x 49,152 of distributions: 7.6 MB; both models leave
    # .12 GB of 1.2, and half of it holds 8 sequences.
    assert batch_of(SMOL, 4, 24, int(1.2 * GB), 512) == 8
    assert batch_of(SMOL, 4, 24, GB, 512) == 1
    # On a GPU 5e14 operations: 40 sequences of 256 tokens of an 8 B model; memory would hold 169.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert batch_of(LLAMA, 2, 256, 80 * GB, 512) == 32
    assert batch_of(SMOL, 4, 40, 80 * GB, 512) == 512


def test_a_loaded_model_is_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 x 24 + 32 x 24 weights of embeddings, shared with the output, and those of one layer."""
    monkeypatch.setattr(sizing, "SMALL", 1000)
    monkeypatch.setattr(sizing, "machine_memory", lambda: 2_000_000)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=1000, n_embd=24, n_layer=1, n_head=2, n_positions=32)
    )
    parameters = model.num_parameters()
    assert parameters == 1000 * 24 + 32 * 24 + 12 * 24 * 24 + 13 * 24 + 2 * 24
    # 2 x 24 x 4 x 16 + 20 x 1,000 bytes a sequence, half of what 8 bytes a parameter leave.
    assert (2_000_000 - 8 * parameters) / 2 / (2 * 24 * 4 * 16 + 20_000) == pytest.approx(38, abs=1)
    assert measuring_batch(model, 8, 512) == 32
