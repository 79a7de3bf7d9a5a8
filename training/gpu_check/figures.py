"""Figures of a finished step, read from the files that it wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.configs import TrainConfig
from training.gpu_check.plan import SPEED, CheckStep, Plan
from training.outputs.identity import read_json_record
from vbon.storage.training_record import TRAINING_RECORD

GB = 1e9


def figures_of(step: CheckStep, plan: Plan, record: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that a finished step measured.

    Args:
        record: time and peak memory of its process (:mod:`training.gpu_check.measured`).
    """
    found: dict[str, Any] = {"seconds": round(record["seconds"], 1)}
    for name in ("peak_gpu_bytes", "peak_host_bytes"):
        if name in record:
            found[name.replace("_bytes", "_gb")] = round(record[name] / GB, 2)
    output = plan.output(step.name)
    if step.kind == "training":
        found |= _training(output)
        measured = step.name in SPEED and "peak_gpu_bytes" in record
        expected = _expected_bytes(output, Path(plan.policy)) if measured else None
        if expected is not None:
            found["arithmetic_gb"] = round(expected / GB, 2)
            found["of_arithmetic"] = round(record["peak_gpu_bytes"] / expected, 2)
    if step.kind == "cache":
        found |= _cache(_option(step, "--out"), record["seconds"])
    if step.kind == "evaluation":
        found |= _evaluation(output / "evaluation.json")
    return found


def _training(output: Path) -> dict[str, Any]:
    """Steps, samples a second and the first and last losses and KL; the first step warms up."""
    lines = (output / "history.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    timed = rows[1:] or rows
    seconds = [row["sample_s"] + row["score_s"] + row["learn_s"] for row in timed]
    rates = [row["sequences_trained"] / max(s, 1e-9) for row, s in zip(timed, seconds, strict=True)]
    return {
        "steps": len(rows),
        "samples_per_s": round(statistics.median(rates), 1),
        "sampling_share": round(sum(row["sample_s"] for row in timed) / max(sum(seconds), 1e-9), 2),
        "first": _progress(rows[0]),
        "last": _progress(rows[-1]),
    }


def _progress(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("loss", "kl_nats", "log_cdf", "reward", "grad_norm")
    return {name: round(row[name], 4) for name in names if row.get(name) is not None}


def _cache(out: str, seconds: float) -> dict[str, Any]:
    """Samples of a cache; the rate counts the start of the engine."""
    with Path(out).open(encoding="utf-8") as lines:
        samples = sum(len(json.loads(line)["responses"]) for line in lines)
    return {"samples": samples, "samples_per_s": round(samples / seconds, 1)}


def _evaluation(file: Path) -> dict[str, Any]:
    rows = (read_json_record(file) or {}).get("rows", [])
    return {
        row["method"]: {
            name: row[name] for name in ("win_rate", "gold_win_rate", "kl_nats") if row.get(name)
        }
        for row in rows
        if row["method"] != "best-of-n"
    }


def _expected_bytes(output: Path, policy: Path) -> float | None:
    """Memory by the arithmetic of docs/scale.md, without the reward model's, with the recorded settings."""
    recorded = read_json_record(output / TRAINING_RECORD)
    if recorded is None or not (policy / "config.json").exists():
        return None
    from training.train.size_defaults import expected_bytes
    from vbon.storage.model_shape import read_model_shape

    shared = TrainConfig.model_fields.keys()
    config = TrainConfig(**{k: v for k, v in recorded["config"].items() if k in shared})
    batch = config.prompts_per_step * config.samples_per_prompt
    config = config.model_copy(update={"micro_batch_size": min(config.micro_batch_size, batch)})
    return expected_bytes(read_model_shape(policy), config)


def _option(step: CheckStep, name: str) -> str:
    return step.words[step.words.index(name) + 1]
