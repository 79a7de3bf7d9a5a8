"""Builds the sandbox: tokenizer, reference policy, reward model, gold reward model and prompts.

The directory has this layout::

    policy/  reward/  gold/       Hugging Face directories (safetensors, tokenizer, config, card)
    prompts/train.jsonl           openings to fine-tune on
    prompts/heldout.jsonl         openings held out for evaluation
    prompts/validation.jsonl      further openings, to choose settings on
    sandbox.json                  resolved config, revision, seeds, versions, held-out metrics

Complete parts of the same configuration are kept, so an interrupted build continues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from training.configs import SandboxConfig
from training.outputs.identity import is_same_output, read_json_record
from training.sandbox.parts import Build, Part, model_parts
from training.sandbox.texts import sandbox_texts
from training.worker_pool import worker_pool
from vbon.errors import CheckpointError
from vbon.prompt_files import write_prompts
from vbon.prompts import Prompt
from vbon.storage.atomic import recover_directory, replacing_directory, write_json
from vbon.storage.checkpoints import Kind, check_checkpoint
from vbon.storage.locks import sole_writer
from vbon.storage.provenance import provenance

logger = logging.getLogger(__name__)


def build_sandbox(config: SandboxConfig) -> None:
    """Build the sandbox, or its missing parts.

    Raises:
        DataError: the corpus cannot be used.
        ExportError: a file could not be written; finished parts are kept.
    """
    begun = time.perf_counter()
    with sole_writer(config.out):
        settings = config.model_dump(mode="json", exclude={"replace", "out", "jobs"})
        metrics = _recorded_metrics(config, settings)
        # The texts come before anything is written, so that an unusable corpus does not damage an existing
        # sandbox.
        texts = sandbox_texts(config)
        # A part without metrics is unfinished or was made with other settings, and is built again.
        _write_manifest(config.out, settings, metrics)
        _write_prompts(config, texts.openings)
        missing = _missing(config.out, model_parts(config, texts), metrics)
        for name, found in _built(config, missing):
            metrics[name] = found
            _write_manifest(config.out, settings, metrics)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
            logger.info("%s: %s", config.out / name, shown)
    logger.info("sandbox in %s after %.0f s", config.out, time.perf_counter() - begun)


def _recorded_metrics(config: SandboxConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Metrics of the parts that an earlier build with the same settings finished.

    Raises:
        DataError: the sandbox was made with other settings, and ``replace`` is off.
    """
    manifest = read_json_record(config.out / "sandbox.json") or {}
    recorded = manifest.get("config")
    if recorded is not None and not is_same_output(
        config.out, recorded, settings, replace=config.replace
    ):
        logger.info("%s was made with other settings; building it again", config.out)
        return {}
    return dict(manifest.get("metrics", {}))


def _write_manifest(out: Path, settings: dict[str, Any], metrics: dict[str, Any]) -> None:
    write_json(out / "sandbox.json", {**provenance(settings), "metrics": metrics})


def _write_prompts(config: SandboxConfig, openings: list[str]) -> None:
    prompts, count = config.out / "prompts", config.train_prompts + config.heldout_prompts
    found = [Prompt(text=text) for text in openings]
    write_prompts(prompts / "train.jsonl", found[: config.train_prompts])
    write_prompts(prompts / "heldout.jsonl", found[config.train_prompts : count])
    # As many more, as far as the texts go, to choose settings on: held-out prompts are for the report.
    validation = found[count : count + config.heldout_prompts]
    if validation:
        write_prompts(prompts / "validation.jsonl", validation)


def _missing(out: Path, parts: Iterable[Part], metrics: dict[str, Any]) -> Iterator[Part]:
    """The parts that are not complete."""
    for part in parts:
        name, kind, _ = part
        recover_directory(out / name)
        if name in metrics and _is_intact(out / name, kind):
            logger.info("%s: kept", out / name)
        else:
            yield part


def _built(config: SandboxConfig, parts: Iterable[Part]) -> Iterator[tuple[str, dict[str, float]]]:
    """Build parts one after another, or side by side in processes; yield each with its metrics."""
    if config.jobs == 1:
        for name, _, build in parts:
            yield name, _build_part(config.out / name, build)
        return
    with worker_pool(config.jobs, logging.INFO) as pool:
        futures = {
            pool.submit(_build_part, config.out / name, build): name for name, _, build in parts
        }
        for future in as_completed(futures):
            yield futures[future], future.result()


def _build_part(target: Path, build: Build) -> dict[str, float]:
    """Build a model in one step, and return its metrics and the time it took."""
    started = time.perf_counter()
    with replacing_directory(target) as directory:
        metrics = build(directory)
    return {**metrics, "seconds": round(time.perf_counter() - started, 1)}


def _is_intact(path: Path, kind: Kind) -> bool:
    try:
        check_checkpoint(str(path.resolve()), kind)
    except CheckpointError:
        return False
    return True
