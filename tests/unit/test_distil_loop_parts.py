"""Parts of ``vbon distil run``: reports of progress, and what it notices of the prompts."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.unit.collected import identity
from tests.unit.distil_loop import FakeService
from vbon.distil.loop import reporting
from vbon.distil.loop.reporting import Reporter
from vbon.distil.loop.service import Service
from vbon.distil.loop.stream import Collected, SeenPrompt

# -- reports


def reporter(clock: list[float]) -> tuple[Reporter, list[dict[str, Any]]]:
    fake = FakeService(None)
    client = httpx.Client(base_url="http://service", transport=httpx.MockTransport(fake.answer))
    return Reporter(Service(client, print), lambda: clock[0]), fake.reported


def test_a_waiting_round_is_told_now_and_then() -> None:
    clock = [100.0]
    tells, told = reporter(clock)
    tells.waits("0001", 5, 20, 300.0, 10.0)
    clock[0] += 10
    tells.waits("0001", 6, 20, 290.0, 10.0)  # too soon
    clock[0] += 30
    tells.waits("0001", 9, 20, None, 60.0)
    assert told == [
        {"round": "0001", "phase": "collect", "done": 5.0, "of": 20.0, "left_s": 300.0,
         "next_within_s": 120.0},
        {"round": "0001", "phase": "collect", "done": 9.0, "of": 20.0, "next_within_s": 240.0},
    ]  # fmt: skip


def test_a_long_step_is_told_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "EVERY_S", 0.001)
    clock = [50.0]
    tells, told = reporter(clock)
    with tells.during("0002", "train", 100.0):
        while len(told) < 2:
            pass
        clock[0] += 130.0  # longer than expected
        before = len(told)
        while len(told) < before + 2:
            pass
    count = len(told)
    assert {one["phase"] for one in told} == {"train"}
    assert (told[0]["left_s"], told[-1]["left_s"]) == (100.0, 0.0)
    tells.stopped("0002")
    assert [one["phase"] for one in told[count:]] == ["stopped"]


def test_without_a_service_nothing_is_told() -> None:
    tells = Reporter(None)
    tells.waits("0001", 5, 20, None, 1.0)
    with tells.during("0001", "train", None):
        pass
    tells.stopped("0001")


# -- prompts with the same text


def test_the_share_of_the_most_asked_prompt() -> None:
    collected = Collected(identity())
    assert collected.largest_share == 0
    for i, text in enumerate([b"a", b"b", b"a", b"a"]):
        collected.add(text, SeenPrompt(text.decode(), float(i), 0.0, 4, held_out=False))
        collected.asked.append((float(i), text))
    assert collected.largest_share == 0.75
