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
