"""Checks that a checkpoint takes every prompt that the reference policy takes, and reads it alike.

In mode ``auto``, users do not know which one answers. So a prompt that best-of-N accepts must not be refused
or laid out in another way because a checkpoint is to answer it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vbon.engine import ModelInfo
from vbon.errors import CheckpointError
from vbon.storage.json_files import read_json_file

_REMEDY = "train it from the reference policy, whose files `vbon train` keeps"


def check_reads_alike(checkpoint: Path, reference: str) -> None:
    """Check that vocabulary and chat template are those of the reference policy.

    Without a tokenizer in both directories, nothing is compared: adapters may have none, and a reference
    policy on a server or of the hub has no directory.

    Raises:
        CheckpointError: they differ.
    """
    other = Path(reference)
    if not (other / "tokenizer.json").is_file() or not (checkpoint / "tokenizer.json").is_file():
        return
    own, theirs = _vocabulary(checkpoint), _vocabulary(other)
    if own != theirs:
        different = sorted(own.items() ^ theirs.items(), key=lambda one: (one[1], one[0]))
        token, number = different[0]
        raise CheckpointError(
            f"{checkpoint} has another vocabulary than the reference policy, first at token {number}, "
            f"{token!r:.40}; {_REMEDY}"
        )
    if _chat_template(checkpoint) != _chat_template(other):
        raise CheckpointError(
            f"{checkpoint} has another chat template than the reference policy, so the same chat would be "
            f"another prompt; {_REMEDY}"
        )


def check_context(checkpoint: ModelInfo, reference: ModelInfo) -> None:
    """Check that the longest prompt of the reference policy fits.

    Raises:
        CheckpointError: the checkpoint's context is shorter.
    """
    if checkpoint.max_model_len < reference.max_model_len:
        raise CheckpointError(
            f"{checkpoint.path} takes {checkpoint.max_model_len} tokens and the reference policy "
            f"{reference.max_model_len}, so prompts that best-of-N accepts would be refused; {_REMEDY}, or "
            "set engine.max_model_len to what both take"
        )


def _vocabulary(directory: Path) -> dict[str, int]:
    """The id of each token; empty if the file has none."""
    found = _json(directory / "tokenizer.json")
    model = found.get("model")
    tokens = model.get("vocab", {}) if isinstance(model, Mapping) else {}
    if isinstance(tokens, list):  # of pairs of token and score, in the order of their ids
        tokens = {str(pair[0]): number for number, pair in enumerate(tokens)}
    added = {one["content"]: one["id"] for one in found.get("added_tokens") or ()}
    return {**tokens, **added}


def _chat_template(directory: Path) -> Any:
    """The chat template, in whichever of its two places; ``None`` without one."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    config = directory / "tokenizer_config.json"
    return _json(config).get("chat_template") if config.is_file() else None


def _json(file: Path) -> dict[str, Any]:
    return dict(read_json_file(file))
