"""``scripts/soak``: mixed load for an hour, and whether memory, file descriptors or latency grow.

scripts/soak                                          a server of its own on a tiny sandbox
scripts/soak --minutes 10 --sandbox sandbox           on these models
scripts/soak --url http://127.0.0.1:8000 --pid 1234   a running server; without --pid only what it tells
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil

from tests.soak.load import Load
from tests.soak.report import growths, show
from tests.soak.watch import Watch


def main() -> int:
    """Exit status: 0 if nothing grows and no answer was wrong."""
    parser = argparse.ArgumentParser(
        "scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--url", help="a running server with policies ref and vbon and a reward")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--sandbox", type=Path, help="models for a server of its own")
    arguments = parser.parse_args()
    return asyncio.run(_run(arguments))


async def soak(
    url: str, process: psutil.Process | None, seconds: float, every_s: float
) -> tuple[Watch, Load]:
    """Load it for so long, sampling."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=150, limits=limits) as client:
        watch, load = Watch(client, process), Load(url, client)
        watching = asyncio.create_task(watch.every(every_s))
        try:
            await load.go_on_for(seconds)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    return watch, load


async def _run(arguments: argparse.Namespace) -> int:
    seconds = arguments.minutes * 60
    async with _server(arguments) as (url, process):
        watch, load = await soak(url, process, seconds, every_s=max(1.0, seconds / 600))
    found = growths(watch, load)
    show(found, load)
    growing = [name for name, one in found.items() if one.verdict == "grows"]
    print(f"grows: {', '.join(growing)}" if growing else "nothing grows")
    return int(bool(growing or load.wrong))


@asynccontextmanager
async def _server(
    arguments: argparse.Namespace,
) -> AsyncGenerator[tuple[str, psutil.Process | None], None]:
    if arguments.url is not None:
        pid = arguments.pid
        yield arguments.url.rstrip("/"), None if pid is None else psutil.Process(pid)
        return
    from tests.faults.service import serving
    from tests.tiny import build_tiny_sandbox, train_tiny_vbon

    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        sandbox = arguments.sandbox
        if sandbox is None:
            # In threads, since both run event loops of their own.
            sandbox = await asyncio.to_thread(build_tiny_sandbox, Path(scratch) / "sandbox")
            await asyncio.to_thread(train_tiny_vbon, sandbox)
        async with serving(sandbox.resolve(), Path(scratch)) as service:
            yield service.url, service.process


if __name__ == "__main__":
    raise SystemExit(main())
