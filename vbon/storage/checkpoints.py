"""Checks a Hugging Face model directory before it is loaded, and determines its revision.

Only safetensors weights are accepted, since pickled weights run code when opened. The check needs
neither torch nor transformers, so a bad path fails within milliseconds and with a clear message.

A directory with ``checksums.json`` (every export of ``training`` has one) is read completely once, at about
a second per gigabyte, and its revision comes from that file. The content of other directories is not
verified; their revision is a fingerprint of config, tokenizer and weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vbon.errors import CheckpointError
from vbon.storage.atomic import write_json
from vbon.storage.checksums import CHECKSUMS, checksums_of, find_damage, is_sealed, sealed
from vbon.storage.json_files import parse_json, read_json_file

Kind = Literal["causal-lm", "reward", "adapter"]

HUB_PREFIX = "hf://"

_ARCHITECTURE_SUFFIX = {"causal-lm": "ForCausalLM", "reward": "ForSequenceClassification"}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
# The files that determine token ids, the rendering of chats, where answers end, or how an adapter is applied.
_FINGERPRINTED = (
    "config.json",
    "adapter_config.json",
    "tokenizer*.json",
    "tekken.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "additional_chat_templates/*",
    "generation_config.json",
)
_WEIGHTS_SUFFIX = ".safetensors"
_FULL_HASH_LIMIT = 256 * 2**20
_SAMPLE_BLOCKS, _BLOCK = 64, 64 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked model directory.

    Attributes:
        path: the directory, or the hub id without its prefix (the Hugging Face libraries resolve it).
        revision: ``sha256:`` and 16 hex digits of a content fingerprint, or ``hub`` for a hub id.
        stamps: size, times and inode of the files, taken before they were read.
    """

    path: str
    revision: str
    stamps: tuple[tuple[str | int, ...], ...] = field(default=(), compare=False, repr=False)


def has_changed(checkpoint: Checkpoint) -> bool:
    """Tell whether a file that determines answers was changed, added or removed since it was checked."""
    return bool(checkpoint.stamps) and checkpoint.stamps != _stamps(Path(checkpoint.path))


