"""Determines which tokens end a response: the tokenizer's EOS, and those that the model's files name.

Chat models name several, often as a list in ``generation_config.json``. vLLM ends a response at each of
them, so sampling in training and for measurements must too. Importing this needs neither torch nor
transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vbon.errors import CheckpointError


def find_extra_stop_ids(path: str, tokenizer: Any) -> tuple[int, ...]:
    """Ids of the tokens that end a response besides the tokenizer's EOS, in ascending order.

    Args:
        path: a model's directory, or its hub id.

    Raises:
        CheckpointError: a file cannot be read, or does not name its tokens as ids.
    """
    return tuple(token for token in _declared(path)[0] if token != tokenizer.eos_token_id)


def stop_identity(path: str) -> dict[str, list[int]]:
    """The part of a record that names the tokens that end a response, where the revision does not.

    The revision covers ``config.json`` and the tokenizer. So this is empty for a model that names one token
    and names it there, and outputs that were made before this was recorded still count.

    Raises:
        CheckpointError: a file does not name its tokens as ids.
    """
    ids, config_ids = _declared(path)
    return {"eos_token_ids": ids} if len(ids) > 1 or ids != config_ids else {}


def _declared(path: str) -> tuple[list[int], list[int]]:
    """The ids that count, which are those of the generation config if there is one, and the config's."""
    config = _ids(path, "config.json") or []
    generation = _ids(path, "generation_config.json")
    return (config if generation is None else generation), config


def _ids(path: str, name: str) -> list[int] | None:
    """The sorted EOS ids that a file of the model names; ``None`` without the file or without the field."""
    file = _file(path, name)
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if found is None:
        return None
    ids = found if isinstance(found, list) else [found]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(f"eos_token_id of {file} is {found!r}; it must be token ids")
    return sorted(set(ids))


def _file(path: str, name: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise CheckpointError(f"cannot read {name} of {path}: {error}") from error
    return None if found is None else Path(found)
