"""Submitted checkpoints: where their directories may lie, and the check of their files."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from service.distil.alike import check_reads_alike
from service.store import StoredCheckpoint
from vbon.distil.decision import Decision
from vbon.errors import CheckpointError, InvalidInputError
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.checksums import CHECKSUMS

ROUNDS = "rounds"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def submitted(directory: Path, path: str, decision: Decision, reference: str) -> StoredCheckpoint:
    """The checkpoint of a path, whose files are read and compared with their checksums.

    Args:
        directory: that of ``distil.dir``.
        path: relative to it, or absolute: ``rounds/ID/...``.
        reference: path of the reference policy.

    Raises:
        InvalidInputError: the path is elsewhere, or its files are not those of a whole checkpoint that reads
            prompts as the reference policy does.
    """
    try:
        rounds = (directory / ROUNDS).resolve()
        found = (directory / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links, a NUL
        raise _refused(f"the path {path!r:.200} cannot be used: {error}") from error
    if not found.is_relative_to(rounds) or found == rounds:
        raise _refused(
            f"the path {path!r:.200} is not below {rounds}, where checkpoints of this server lie; send "
            f"{ROUNDS}/ID/checkpoint"
        )
    name = found.relative_to(rounds).parts[0]
    if not _ID.fullmatch(name):
        raise _refused(
            f"{name!r:.80} cannot be the id of a checkpoint; use up to 64 letters, digits, . _ -"
        )
    if not found.is_dir():
        raise _refused(f"there is no directory {found}; write the checkpoint there first")
    if not (found / CHECKSUMS).is_file():
        raise _refused(
            f"{found} has no {CHECKSUMS}, so damage could not be seen; send a checkpoint that `vbon train` "
            "has written"
        )
    kind = "adapter" if (found / "adapter_config.json").is_file() else "causal-lm"
    try:
        revision = check_checkpoint(str(found), kind).revision  # type: ignore[arg-type]
        _check_alike(found, reference)
    except CheckpointError as error:
        raise _refused(str(error)) from error
    return StoredCheckpoint(
        name, datetime.now(UTC), str(found), revision, decision.model_dump(mode="json")
    )


def _check_alike(found: Path, reference: str) -> None:
    try:
        check_reads_alike(found, reference)
    except CheckpointError:
        raise
    except Exception as error:  # anybody may have written these files, with values of any type
        raise CheckpointError(
            f"the tokenizers of {found} and {reference} cannot be compared: {type(error).__name__}: {error}"
        ) from error


def _refused(message: str) -> InvalidInputError:
    return InvalidInputError(message, field="path")
