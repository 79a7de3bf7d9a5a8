"""Servers that a row starts for its measurement and stops afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import httpx

from service.bench.wire import SideError

START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 20.0


@asynccontextmanager
async def running(
    command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, BinaryIO], None]:
    """Run a process; yield it and its log file. Afterwards it and all its children are ended."""
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process, log
        finally:
            if process.returncode is None:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
            # Its children are in the same session, for example the engine of `vllm serve`.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def wait_until_healthy(
    process: asyncio.subprocess.Process, log: BinaryIO, url: str, name: str
) -> None:
    """Wait until the URL answers 200.

    Raises:
        SideError: the process ended first or took too long; the message has the end of its log.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S), httpx.AsyncClient() as client:
            while process.returncode is None:
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(url)).status_code == 200:
                        return
                await asyncio.sleep(0.2)
    log.seek(0)
    words = log.read().decode(errors="replace")[-3000:]
    ended = process.returncode
    how = (
        f"did not answer within {START_TIMEOUT_S:g} s"
        if ended is None
        else f"ended with status {ended}"
    )
    raise SideError(f"{name} {how}:\n{words}")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    """A process and its children, and theirs (Linux)."""
    found, new = [pid], [pid]
    while new:
        children = []
        for one in new:
            for file in Path("/proc", str(one), "task").glob("*/children"):
                try:
                    children += [int(child) for child in file.read_text().split()]
                except OSError:  # it has ended meanwhile
                    continue
        found += children
        new = children
    return found


def status_kib(pid: int) -> dict[str, int]:
    """The memory figures of a process in KiB, by their names in ``/proc``; none once it has ended."""
    try:
        lines = Path("/proc", str(pid), "status").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return {}
    fields = (line.split() for line in lines)
    return {one[0].rstrip(":"): int(one[1]) for one in fields if one[-1] == "kB"}


def peak_mib(pids: Sequence[int]) -> float | None:
    """The sum of each process's largest resident memory, MiB; ``None`` if none is left (Linux)."""
    peaks = [found for pid in pids if (found := status_kib(pid).get("VmHWM")) is not None]
    return sum(peaks) / 1024 if peaks else None


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU time of the processes so far, of all their threads, seconds (Linux)."""
    ticks = 0
    for pid in pids:
        try:
            content = Path("/proc", str(pid), "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        # The name, in brackets, may contain anything; user and system time are the 14th and 15th field.
        fields = content.rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
