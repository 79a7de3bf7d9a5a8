"""A tiny sandbox by the project's own commands, for tests that need real models. Needs torch."""

from __future__ import annotations

from pathlib import Path

from training.configs import SampleConfig, SandboxConfig, TrainConfig
from training.train.config import train_config_type

# Arguments of vLLM: bytes for the KV cache of an engine, which would fill a gibibyte with zeros by default.
SMALL_CACHE = {"kv_cache_memory_bytes": 2**26}


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


def build_tiny_sandbox(out: Path) -> Path:
    """Policy, rewards, prompts and reward cache in ``out``; a few seconds."""
    from training.cache.sample import build_cache
    from training.sandbox.build import build_sandbox

    build_sandbox(
        SandboxConfig(
            out=out, num_reviews=1200, policy_texts=600, policy_hidden=64, policy_layers=1,
            train_prompts=6, heldout_prompts=5, max_length=96,
        )
    )  # fmt: skip
    build_cache(sample_config(out, out / "cache.jsonl"))
    return out


def train_tiny_vbon(sandbox: Path) -> Path:
    """A few steps of vBoN on it."""
    from training.train.run import train

    out = sandbox / "vbon"
    train("vbon", train_config(sandbox, out))
    return out
