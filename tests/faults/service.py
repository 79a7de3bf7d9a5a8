"""The real service as a process of its own, to be broken."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
START_S, STOP_S = 600.0, 40.0
# A cache of 64 MiB holds all that faults decode at once; each engine would fill a gibibyte with zeros.
ENGINE_FLAGS = ("--engine.enforce-eager", "--engine.args", f"kv_cache_memory_bytes={2**26}")
BODY: dict[str, Any] = {"prompt": "the film was", "n": 4, "max_tokens": 12}


@dataclass
class Service:
    """A running ``python -m service``.

    Attributes:
        process: of the front end; engines and reward workers are its children.
        log: everything it has printed.
    """

    url: str
    process: psutil.Popen
    log: Path
    client: httpx.AsyncClient

    async def ask(self, mode: str = "bon", **changes: Any) -> httpx.Response | Exception:
        """One request's response, or what came in its place."""
        try:
            return await self.client.post("/generate", params={"mode": mode}, json=BODY | changes)
        except httpx.HTTPError as error:
            return error

    async def ready(self) -> bool:
        """True if the service says that it is ready."""
        with suppress(httpx.HTTPError):
            return (await self.client.get("/readyz")).status_code == 200
        return False

    async def until_ready(self, limit_s: float = START_S) -> float:
        """Wait for it; the seconds that took.

        Raises:
            RuntimeError: it ended or took too long; with the end of its log.
        """
        begun = perf_counter()
        while not await self.ready():
            ended = self.process.poll()
            if ended is not None or perf_counter() - begun > limit_s:
                kept = self.log.is_file()  # /dev/full has no end
                end = self.log.read_text(errors="replace")[-3000:] if kept else ""
                raise RuntimeError(f"not ready ({ended}) after {limit_s:g} s:\n{end}")
            await asyncio.sleep(0.1)
        return perf_counter() - begun

    async def until_not_ready(self, limit_s: float = 60.0) -> bool:
        """Wait until it says that it is not ready; false if it never did."""
        begun = perf_counter()
        while await self.ready():
            if perf_counter() - begun > limit_s:
                return False
            await asyncio.sleep(0.02)
        return True

    def children(self, containing: str = "") -> list[psutil.Process]:
        """Processes below it whose command line or name contains a text, oldest first."""
        found = []
        for child in self.process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if containing in " ".join([child.name(), *child.cmdline()]):
                    found.append(child)
        return sorted(found, key=lambda child: child.create_time())

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over its labels, or over those series that have these; 0 without any."""
        text = (await self.client.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.partition("{")[0].split(" ")[0] == name]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        chosen = [line for line in lines if all(label in line for label in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in chosen)

    async def held(self) -> dict[str, float]:
        """The amounts that the service holds now, by kind; compare two of these around a fault."""
        return {
            "sequences running": await self.metric("vbon:num_sequences_running"),
            "sequences waiting": await self.metric("vbon:num_sequences_waiting"),
            "sequences in engines": await self.metric("vbon:num_engine_sequences"),
            "scores waiting": await self.metric("vbon:num_scores_waiting"),
            "tasks": await self.metric("vbon:num_tasks"),
            "file descriptors": self.process.num_fds(),
            "threads": self.process.num_threads(),
        }

    async def left_over(self, before: dict[str, float], within_s: float = 60.0) -> dict[str, float]:
        """The amounts by which it holds more than before, once it has had time to let go; empty is good."""
        begun = perf_counter()
        while True:
            now = await self.held()
            more = {kind: now[kind] - before[kind] for kind in now if now[kind] > before[kind]}
            if not more or perf_counter() - begun > within_s:
                return more
            await asyncio.sleep(0.2)


def lives(process: psutil.Process) -> bool:
    """True unless a process has ended, waited for or not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it has ended between the two
        return False


Start = Callable[[list[str], Path], psutil.Popen]


def start_command(arguments: list[str], log: Path) -> psutil.Popen:
    """Start ``python -m service`` with these arguments; what it prints is written to a file."""
    command = [sys.executable, "-m", "service", *arguments]
    with log.open("wb") as out:
        return psutil.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)


@asynccontextmanager
async def serving(
    sandbox: Path,
    scratch: Path,
    *flags: str,
    models: bool = True,
    token: str | None = None,
    log: Path | None = None,
    start: Start = start_command,
) -> AsyncGenerator[Service, None]:
    """Start it on the sandbox's models, or on what the flags name; ready. All of it is gone afterwards."""
    from service.bench.processes import free_port

    port = free_port()
    log = log or scratch / f"service-{port}.log"
    arguments = [
        *("serve", "--port", str(port), "--store", str(scratch / f"store-{port}.db")),
        *(_models(sandbox) if models else ()),
        *flags,
    ]
    process = start(arguments, log)
    # A connection for each request: with hundreds of idle ones httpx's pool takes ten times as long as the
    # server, and one that has been idle too long may be closed under the request it was given.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    url = f"http://127.0.0.1:{port}"
    try:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            base_url=url, timeout=150, limits=limits, headers=headers
        ) as client:
            service = Service(url, process, log, client)
            await service.until_ready()
            yield service
    finally:
        with suppress(psutil.NoSuchProcess):  # what it died of is the error to show
            process.terminate()
        with suppress(psutil.TimeoutExpired):
            await asyncio.to_thread(process.wait, STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _models(sandbox: Path) -> tuple[str, ...]:
    return (
        *ENGINE_FLAGS, "--policies", f"ref={sandbox / 'policy'}", "--policies", f"vbon={sandbox / 'vbon'}",
        "--reward", str(sandbox / "reward"),
    )  # fmt: skip
