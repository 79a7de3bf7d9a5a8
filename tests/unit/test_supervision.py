"""Dead parts are restarted, and the others are not affected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from service.runtime import supervisor as supervision
from service.runtime.supervisor import Supervisor
from vbon.errors import CheckpointError


class Part:
    """A part that fails to start ``failures`` times and then starts."""

    def __init__(self, failures: int = 0) -> None:
        self.alive = True
        self.failures = failures
        self.starts: list[float] = []
        self.checks = 0

    async def check(self) -> None:
        self.checks += 1

    async def start(self) -> None:
        self.starts.append(asyncio.get_running_loop().time())
        if self.failures:
            self.failures -= 1
            raise CheckpointError("no weights")
        self.alive = True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_only_what_died_is_started_again_and_at_once() -> None:
    one, other = Part(), Part()
    back: list[str] = []
    supervisor = Supervisor(
        {"one": one, "other": other},
        poll_s=0.002,
        backoff_s=60,
        on_recovered=lambda w: back.append(w.name),
    )
    supervisor.start()
    one.alive = False
    await until(lambda: one.alive)
    await until(lambda: bool(back))
    await supervisor.stop()
    assert (len(one.starts), other.starts, back) == (1, [], ["one"])
    assert supervisor.supervised["one"].restarts == 1
    assert supervisor.supervised["one"].recovery_s > 0
    assert supervisor.trouble == ""
    assert other.checks > 0


async def test_failed_attempts_wait_twice_as_long_each_time() -> None:
    part = Part(failures=4)
    supervisor = Supervisor({"ref": part}, poll_s=0.001, backoff_s=0.02, max_backoff_s=0.08)
    supervisor.start()
    part.alive = False
    await until(lambda: "no weights" in supervisor.trouble)
    assert supervisor.trouble.startswith("ref: it could not be started: no weights; restarting")
    await until(lambda: part.alive)
    await supervisor.stop()
    gaps = [b - a for a, b in zip(part.starts, part.starts[1:], strict=False)]
    assert len(gaps) == 4
    for gap, least in zip(gaps, (0.02, 0.04, 0.08, 0.08), strict=True):
        assert gap >= least - 0.002


@pytest.mark.parametrize(("steady_s", "waits"), [(60.0, True), (0.0, False)])
async def test_one_that_dies_again_soon_waits_and_one_that_lived_does_not(
    steady_s: float, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "STEADY_S", steady_s)
    part = Part()
    supervisor = Supervisor({"ref": part}, poll_s=0.001, backoff_s=30)
    supervisor.start()
    part.alive = False
    await until(lambda: part.alive and supervisor.trouble == "")
    part.alive = False
    await until(lambda: part.alive or "in 30 s" in supervisor.trouble)
    await supervisor.stop()
    assert part.alive is not waits


async def test_one_that_is_dead_when_it_starts_is_tried_again() -> None:
    class Stillborn(Part):
        async def start(self) -> None:
            await super().start()
            self.alive = len(self.starts) == 3

    part = Stillborn()
    supervisor = Supervisor({"ref": part}, poll_s=0.001, backoff_s=0.001)
    supervisor.start()
    part.alive = False
    await until(lambda: part.alive)
    await supervisor.stop()
    assert len(part.starts) == 3


async def test_after_a_late_look_nothing_is_taken_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocked event loop has not read the heartbeats of its parts either."""
    monkeypatch.setattr(supervision, "LATE_S", -1.0)
    part = Part()
    supervisor = Supervisor({"ref": part}, poll_s=0.001)
    supervisor.start()
    await asyncio.sleep(0.02)
    await supervisor.stop()
    assert part.checks == 0


async def test_another_part_takes_a_name_over() -> None:
    old, new = Part(), Part()
    supervisor = Supervisor({"ref": old}, poll_s=0.001)
    supervisor.start()
    await supervisor.replace("ref", new)
    old.alive = new.alive = False
    await until(lambda: new.alive)
    await supervisor.stop()
    assert old.starts == []
