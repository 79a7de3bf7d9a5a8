"""Files of load tests: the settings that a child process reads, and the progress and results it writes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.settings import REMOTE_API_KEY
from vbon.prompt_files import write_prompts
from vbon.prompts import Prompt

_TAIL_BYTES = 2000  # of standard error, searched for its last line


class WorkingFiles:
    """A temporary directory with a directory for each load test and one for rendered reports.

    Attributes:
        root: the temporary directory; ``None`` until it is needed.
    """

    def __init__(self) -> None:
        self.root: Path | None = None

    def directory(self, name: str) -> Path:
        """A directory by its name, created again if a cleaner such as systemd-tmpfiles has removed it.

        Raises:
            OSError: it cannot be created.
        """
        if self.root is None or not _is_ours(self.root):
            self.root = Path(tempfile.mkdtemp(prefix="vbon-loadtests-"))
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path

    def delete(self) -> None:
        """Delete all files."""
        if self.root is not None:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root = None


def write_inputs(
    directory: Path, run_id: str, settings: Mapping[str, Any], prompts: Sequence[Prompt] | None
) -> Path:
    """Write the settings of a load test, and its prompts if given; return the settings file.

    Args:
        settings: values of :class:`service.loadtest.config.LoadTestSettings` by name.
    """
    values: dict[str, Any] = {**settings, "run_id": run_id, "out": str(directory)}
    values |= {"supervised": True, "store": "none", "api_key_env": REMOTE_API_KEY}
    if prompts is not None:
        file = directory / "prompts.jsonl"
        write_prompts(file, prompts)
        values |= {"prompts": str(file), "prompt_count": len(prompts)}
    text = "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())
    path = directory / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or ``None`` if the file is missing or incomplete."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found


def last_line_of_file(path: Path) -> str:
    """The last line of a file with a program's standard error, as :func:`last_line`."""
    output = b""
    with contextlib.suppress(OSError):
        output = path.read_bytes()
    return last_line(output)


def last_line(output: bytes) -> str:
    """The last line of a program's standard error, without the prefix ``error: ``."""
    lines = output[-_TAIL_BYTES:].decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it printed no error"


def delete_oldest(directory: Path, pattern: str, keep: int) -> None:
    """Delete all matching files except the ``keep`` newest, at least one."""
    files = sorted(directory.glob(pattern), key=lambda file: file.stat().st_mtime)
    for file in files[:-keep]:
        file.unlink(missing_ok=True)


def _toml(value: Any) -> str:
    """A number, truth value, string or list of these in TOML, which writes them as JSON does.

    There are two differences: TOML has no surrogate pairs, and requires U+007F to be escaped.
    """
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is_ours(root: Path) -> bool:
    """True if the directory exists and belongs to this user.

    Once it has been removed, any user may create a directory of the same name in /tmp.
    """
    try:
        found = root.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
