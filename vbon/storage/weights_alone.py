"""Tells whether a new version of a model differs from the one in use in the values of its weights alone.

Weights can be changed in a running engine; everything else that determines answers cannot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbon.errors import CheckpointError, ReloadRefusedError
from vbon.storage.checkpoints import Checkpoint, small_files, weight_files
from vbon.storage.json_files import parse_json, read_json_file

WITHOUT_IN_PLACE = "reload it without in_place"
# They tell where a config comes from and change nothing.
_ORIGIN = ("_name_or_path", "transformers_version")
_CONFIGS = ("config.json", "generation_config.json")


@dataclass(frozen=True, slots=True)
class BesideWeights:
    """All of a checkpoint except the values of its weights.

    Attributes:
        files: a digest of each file that determines answers, by its name.
        tensors: type and shape of each weight, by its name.
    """

    files: Mapping[str, str]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    def difference(self, new: BesideWeights) -> str:
        """The first difference of a new version in one sentence; empty if only values of weights differ."""
        for name in sorted({*self.files, *new.files}):
            if name not in new.files:
                return f"{name} is missing"
            if self.files.get(name) != new.files[name]:
                return f"{name} is new" if name not in self.files else f"{name} has changed"
        for name in sorted({*self.tensors, *new.tensors}):
            old, now = self.tensors.get(name), new.tensors.get(name)
            if old != now:
                return f"weight {name} is {_told(now)} instead of {_told(old)}"
        return ""


@dataclass(frozen=True, slots=True)
class NewWeights:
    """A checked checkpoint that differs from the one that an engine serves in its weights alone.

    Attributes:
        beside: what it holds beside its weights.
    """

    checkpoint: Checkpoint
    beside: BesideWeights


def new_weights(found: Checkpoint, served: BesideWeights) -> NewWeights:
    """The new weights of a checked directory, to take the place of those that are served.

    Raises:
        CheckpointError: its files cannot be read.
        ReloadRefusedError: it differs in more than its weights.
    """
    beside = read_beside_weights(found)
    if beside is None:
        raise ReloadRefusedError(f"a model of the hub has no files to compare; {WITHOUT_IN_PLACE}")
    difference = served.difference(beside)
    if difference:
        raise ReloadRefusedError(
            f"{found.path} differs from what is served in more than its weights: {difference}; "
            f"{WITHOUT_IN_PLACE}"
        )
    return NewWeights(found, beside)


def read_beside_weights(checkpoint: Checkpoint) -> BesideWeights | None:
    """All of a checked model except the values of its weights; ``None`` for a model of the hub.

    Raises:
        CheckpointError: its files cannot be read.
    """
    if not checkpoint.stamps:
        return None
    try:
        return _read(Path(checkpoint.path))
    except Exception as error:  # anybody may have written these files, with values of any type
        raise CheckpointError(
            f"cannot read the files of {checkpoint.path}: {type(error).__name__}: {error}"
        ) from error


def _read(directory: Path) -> BesideWeights:
    files = [*small_files(directory), *sorted(directory.glob("*.py"))]
    digests = {str(file.relative_to(directory)): _digest(file) for file in files}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in weight_files(directory):
        tensors |= _tensors(file)
    return BesideWeights(digests, tensors)


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if file.name in _CONFIGS:
        config: dict[str, Any] = read_json_file(file)
        told = {name: value for name, value in config.items() if name not in _ORIGIN}
        content = json.dumps(told, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    with file.open("rb") as handle:
        header = parse_json(handle.read(int.from_bytes(handle.read(8), "little")))
    return {
        name: (str(one["dtype"]), tuple(one["shape"]))
        for name, one in header.items()
        if name != "__metadata__"
    }


def _told(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {list(tensor[1])}"
