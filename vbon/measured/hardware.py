"""The machine's hardware in one line, by which a measured table knows the machine that it was measured on."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_PATIENCE_S = 20


@cache
def describe_hardware() -> str:
    """The GPUs that this process may use, or the CPU, and the number of cores: ``2 cores, x86_64 EPYC``.

    The first call may start ``nvidia-smi``, which takes a while.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counted = f"{cores} core" if cores == 1 else f"{cores} cores"
    gpus = _gpus()
    return ", ".join([*gpus, counted, *([] if gpus else [_processor()])])


def _gpus() -> list[str]:
    """Each kind of GPU with its number; asking torch would start CUDA in this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or (visible is not None and visible.strip() in ("", "-1")):
        return []
    query = ["--query-gpu=name", "--format=csv,noheader"]
    if visible is not None:
        query.append(f"--id={visible.strip()}")
    try:
        told = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=_PATIENCE_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    names = Counter(line.strip() for line in told.splitlines() if line.strip())
    return [f"{count} x {name}" for name, count in names.items()]


def _processor() -> str:
    """The architecture and, on Linux, the name of the CPU."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(errors="replace"), re.M)
    except OSError:
        found = None
    return f"{platform.machine()} {found[1].strip()}" if found else platform.machine()
