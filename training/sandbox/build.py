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
from collections.abc import Callable, Iterable, Iterator
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

    def prepare() -> tuple[list[Part], dict[str, list[Prompt]]]:
        texts = sandbox_texts(config)
        return model_parts(config, texts), _prompts(config, texts.openings)

    settings = config.model_dump(mode="json", exclude={"replace", "out", "jobs"})
    build_models(config.out, "sandbox", settings, prepare, jobs=config.jobs, replace=config.replace)


def build_models(
    out: Path,
    record: str,
    settings: dict[str, Any],
    prepare: Callable[[], tuple[list[Part], dict[str, list[Prompt]]]],
    *,
    jobs: int,
    replace: bool,
) -> None:
    """Build the models and prompt files of a directory, or those that are missing.

    Args:
        record: name of the directory's record, ``RECORD.json``, with the settings and each part's metrics.
        prepare: gives the parts, and the prompts by the name of their file.

    Raises:
        DataError: the directory was made with other settings and ``replace`` is off; or from ``prepare``.
        ExportError: a file could not be written; finished parts are kept.
    """
    begun, file = time.perf_counter(), out / f"{record}.json"
    with sole_writer(out):
        metrics = _recorded_metrics(out, file, settings, replace=replace)
        # The texts come before anything is written, so that an unusable corpus does not damage what is
        # there.
        parts, prompts = prepare()
        # A part without metrics is unfinished or was made with other settings, and is built again.
        _write_manifest(file, settings, metrics)
        for name, found in prompts.items():
            write_prompts(out / "prompts" / f"{name}.jsonl", found)
        for name, measured in _built(out, jobs, _missing(out, parts, metrics)):
            metrics[name] = measured
            _write_manifest(file, settings, metrics)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in measured.items())
            logger.info("%s: %s", out / name, shown)
    logger.info("%s in %s after %.0f s", record, out, time.perf_counter() - begun)


def _recorded_metrics(
    out: Path, file: Path, settings: dict[str, Any], *, replace: bool
) -> dict[str, Any]:
    """Metrics of the parts that an earlier build with the same settings finished.

    Raises:
        DataError: the models were made with other settings, and ``replace`` is off.
    """
    manifest = read_json_record(file) or {}
    recorded = manifest.get("config")
    if recorded is not None and not is_same_output(out, recorded, settings, replace=replace):
        logger.info("%s was made with other settings; building it again", out)
        return {}
    return dict(manifest.get("metrics", {}))


def _write_manifest(file: Path, settings: dict[str, Any], metrics: dict[str, Any]) -> None:
    write_json(file, {**provenance(settings), "metrics": metrics})


def _prompts(config: SandboxConfig, openings: list[str]) -> dict[str, list[Prompt]]:
    """The prompts of each file."""
    count = config.train_prompts + config.heldout_prompts
    found = [Prompt(text=text) for text in openings]
    # As many more, as far as the texts go, to choose settings on: held-out prompts are for the report.
    validation = found[count : count + config.heldout_prompts]
    return {
        "train": found[: config.train_prompts],
        "heldout": found[config.train_prompts : count],
        **({"validation": validation} if validation else {}),
    }


def _missing(out: Path, parts: Iterable[Part], metrics: dict[str, Any]) -> Iterator[Part]:
    """The parts that are not complete."""
    for part in parts:
        name, kind, _ = part
        recover_directory(out / name)
        if name in metrics and _is_intact(out / name, kind):
            logger.info("%s: kept", out / name)
        else:
            yield part


def _built(out: Path, jobs: int, parts: Iterable[Part]) -> Iterator[tuple[str, dict[str, float]]]:
    """Build parts one after another, or side by side in processes; yield each with its metrics."""
    if jobs == 1:
        for name, _, build in parts:
            yield name, _build_part(out / name, build)
        return
    with worker_pool(jobs, logging.INFO) as pool:
        futures = {pool.submit(_build_part, out / name, build): name for name, _, build in parts}
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
