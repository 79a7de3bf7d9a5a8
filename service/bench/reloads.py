"""``python -m service.bench.reloads POLICY``: what a reload costs, beside the old engine and in place.

A service of its own serves a copy of the policy under steady load. By turns, other weights are put at its
path and it is reloaded: beside the old engine, in place, in place with requests kept, and in place after the
files themselves were overwritten, so that the engine must keep a copy of the old weights. In the other cases
a link leads to another directory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
from rich.table import Table

from service.auth.keys import new_key, write_keys
from service.bench.processes import (
    descendants,
    free_port,
    running,
    status_kib,
    wait_until_healthy,
)
from vbon.maths.statistics import median_range
from vbon.terminal import table_console

SIDES: dict[str, dict[str, Any]] = {
    "reload": {},
    "in place": {"in_place": True},
    "in place, kept": {"in_place": True, "in_flight": "keep"},
    "in place, overwritten": {"in_place": True},
}
WEIGHTS = "model.safetensors"
SAMPLE_S = 0.05
BEFORE_S = 5.0  # of load before each reload, with which it is compared


@dataclass
class Watch:
    """The answers and the memory of a service, as they were observed.

    Attributes:
        done: when each answer was complete.
        failed: the requests that got none, with what they got.
        memory: time, and MiB of all processes: resident, and of that without pages of files.
    """

    done: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    memory: list[tuple[float, float, float]] = field(default_factory=list)

    def longest_gap(self, begun: float, ended: float) -> float:
        """The longest time without an answer, in seconds."""
        times = [begun, *(t for t in self.done if begun < t < ended), ended]
        return max(b - a for a, b in pairwise(times))

    def rate(self, begun: float, ended: float) -> float:
        """Answers per second."""
        return sum(begun < t < ended for t in self.done) / (ended - begun)

    def peak(self, begun: float, ended: float) -> tuple[float, float]:
        """The most memory at once."""
        seen = [(one, two) for t, one, two in self.memory if begun <= t <= ended]
        return max(one for one, _ in seen), max(two for _, two in seen)


async def main(arguments: argparse.Namespace) -> None:
    """Measure all sides by turns and print a table."""
    rows: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory(prefix="reloads-") as folder:
        _make_versions(arguments.policy, Path(folder))
        async with _service(Path(folder), arguments.flags) as (client, pid):
            watch, stop = Watch(), asyncio.Event()
            tasks = [
                asyncio.create_task(_ask(client, watch, stop, arguments))
                for _ in range(arguments.width)
            ]
            tasks.append(asyncio.create_task(_weigh(pid, watch, stop)))
            await asyncio.sleep(BEFORE_S)
            for turn in range(arguments.rounds):
                sides = list(SIDES)
                for side in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
                    row = await _reload(client, watch, side, Path(folder))
                    rows[side].append(row)
                    print(json.dumps({"side": side, **row}), flush=True)
            stop.set()
            await asyncio.gather(*tasks)
    _show(rows, watch)


def _make_versions(policy: str, folder: Path) -> None:
    """Two copies of a policy with different weights, one of them slightly changed."""
    from safetensors.torch import load_file, save_file

    first, second = folder / "first", folder / "second"
    for version in (first, second):
        shutil.copytree(policy, version)
        (version / "checksums.json").unlink(missing_ok=True)
    weights = load_file(second / WEIGHTS)
    save_file(
        {name: one * 1.01 for name, one in weights.items()},
        second / WEIGHTS,
        metadata={"format": "pt"},
    )
    (folder / "served").symlink_to(first)


@asynccontextmanager
async def _service(
    folder: Path, flags: list[str]
) -> AsyncGenerator[tuple[httpx.AsyncClient, int], None]:
    key, token = new_key("root", "admin")
    write_keys(folder / "keys.jsonl", [key])
    port = free_port()
    command = [
        sys.executable, "-m", "service", "serve", "--port", str(port),
        "--store", str(folder / "store.db"), "--auth.keys-file", str(folder / "keys.jsonl"),
        "--policies", f"ref={folder / 'served'}", "--reward", "none", *flags,
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    async with running(command) as (process, log):
        await wait_until_healthy(process, log, f"{url}/readyz", "the service")
        headers = {"authorization": f"Bearer {token}"}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=600, limits=limits
        ) as client:
            yield client, process.pid


async def _ask(
    client: httpx.AsyncClient, watch: Watch, stop: asyncio.Event, arguments: argparse.Namespace
) -> None:
    body = {"prompt": "the film was", "max_tokens": arguments.max_tokens, "ignore_eos": True}
    while not stop.is_set():
        try:
            response = await client.post("/generate", params={"mode": "ref"}, json=body)
        except httpx.HTTPError as error:
            watch.failed.append(repr(error))
            continue
        if response.status_code == 200:
            watch.done.append(perf_counter())
        else:
            watch.failed.append(response.text[:200])


async def _weigh(pid: int, watch: Watch, stop: asyncio.Event) -> None:
    while not stop.is_set():
        resident, own = 0.0, 0.0
        for one in descendants(pid):
            kib = status_kib(one)
            resident += kib.get("VmRSS", 0) / 1024
            own += (kib.get("RssAnon", 0) + kib.get("RssShmem", 0)) / 1024
        watch.memory.append((perf_counter(), resident, own))
        await asyncio.sleep(SAMPLE_S)


def _put_other(folder: Path, *, overwritten: bool) -> None:
    """Let the served path hold the other version's weights."""
    served = folder / "served"
    here = served.resolve()
    other = folder / ("second" if here.name == "first" else "first")
    if overwritten:  # the weights of the two directories change places
        present = (here / WEIGHTS).read_bytes()
        (here / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())
        (other / WEIGHTS).write_bytes(present)
    else:
        served.unlink()
        served.symlink_to(other)


