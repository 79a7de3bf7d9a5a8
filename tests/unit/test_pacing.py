"""Large bodies leave the event loop time for other requests."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from service.context.caller import Caller, current_caller
from service.http import pacing
from service.http.pacing import FREE_S, MOST_WAIT_S, SHARE, BodyPacer, parsing_s
from service.schemas.messages import ChatMessage
from service.schemas.wire import Wire
from tests.unit.fakes import ChatEngine, make_runtime, serving
from vbon.errors import OverloadedError

LARGE = b"x" * 1_000_000
COST_S = parsing_s(LARGE)


def reserve(pacer: BodyPacer, caller: str, body: bytes = LARGE) -> float:
    return pacer._reserve(caller, parsing_s(body))


def test_a_caller_s_first_is_not_delayed_and_the_next_leave_time_for_others() -> None:
    now_s = 100.0
    pacer = BodyPacer(lambda: now_s)
    assert [reserve(pacer, "a") for _ in range(3)] == pytest.approx(
        [0, COST_S / SHARE, 2 * COST_S / SHARE]
    )
    # Another caller waits for none of them; from then on, each gets half of the share.
    assert reserve(pacer, "b") == 0
    assert reserve(pacer, "b") == pytest.approx(2 * COST_S / SHARE)
    now_s += 60
    assert reserve(pacer, "a") == 0
    assert list(pacer._free_at_s) == ["a"]


def test_no_caller_can_wait_for_ever() -> None:
    pacer = BodyPacer(lambda: 0.0)
    turns = int(MOST_WAIT_S / (COST_S / SHARE)) + 1
    assert max(reserve(pacer, "a") for _ in range(turns)) <= MOST_WAIT_S
    with pytest.raises(OverloadedError, match="large bodies") as refused:
        reserve(pacer, "a")
    assert refused.value.retry_after_s > MOST_WAIT_S


async def test_small_bodies_are_never_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing.asyncio, "sleep", None)
    pacer = BodyPacer()
    for _ in range(1000):
        await pacer.turn(json.dumps({"prompt": "x" * 20_000, "n": 16}).encode())


def test_many_values_count_as_much_as_many_bytes() -> None:
    chat = [{"role": "user", "content": "a"}] * 2000
    assert parsing_s(json.dumps(chat).encode()) > FREE_S
    assert parsing_s(LARGE) > FREE_S


async def test_a_flood_of_large_bodies_is_told_when_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pacing, "MOST_WAIT_S", 0.0)
    async with serving(make_runtime()) as (_, client):
        bodies = [client.post("/generate", content=b"x" * 900_000) for _ in range(3)]
        answers = await asyncio.gather(*bodies)
    assert sorted(answer.status_code for answer in answers) == [422, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["type"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1


async def test_it_is_the_caller_s_turn() -> None:
    pacer = BodyPacer()
    before = current_caller.set(Caller("a"))
    try:
        await pacer.turn(LARGE)
    finally:
        current_caller.reset(before)
    assert list(pacer._free_at_s) == ["a"]


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_each_message_of_a_chat_is_validated_once(path: str) -> None:
    # Validation is most of what a long chat takes of the event loop, and it comes in one piece.
    validated, code = 0, Wire._as_json_means.__func__.__code__  # type: ignore[attr-defined]

    def count(frame: Any, event: str, _: object) -> None:
        nonlocal validated
        if event == "call" and frame.f_code is code:
            validated += frame.f_locals["cls"] is ChatMessage

    body: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}] * 20, "max_tokens": 1}
    if path != "/generate":
        body["model"] = "ref"
    async with serving(make_runtime(engines={"ref": ChatEngine("fake")})) as (_, client):
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            answer = await client.post(path, json=body)
        finally:
            sys.setprofile(before)
    assert (answer.status_code, validated) == (200, 20)