def at_real_path(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint at the directory that its path, which may be a link, leads to now."""
    if not checkpoint.stamps:
        return checkpoint
    real = Path(checkpoint.path).resolve()
    return Checkpoint(str(real), checkpoint.revision, _stamps(real))


def refuse_changed(checkpoint: Checkpoint) -> None:
    """Check a model that has just been loaded.

    Raises:
        CheckpointError: its files were changed since they were checked, so what was loaded may be a mixture.
    """
    if has_changed(checkpoint):
        raise CheckpointError(
            f"the files of {checkpoint.path} were changed while they were loaded; load it again once they "
            "are complete (write a new version beside it, and rename it into place)"
        )


def check_checkpoint(path: str, kind: Kind) -> Checkpoint:
    """Validate a model directory of the given kind.

    ``hf://org/model`` names a model of the Hugging Face hub and is accepted unchecked. Requiring the
    prefix keeps a misspelt path from being looked up on the internet.

    Raises:
        CheckpointError: the directory is missing, truncated, damaged, of another kind, or holds only
            pickled weights.
    """
    if path.startswith(HUB_PREFIX):
        return Checkpoint(path.removeprefix(HUB_PREFIX), "hub")
    directory = Path(path).expanduser()
    if not directory.exists():
        raise CheckpointError(
            f"model directory {path!r} does not exist; check the path (write hf://org/name for a model "
            "of the Hugging Face hub; scripts/demo creates the sandbox)"
        )
    if not directory.is_dir():
        raise CheckpointError(f"{path!r} is a file; give the directory that contains config.json")
    try:
        stamps = _stamps(directory)
        found = _checked(directory, kind)
        return Checkpoint(found.path, found.revision, stamps)
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    except CheckpointError:
        raise
    except Exception as error:  # anybody may have written these files, with values of any type
        raise CheckpointError(
            f"the files of {directory} are not those of a model: {type(error).__name__}: {error}"
        ) from error


def _checked(directory: Path, kind: Kind) -> Checkpoint:
    recorded = _recorded(directory)
    # Small files first: a damaged config must be reported as damaged, not as a model of another kind.
    _check_content(directory, recorded, weights=False)
    if kind == "adapter":
        _read_json(directory / "adapter_config.json")
        weights = [directory / "adapter_model.safetensors"]
    else:
        _check_config(directory, kind)
        _check_tokenizer(directory)
        weights = weight_files(directory)
    for file in weights:
        _check_safetensors(file)
    if recorded is None:
        return Checkpoint(str(directory), _fingerprint(directory, weights))
    _check_content(directory, recorded, weights=True)
    return Checkpoint(str(directory), str(recorded["revision"]))


def write_checksums(directory: Path, kind: Kind) -> None:
    """Write ``checksums.json`` into a finished model directory, for :func:`check_checkpoint`.

    Raises:
        CheckpointError: the directory does not hold a model of this kind.
        ExportError: writing failed.
    """
    (directory / CHECKSUMS).unlink(missing_ok=True)
    revision = _checked(directory, kind).revision
    write_json(
        directory / CHECKSUMS, sealed({"revision": revision, "files": checksums_of(directory)})
    )


def _recorded(directory: Path) -> dict[str, Any] | None:
    """The content of ``checksums.json``, or ``None`` if the directory has none."""
    if not (directory / CHECKSUMS).exists():
        return None
    recorded = _read_json(directory / CHECKSUMS)
    if not is_sealed(recorded):
        raise CheckpointError(
            f"{directory / CHECKSUMS} is damaged; restore {directory} or export it again, or delete "
            "that file to use the others unverified"
        )
    return recorded


def _check_content(directory: Path, recorded: dict[str, Any] | None, *, weights: bool) -> None:
    """Compare the weights, or all other files, with their checksums."""
    if recorded is None:
        return
    sums = {n: s for n, s in recorded["files"].items() if n.endswith(_WEIGHTS_SUFFIX) == weights}
    wrong = find_damage(directory, sums)
    if wrong is not None:
        raise CheckpointError(
            f"{wrong}; restore {directory} or export it again (if you changed it yourself, delete "
            f"its {CHECKSUMS})"
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {path.name}: not a Hugging Face model directory"
        )
    try:
        value = read_json_file(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not contain a JSON object")
    return value


def _check_config(directory: Path, kind: Literal["causal-lm", "reward"]) -> None:
    config = _read_json(directory / "config.json")
    architectures = config.get("architectures") or ["(none)"]
    suffix = _ARCHITECTURE_SUFFIX[kind]
    if not any(str(name).endswith(suffix) for name in architectures):
        wanted = "a causal language model" if kind == "causal-lm" else "a sequence classifier"
        raise CheckpointError(
            f"{directory} is {architectures[0]}, not {wanted}; the architecture must end in {suffix}"
        )
    if kind == "reward":
        num_labels = (
            len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
        )
        if num_labels != 1:
            raise CheckpointError(
                f"{directory} has {num_labels} output labels; a reward model needs exactly one "
                "(num_labels = 1)"
            )


def _check_tokenizer(directory: Path) -> None:
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(
            f"{directory} has no tokenizer; it needs one of {', '.join(_TOKENIZER_FILES)}"
        )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model: one, or the shards that its index names.

    Raises:
        CheckpointError: there are none.
    """
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index} lists no weight files")
        return [directory / name for name in sorted({str(name) for name in names.values()})]
    if list(directory.glob("*.bin")):
        raise CheckpointError(
            f"{directory} contains only pickled weights (*.bin), which can run code when opened; "
            "convert them with save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"{directory} has no model.safetensors")


def _check_safetensors(path: Path) -> None:
    """Compare the size of a weight file with the size that its header states."""
    if not path.is_file():
        raise CheckpointError(f"weight file {path} is missing")
    size = path.stat().st_size
    with path.open("rb") as handle:
        header_size = int.from_bytes(handle.read(8), "little")
        if size < 8 or header_size > size - 8:
            raise CheckpointError(f"{path} is truncated: {size} bytes, shorter than its own header")
        try:
            header = parse_json(handle.read(header_size))
            ends = [int(e["data_offsets"][1]) for n, e in header.items() if n != "__metadata__"]
        except (ValueError, AttributeError, LookupError, TypeError, ArithmeticError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error!r}") from error
    expected = 8 + header_size + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"{path} is truncated or damaged: {size} bytes, its header states {expected}; "
            "copy or train it again"
        )


def _fingerprint(directory: Path, weights: list[Path]) -> str:
    """A SHA-256 fingerprint of the config and tokenizer files and the weights.

    Files above 256 MiB contribute evenly spaced blocks only.
    """
    digest = hashlib.sha256()
    for file in small_files(directory) + weights:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as handle:
            if size <= max(_FULL_HASH_LIMIT, _BLOCK):
                while block := handle.read(2**20):
                    digest.update(block)
            else:
                for step in range(_SAMPLE_BLOCKS):
                    handle.seek((size - _BLOCK) * step // (_SAMPLE_BLOCKS - 1))
                    digest.update(handle.read(_BLOCK))
    return f"sha256:{digest.hexdigest()[:16]}"


def small_files(directory: Path) -> list[Path]:
    """The files that determine answers, without the weights, in order."""
    found = {file for pattern in _FINGERPRINTED for file in directory.glob(pattern)}
    return sorted(file for file in found if file.is_file())


def _stamps(directory: Path) -> tuple[tuple[str | int, ...], ...]:
    weights = sorted([*directory.glob(f"*{_WEIGHTS_SUFFIX}"), *directory.glob(CHECKSUMS)])
    stamps = []
    for file in [*small_files(directory), *weights]:
        try:
            seen = file.stat()
        except OSError:  # removed meanwhile, or a link to nowhere
            continue
        stamps.append((str(file), seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
    return tuple(stamps)