async def _reload(
    client: httpx.AsyncClient, watch: Watch, side: str, folder: Path
) -> dict[str, float]:
    """Put the other weights at the path, reload, and compare with the seconds before."""
    before = perf_counter()
    await asyncio.sleep(BEFORE_S)
    await asyncio.to_thread(_put_other, folder, overwritten=side == "in place, overwritten")
    failed, begun = len(watch.failed), perf_counter()
    response = await client.post("/admin/reload", json={"model": "ref", **SIDES[side]})
    response.raise_for_status()
    told, ended = response.json(), perf_counter()
    assert told["before"] != told["now"]
    await asyncio.sleep(1.0)
    (was, own_was), (most, own_most) = watch.peak(before, begun), watch.peak(begun, ended + 1.0)
    return {
        "seconds": ended - begun,
        "gap_s": watch.longest_gap(begun, ended + 1.0),
        "gap_before_s": watch.longest_gap(before, begun),
        "rate": watch.rate(begun, ended) / watch.rate(before, begun),
        "memory_mib": most - was,
        "own_memory_mib": own_most - own_was,
        "failed": len(watch.failed) - failed,
    }


COLUMNS = {
    "seconds": "reload, s",
    "gap_s": "longest time without an answer, s",
    "gap_before_s": "the same in 5 s before, s",
    "memory_mib": "peak memory above that before, MiB",
    "own_memory_mib": "without pages of files, MiB",
    "rate": "answers per second / before",
    "failed": "failed requests",
}


def _show(rows: dict[str, list[dict[str, float]]], watch: Watch) -> None:
    table = Table(
        title=f"{len(watch.done)} answers, {len(watch.failed)} failed; median [least, most]"
    )
    for name in ("", *COLUMNS.values()):
        table.add_column(name)
    for side, measured in rows.items():
        cells = []
        for column in COLUMNS:
            found = median_range([row[column] for row in measured])
            digits = 0 if "mib" in column or column == "failed" else 2
            cells.append(
                f"{found.median:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
            )
        table.add_row(side, *cells)
    table_console().print(table)
    for reason in sorted(set(watch.failed))[:5]:
        print("failed:", reason)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m service.bench.reloads", description=__doc__)
    parser.add_argument("policy", help="a policy's directory, with one model.safetensors")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--width", type=int, default=8, help="requests in flight")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.epilog = "Further flags of `vbon serve` may follow after --."
    own, flags = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, flags = own[:at], own[at + 1 :]
    chosen = parser.parse_args(own)
    chosen.flags = flags
    asyncio.run(main(chosen))
