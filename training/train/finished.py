"""Recognises a finished run, so that the same command does not train it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.configs import TrainConfig
from training.outputs.identity import is_same_output, read_json_record
from vbon.errors import CheckpointError, DataError
from vbon.storage.checkpoints import Kind, check_checkpoint
from vbon.storage.evaluation_record import MethodRow
from vbon.storage.training_record import ADAPTER_DIRECTORY, TRAINING_RECORD

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """An exported checkpoint.

    Attributes:
        row: held-out figures, ``None`` if none were measured.
        cost: samples, tokens and seconds that the training took.
    """

    out: Path
    row: MethodRow | None
    cost: Mapping[str, Any]


def find_finished_run(config: TrainConfig, identity: dict[str, Any]) -> FinishedRun | None:
    """The output of this very run if it is complete and undamaged, otherwise ``None``.

    Raises:
        CheckpointError: the output is damaged, and ``replace`` is off.
        DataError: the output belongs to another run or to something else, and ``replace`` is off.
    """
    out, replace = config.out, config.replace
    if not (out / TRAINING_RECORD).exists():
        if not replace and out.exists() and any(out.iterdir()):
            raise DataError(
                f"{out} already exists and is not the output of a training run: it has no {TRAINING_RECORD}; "
                "choose another --out, or pass --replace to overwrite it"
            )
        return None
    if not _is_intact(out, "causal-lm", replace=replace):
        return None
    record = read_json_record(out / TRAINING_RECORD)
    if record is None or not is_same_output(
        out, record.get("identity", {}), identity, replace=replace
    ):
        return None
    if config.exports_adapter and not _is_intact(
        out / ADAPTER_DIRECTORY, "adapter", replace=replace
    ):
        return None
    row = record["heldout"]
    return FinishedRun(out, None if row is None else MethodRow.model_validate(row), record["cost"])


def _is_intact(directory: Path, kind: Kind, *, replace: bool) -> bool:
    try:
        check_checkpoint(str(directory.resolve()), kind)
    except CheckpointError as error:
        if not replace:
            raise CheckpointError(f"{error}, or train it again with --replace") from error
        logger.warning("%s; training it again", error)
        return False
    return True


def warn_of_kept_figures(config: TrainConfig) -> None:
    """Warn if the checkpoint's held-out figures are of other prompts or another gold reward model."""
    if config.heldout is None:
        return
    recorded = (read_json_record(config.out / TRAINING_RECORD) or {}).get("config", {})
    for key, wanted in config.model_dump(mode="json", include={"heldout", "gold"}).items():
        if wanted is not None and recorded.get(key) != wanted:
            logger.warning(
                "%s: its held-out figures were measured with %s %s, not with %s, and are not measured "
                "again; run `evaluate` for that",
                config.out,
                key,
                recorded.get(key) or "none",
                wanted,
            )
