"""Starts both sides of the bench on this machine, measures the rows, and prints the table."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, Field

from service.bench.figures import Figure, table_of
from service.bench.processes import free_port
from service.bench.wire import SideError
from service.fleet.bench.cpu import cpu_of_tree, titled
from service.fleet.bench.models import BUILDER
from service.fleet.bench.rows import Side, measured, rows
from service.fleet.settings import FleetSettings, Scale
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance
from vbon.terminal import table_console

_START_S = 180.0
_APPLICATION = "vbon-bench"
_REQUESTS = "requests of one measurement, one at a time; ten times as many with more in flight"


class FleetBenchSettings(BaseModel):
    """The settings of ``vbon fleet bench``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: int = Field(5, ge=1, description="times that each side is measured")
    requests: int = Field(100, ge=1, description=_REQUESTS)
    token_ms: float = Field(2.0, ge=0, description="milliseconds of a token of the fake engines")
    tokens: int = Field(16, ge=1, description="tokens of a sample")
    n: int = Field(16, ge=2, description="N of best-of-N")
    proxy: bool = Field(False, description="measure through Serve's proxy")
    json_file: Path | None = Field(None, description="file for every figure, with provenance")

    def service(self, directory: Path, **more: Any) -> dict[str, Any]:
        """The settings of the service of a side."""
        return {
            "policies": {"ref": f"fake:{self.token_ms:g}"},
            "reward": "length",
            "store": f"sqlite:///{directory}/store.db",
            "log_level": "warning",
            **more,
        }


def run_fleet_bench(settings: FleetBenchSettings) -> dict[str, Any]:
    """Measure all rows, print the table, write the file, and return what is written to it.

    Raises:
        SideError: a side does not start, or answers with an error.
    """
    figures = asyncio.run(_measure(settings))
    table_console().print(table_of(settings.pairs, figures))
    result = {
        **provenance(settings.model_dump(mode="json")),
        "figures": [figure.as_dict() for figure in figures],
    }
    if settings.json_file is not None:
        write_json(settings.json_file, result)
    return result


async def _measure(settings: FleetBenchSettings) -> list[Figure]:
    with TemporaryDirectory(prefix="fleet-bench-") as folder:
        async with (
            _alone(settings, Path(folder)) as (alone, pid),
            _fleet(settings, Path(folder), pid) as fleet,
        ):
            figures: list[Figure] = []
            for row in rows(settings.tokens, settings.n):
                figures += await measured(row, settings.pairs, settings.requests, fleet, alone)
            return figures


@asynccontextmanager
async def _alone(
    settings: FleetBenchSettings, folder: Path
) -> AsyncGenerator[tuple[Side, int], None]:
    """The service in one process; yields it and its process id."""
    directory = folder / "alone"
    directory.mkdir()
    port = free_port()
    service = settings.service(directory, host="127.0.0.1", port=port)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "service.fleet.bench.alone", stdin=subprocess.PIPE
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(service).encode())
        process.stdin.close()
        url = f"http://127.0.0.1:{port}"
        await _ready(url)
        yield Side(url, lambda: cpu_of_tree(process.pid)), process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def _fleet(
    settings: FleetBenchSettings, folder: Path, other: int
) -> AsyncGenerator[Side, None]:
    """The service as a fleet of one front end and one replica of each model; yields it.

    Args:
        other: process id of the other side, which is a child of this process too.
    """
    import ray
    from ray import serve

    from service.fleet import app

    directory = folder / "fleet"
    directory.mkdir()
    port, direct = free_port(), free_port()
    small = Scale(cpus=0.1)
    fleet = FleetSettings(
        service=settings.service(directory),
        builder=BUILDER,
        direct_port=direct,
        front_ends=small,
        policies={"ref": small},
        reward=small,
    )

    def start() -> None:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app(fleet.model_dump()), name=_APPLICATION, route_prefix="/")

    def stop() -> None:
        serve.shutdown()
        ray.shutdown()

    try:
        await asyncio.to_thread(start)
        url = f"http://127.0.0.1:{port if settings.proxy else direct}"
        await _ready(url)
        title = f"ray::ServeReplica:{_APPLICATION}:FrontEnd"
        yield Side(
            url,
            lambda: cpu_of_tree(os.getpid(), frozenset({other})),
            lambda used: titled(used, title),
        )
    finally:
        await asyncio.to_thread(stop)


async def _ready(url: str) -> None:
    """Wait until a side answers.

    Raises:
        SideError: it did not in time.
    """
    try:
        async with asyncio.timeout(_START_S), httpx.AsyncClient() as client:
            while True:
                try:
                    if (await client.get(f"{url}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.2)
    except TimeoutError as error:
        raise SideError(f"{url} was not ready within {_START_S:g} s") from error
