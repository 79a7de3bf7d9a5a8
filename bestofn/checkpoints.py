"""Checks a Hugging Face model directory before anything heavy loads it, and names its revision.

Only safetensors are accepted: pickled weights run code when opened. Needs neither torch nor
transformers, so a bad path fails in milliseconds and with a sentence instead of a traceback.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bestofn.errors import CheckpointError

Kind = Literal["causal-lm", "reward", "adapter"]

HUB_PREFIX = "hf://"

_ARCHITECTURE_SUFFIX = {"causal-lm": "ForCausalLM", "reward": "ForSequenceClassification"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_FULL_HASH_LIMIT = 256 * 2**20
_SAMPLE_BLOCKS, _BLOCK = 64, 64 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked model directory.

    Attributes:
        path: the directory, or the hub id without its prefix, for the library to resolve.
        revision: content fingerprint, ``sha256:`` and 16 hex digits, or ``hub`` for a hub id.
    """

    path: str
    revision: str


def check_checkpoint(path: str, kind: Kind) -> Checkpoint:
    """Validate a model directory of the given kind.

    ``hf://org/model`` names a model of the hub and is passed on unchecked: the prefix keeps a
    misspelt path from being looked up on the internet.

    Raises:
        CheckpointError: missing, truncated, pickled only, or of another kind.
    """
    if path.startswith(HUB_PREFIX):
        return Checkpoint(path.removeprefix(HUB_PREFIX), "hub")
    directory = Path(path).expanduser()
    if not directory.exists():
        raise CheckpointError(
            f"model directory {path!r} does not exist; check the path (a model of the Hugging Face "
            "hub is written hf://org/name; the sandbox is made by scripts/demo)"
        )
    if not directory.is_dir():
        raise CheckpointError(f"{path!r} is a file; give the directory that holds config.json")
    try:
        return _checked(directory, kind)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error


def _checked(directory: Path, kind: Kind) -> Checkpoint:
    if kind == "adapter":
        _read_json(directory / "adapter_config.json")
        weights = [directory / "adapter_model.safetensors"]
    else:
        _check_config(directory, kind)
        _check_tokenizer(directory)
        weights = _weight_files(directory)
    for file in weights:
        _check_safetensors(file)
    return Checkpoint(str(directory), _fingerprint(directory, weights))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {path.name}: not a Hugging Face model directory"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return value


def _check_config(directory: Path, kind: Literal["causal-lm", "reward"]) -> None:
    config = _read_json(directory / "config.json")
    architectures = config.get("architectures") or ["(none)"]
    suffix = _ARCHITECTURE_SUFFIX[kind]
    if not any(str(name).endswith(suffix) for name in architectures):
        wanted = "a causal language model" if kind == "causal-lm" else "a sequence classifier"
        raise CheckpointError(
            f"{directory} is {architectures[0]}, not {wanted}: expected an architecture ending "
            f"in {suffix}"
        )
    if kind == "reward":
        num_labels = (
            len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
        )
        if num_labels != 1:
            raise CheckpointError(
                f"{directory} has a head of {num_labels} labels; a reward model needs exactly one "
                "logit (num_labels = 1)"
            )


def _check_tokenizer(directory: Path) -> None:
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{directory} has no tokenizer; expected {' or '.join(_TOKENIZER_FILES)}"
        )


def _weight_files(directory: Path) -> list[Path]:
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
        if names:
            return [directory / str(name) for name in names]
        raise CheckpointError(f"{index} names no weight file")
    if list(directory.glob("*.bin")):
        raise CheckpointError(
            f"{directory} holds pickled weights (*.bin) only; these can run code when opened. "
            "Convert it: save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"{directory} has no model.safetensors")


def _check_safetensors(path: Path) -> None:
    """Compare the size that the header promises with the size on disk."""
    if not path.is_file():
        raise CheckpointError(f"weight file {path} is missing")
    size = path.stat().st_size
    with path.open("rb") as handle:
        header_size = int.from_bytes(handle.read(8), "little")
        if size < 8 or header_size > size - 8:
            raise CheckpointError(f"{path} is truncated: {size} bytes, shorter than its own header")
        try:
            header = json.loads(handle.read(header_size))
        except ValueError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    expected = 8 + header_size + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"{path} is truncated or damaged: {size} bytes where its header promises {expected}; "
            "copy or train it again"
        )


def _fingerprint(directory: Path, weights: list[Path]) -> str:
    """SHA-256 over config and weights; files above 256 MiB contribute evenly spaced blocks."""
    digest = hashlib.sha256()
    config = directory / "config.json"
    for file in ([config] if config.is_file() else []) + weights:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as handle:
            if size <= _FULL_HASH_LIMIT:
                while block := handle.read(2**20):
                    digest.update(block)
            else:
                for step in range(_SAMPLE_BLOCKS):
                    handle.seek((size - _BLOCK) * step // (_SAMPLE_BLOCKS - 1))
                    digest.update(handle.read(_BLOCK))
    return f"sha256:{digest.hexdigest()[:16]}"
