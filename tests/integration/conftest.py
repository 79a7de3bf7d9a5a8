"""A tiny sandbox, made once a session by the project's own command, and what is trained on it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from bestofn.engine import Engine
from service.runtime import Runtime
from service.settings import ServiceSettings
from training.configs import SampleConfig, SandboxConfig, TrainConfig
from training.objective_config import train_config_type


def sample_config(sandbox: Path, out: Path, **changes: object) -> SampleConfig:
    values: dict[str, object] = {
        "policy": str(sandbox / "policy"),
        "reward": str(sandbox / "reward"),
        "prompts": sandbox / "prompts" / "train.jsonl",
        "out": out,
        "num_samples": 32,
        "max_new_tokens": 12,
        "backend": "transformers",
    }
    return SampleConfig(**{**values, **changes})  # type: ignore[arg-type]


def train_config(
    sandbox: Path, out: Path, objective: str = "vbon", **changes: object
) -> TrainConfig:
    values: dict[str, object] = {
        "policy": str(sandbox / "policy"),
        "reward": str(sandbox / "reward"),
        "cache": sandbox / "cache.jsonl",
        "heldout": sandbox / "prompts" / "heldout.jsonl",
        "out": out,
        "steps": 4,
        "prompts_per_step": 4,
        "samples_per_prompt": 4,
        "micro_batch_size": 16,
        "max_new_tokens": 12,
        "warm_start_steps": 3,
        "checkpoint_every": 2,
    }
    config_type = train_config_type(objective)
    if "num_samples" in config_type.model_fields:
        values["num_samples"] = 4
    return config_type(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training.sample import build_cache
    from training.sandbox.build import build_sandbox

    out = tmp_path_factory.mktemp("sandbox")
    build_sandbox(
        SandboxConfig(
            out=out, num_reviews=1200, policy_texts=600, policy_hidden=64, policy_layers=1,
            train_prompts=6, heldout_prompts=5, max_length=96,
        )
    )  # fmt: skip
    build_cache(sample_config(out, out / "cache.jsonl"))
    return out


@pytest.fixture(scope="session")
def vbon_checkpoint(sandbox: Path) -> Path:
    from training.run import train

    out = sandbox / "vbon"
    train("vbon", train_config(sandbox, out))
    return out


@pytest.fixture(scope="session")
def lora_checkpoint(sandbox: Path) -> Path:
    """Tuned hard enough that it cannot be mistaken for the reference."""
    from training.run import train

    out = sandbox / "lora"
    config = train_config(
        sandbox, out, lora_rank=8, steps=8, learning_rate=3e-2, warm_start_steps=0, heldout=None
    )
    train("vbon", config)
    return out


@pytest.fixture(scope="session")
async def runtime(
    sandbox: Path, vbon_checkpoint: Path, lora_checkpoint: Path
) -> AsyncGenerator[Runtime, None]:
    """The service's own runtime over real vLLM: the only start of it in a session."""
    pytest.importorskip("vllm")
    from service.assembly import build_runtime

    settings = ServiceSettings(
        policies={
            "ref": str(sandbox / "policy"),
            "vbon": str(vbon_checkpoint),
            "lora": str(lora_checkpoint / "adapter"),
        },
        reward=str(sandbox / "reward"),
        gold=str(sandbox / "gold"),
        default_max_tokens=24,
    )
    built = build_runtime(settings)
    try:
        await built.start()
        yield built
    finally:
        await built.stop()


@pytest.fixture(scope="session")
async def vllm_ref(runtime: Runtime) -> Engine:
    return runtime.policies["ref"]
