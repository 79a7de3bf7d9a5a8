"""``kill -9`` of a service that collects answers, under load, again and again; it goes on where it was."""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path
from time import perf_counter

import httpx

from tests.faults.service import ENGINE_FLAGS, Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from vbon.distil.answer import parse_line
from vbon.distil.shard import OPEN, answer_lines, shard_files

PROMISE = (
    "A service that collects answers and is killed loses no line that was written, and of the answers at "
    "most the last moment's; its next start says what it cut off."
)
# Each kill costs the start of a service; unit tests tear lines in many more ways.
IN_FULL_ONLY = True
WIDTH = 6
# Answers wait for up to .1 s to be written; on a busy machine the writer's thread may be late.
LATE_S = 2.0
TORN = b'{"id":"cmpl-torn","prom'


async def inject(stage: Stage) -> Tally:
    """Kill it at random moments; before every other start, the last line is torn as well."""
    tally = Tally()
    kept = stage.scratch / "collected-killed"
    before: list[bytes] = []
    seen: set[str] = set()
    torn = False
    for turn in range(stage.count(6, least=2) + 1):
        flags = (
            *(*ENGINE_FLAGS, "--policies", f"ref={stage.sandbox / 'policy'}"),
            *("--reward", str(stage.sandbox / "reward"), "--distil.dir", str(kept)),
        )
        async with stage.serving(*flags, models=False) as service:
            _compare(before, _lines(kept), tally)
            cut = await service.metric("vbon_distil_cut_bytes_total")
            said = "incomplete line" in service.log.read_text(errors="replace")
            if torn and (cut != len(TORN) or not said):
                tally.fail(f"a torn line of {len(TORN)} bytes: {cut:g} were counted, told: {said}")
            answered = await _killed_under_load(service, kept, tally, seed=turn)
            before = _lines(kept)
        ids = {parse_line(line, "a shard").request_id for line in before}
        missing = [name for name, age_s in answered.items() if name not in ids and age_s > LATE_S]
        if missing or not ids - seen:
            tally.fail(
                f"{len(missing)} of {len(answered)} answers were never written: {missing[:3]}"
            )
        lost = sum(name not in ids for name in answered)
        tally.notes.append(f"{len(ids - seen)} kept, {lost} lost")
        seen = ids
        torn = turn % 2 == 0
        if torn:
            with next(path for path in shard_files(kept) if path.suffix == OPEN).open("ab") as file:
                file.write(TORN)
    return tally


async def _killed_under_load(
    service: Service, kept: Path, tally: Tally, *, seed: int
) -> dict[str, float]:
    """Kill it while it answers; the ages of its answers at that moment, in seconds, by their ids."""
    done: dict[str, float] = {}
    killed = asyncio.Event()

    async def keep_asking() -> None:
        while not killed.is_set():
            response = await service.ask("bon", max_tokens=12)
            if isinstance(response, httpx.Response):
                tally.add(response)
                if response.status_code == 200:
                    done[response.json()["request_id"]] = perf_counter()
            elif not killed.is_set():
                tally.add(response)

    load = [asyncio.create_task(keep_asking()) for _ in range(WIDTH)]
    await asyncio.sleep(LATE_S + random.Random(seed).uniform(0.5, 2))
    killed.set()
    at_s = perf_counter()
    service.process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(service.process.wait)
    await asyncio.gather(*load)
    return {name: at_s - then for name, then in done.items()}


def _lines(kept: Path) -> list[bytes]:
    """Every whole line of an answer on disk."""
    found: list[bytes] = []
    for path in shard_files(kept) if kept.exists() else []:
        with path.open("rb") as source:
            source.readline()
            found += answer_lines(source)
    return found


def _compare(before: list[bytes], now: list[bytes], tally: Tally) -> None:
    gone = set(before) - set(now)
    if gone:
        tally.fail(
            f"{len(gone)} of {len(before)} written lines are gone: {next(iter(gone))[:200]!r}"
        )
