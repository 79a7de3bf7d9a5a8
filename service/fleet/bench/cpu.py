"""The CPU time of a side's processes (Linux)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def cpu_of_tree(root: int, without: frozenset[int] = frozenset()) -> dict[int, float]:
    """The seconds that each process below one has used so far, and it itself, by process id.

    Args:
        without: processes that are left out, with all below them.
    """
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command in parentheses may contain spaces.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        used[pid] = (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND
    found: dict[int, float] = {}
    left = [root]
    while left:
        pid = left.pop()
        if pid in without or pid not in used:
            continue
        found[pid] = used[pid]
        left += children.get(pid, [])
    return found


def titled(used: Mapping[int, float], title: str) -> dict[int, float]:
    """The processes among these whose command begins so; Ray names its own by what they run."""
    found = {}
    for pid, seconds in used.items():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if command.startswith(title.encode()):
            found[pid] = seconds
    return found


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """The seconds used between two looks, by processes that were there at both."""
    return sum(after[pid] - before[pid] for pid in before.keys() & after.keys())
