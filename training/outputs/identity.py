"""Compares an output's record with the settings wanted now, to decide: reuse, resume, replace or fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.configs import TrainConfig
from vbon.errors import DataError

# Settings that do not change a single training step, so a run may be resumed with other values.
_INCIDENTAL = {
    "out",
    "checkpoint_every",
    "reward_batch_size",
    "replace",
    "heldout",
    "prompt_column",
    "encoding",
    "gold",
    "max_kl",
}


def run_identity(
    objective: str, config: TrainConfig, fingerprints: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings and fingerprints that tell a training run from another.

    Args:
        fingerprints: revisions and digests of the run's inputs.
    """
    settings = config.model_dump(mode="json", exclude=_INCIDENTAL)
    return {"objective": objective, **settings, **fingerprints}


def read_json_record(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; ``None`` if the file is missing, unreadable or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # RecursionError: nested too deeply
        return None
    return value if isinstance(value, dict) else None


def read_undamaged_record(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; ``None`` only if the file does not exist.

    For records that decide whether other files can be trusted.

    Raises:
        DataError: the file exists but does not contain a readable JSON object.
    """
    record = read_json_record(path)
    if record is None and path.exists():
        raise DataError(
            f"{path} is damaged (it contains no JSON object); restore it, or delete it together with the "
            "files that it describes"
        )
    return record


def is_same_output(
    output: Path, recorded: dict[str, Any], wanted: dict[str, Any], *, replace: bool
) -> bool:
    """Tell whether an existing output was made with the settings wanted now.

    Raises:
        DataError: the settings differ and ``replace`` is false; the message lists the differences.
    """
    differing = sorted(key for key in {*recorded, *wanted} if recorded.get(key) != wanted.get(key))
    if not differing:
        return True
    if replace:
        return False
    changes = ", ".join(f"{k}: {recorded.get(k)!r} -> {wanted.get(k)!r}" for k in differing)
    raise DataError(
        f"{output} was made with other settings ({changes}); choose another --out, or pass --replace"
    )
