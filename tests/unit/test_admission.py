"""Admission when not all requests fit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.admission.admission import Admission
from service.admission.token_bucket import TokenBucket
from service.context.caller import ANYBODY, Caller, current_caller
from vbon.errors import InvalidInputError, OverloadedError


class Queue:
    """Requests for places, each held until released, and the order in which they were admitted."""

    def __init__(self, *, running: int, waiting: int = 100, **limits: Any) -> None:
        self.admission = Admission(running=running, waiting=waiting, **limits)
        self.entered: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(
        self, name: str, sequences: int, priority: int = 0, caller: Caller = ANYBODY, **more: Any
    ) -> None:
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(
            self._hold(name, sequences, priority, caller, **more)
        )
        await asyncio.sleep(0)

    async def leave(self, name: str) -> None:
        self._ends[name].set()
        await self._tasks[name]
        await asyncio.sleep(0)

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await asyncio.sleep(0)

    async def _hold(
        self, name: str, sequences: int, priority: int, caller: Caller, **more: Any
    ) -> None:
        current_caller.set(caller)
        spent = more.pop("spent", None)
        async with self.admission.enter(sequences, priority, **more) as entry:
            self.entered.append(name)
            await self._ends[name].wait()
            if spent is not None:
                entry.spent(spent)

    async def refused(self, name: str) -> OverloadedError:
        """The error of a request that was rejected."""
        with pytest.raises(OverloadedError) as caught:
            await self._tasks[name]
        return caught.value


async def test_lower_numbers_go_first_and_equals_in_order_of_arrival() -> None:
    queue = Queue(running=1)
    await queue.come("first", 1)
    for name, priority in (("a0", 0), ("b1", 1), ("c-1", -1), ("d0", 0), ("e-1", -1)):
        await queue.come(name, 1, priority)
    for name in ("first", "c-1", "e-1", "a0", "d0"):
        await queue.leave(name)
    assert queue.entered == ["first", "c-1", "e-1", "a0", "d0", "b1"]
    await queue.leave("b1")
    assert (queue.admission.running, queue.admission.waiting) == (0, 0)


async def test_one_that_is_too_large_yet_keeps_its_room_from_all_but_lower_numbers() -> None:
    queue = Queue(running=4)
    await queue.come("first", 3)
    await queue.come("large", 4)
    await queue.come("like it", 2)
    assert queue.entered == ["first"]
    await queue.come("urgent", 1, -1)
    assert queue.entered == ["first", "urgent"]
    await queue.leave("first")
    assert queue.entered == ["first", "urgent"]
    await queue.leave("urgent")
    assert queue.entered == ["first", "urgent", "large"]


async def test_the_one_behind_moves_up_when_the_next_gives_up() -> None:
    queue = Queue(running=2)
    await queue.come("first", 1)
    await queue.come("large", 2, -1)
    await queue.come("small", 1)
    await queue.cancel("large")
    assert queue.entered == ["first", "small"]
    assert (queue.admission.running, queue.admission.waiting) == (2, 0)


async def test_a_full_queue_sheds_the_newcomer_whatever_its_priority() -> None:
    queue = Queue(running=1, waiting=2)
    await queue.come("first", 1)
    await queue.come("waits", 1, 9)
    await queue.come("waits too", 1, 9)
    with pytest.raises(OverloadedError, match="limit of 2 waiting"):
        async with queue.admission.enter(1, -9):
            pass
    assert queue.admission.waiting == 2


async def test_tokens_count_as_well_as_sequences() -> None:
    queue = Queue(running=100, running_tokens=1000)
    await queue.come("long", 8, max_tokens=100)
    await queue.come("longer", 1, max_tokens=300)
    assert (queue.entered, queue.admission.running_tokens) == (["long"], 800)
    await queue.leave("long")
    await queue.come("larger than all", 8, max_tokens=4000)
    assert queue.entered == ["long", "longer"]
    await queue.leave("longer")
    assert queue.entered == ["long", "longer", "larger than all"]
    await queue.leave("larger than all")
    assert (queue.admission.running_tokens, queue.admission.running) == (0, 0)


async def test_one_key_cannot_fill_the_queue_for_the_others() -> None:
    queue = Queue(running=1, waiting=30)
    flood, quiet = Caller("flood"), Caller("quiet")
    await queue.come("first", 1, caller=flood)
    for i in range(30):
        await queue.come(f"flood{i}", 1, caller=flood)
    assert queue.admission.waiting == 20
    assert "reserved for other keys" in str(await queue.refused("flood29"))
    await queue.come("quiet", 1, caller=quiet)
    await queue.leave("first")
    assert queue.entered[-1] == "quiet"
    for name in ["quiet", *(f"flood{i}" for i in range(20))]:
        await queue.leave(name)
    assert (queue.admission.running, queue.admission.waiting) == (0, 0)


async def test_a_key_has_at_most_its_sequences_running() -> None:
    queue = Queue(running=100)
    key = Caller("ann", max_sequences=4)
    await queue.come("a", 3, caller=key)
    await queue.come("b", 2, caller=key)
    await queue.come("other", 9, caller=Caller("bob"))
    assert queue.entered == ["a", "other"]
    await queue.leave("a")
    assert queue.entered == ["a", "other", "b"]
    current_caller.set(key)
    with pytest.raises(InvalidInputError, match="at most 4") as caught:
        async with queue.admission.enter(5):
            pass
    assert caught.value.field == "n"


async def test_a_key_s_minute_is_used_up_by_what_was_decoded() -> None:
    queue = Queue(running=100)
    key = Caller("ann", tokens_per_minute=600)
    await queue.come("a", 5, caller=key, max_tokens=100, spent=100)
    await queue.come("too soon", 2, caller=key, max_tokens=100)
    refusal = await queue.refused("too soon")
    assert "600 tokens a minute" in str(refusal)
    assert 8 < refusal.retry_after_s <= 10
    await queue.leave("a")
    await queue.come("now", 4, caller=key, max_tokens=100, spent=0)
    assert queue.entered == ["a", "now"]
    await queue.come("bob's", 6, caller=Caller("bob", tokens_per_minute=600), max_tokens=100)
    assert queue.entered[-1] == "bob's"
    current_caller.set(key)
    with pytest.raises(InvalidInputError, match="600 tokens a minute"):
        async with queue.admission.enter(7, max_tokens=100):
            pass


async def test_rounds_take_a_place_each_and_the_minute_s_share_of_all() -> None:
    queue = Queue(running=100)
    key = Caller("ann", tokens_per_minute=600)
    await queue.come("rounds", 2, caller=key, max_tokens=10, candidates=50)
    assert (queue.admission.running, queue.admission.running_tokens) == (2, 20)
    await queue.cancel("rounds")
    await queue.come("too much", 11, caller=key, max_tokens=10)
    await queue.refused("too much")
    await queue.come("what is left", 10, caller=key, max_tokens=10, spent=0)
    assert queue.entered == ["rounds", "what is left"]
    other = Caller("bob", tokens_per_minute=600)
    await queue.come("ends well", 2, caller=other, max_tokens=10, candidates=60, spent=40)
    await queue.leave("ends well")
    await queue.come("the rest", 56, caller=other, max_tokens=10)
    assert queue.entered[-1] == "the rest"


async def test_who_gives_up_in_the_queue_has_used_up_nothing() -> None:
    queue = Queue(running=1)
    key = Caller("ann", tokens_per_minute=600)
    await queue.come("first", 1)
    await queue.come("gives up", 1, caller=key, max_tokens=600)
    await queue.cancel("gives up")
    await queue.come("again", 1, caller=key, max_tokens=600)
    await queue.leave("first")
    assert queue.entered == ["first", "again"]


def test_an_allowance_fills_evenly_up_to_a_minute_s_worth() -> None:
    bucket = TokenBucket(60, now_s=0.0)
    assert bucket.take(60, 0.0) == 0.0
    assert bucket.take(10, 4.0) == pytest.approx(6.0)
    assert bucket.take(10, 10.0) == 0.0
    bucket.give_back(-30, 10.0)  # more was decoded than the maximum taken
    assert bucket.take(10, 30.0) == pytest.approx(20.0)
    assert bucket.take(61, 10_000.0) == pytest.approx(1.0)
    bucket.give_back(1000, 10_000.0)
    assert bucket.take(61, 10_000.0) == pytest.approx(1.0)


async def test_retry_after_is_what_the_queue_takes_at_the_pace_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr("service.admission.admission.monotonic", lambda: now_s)
    queue = Queue(running=2, waiting=12)
    for i in range(14):
        await queue.come(f"r{i}", 1)
    await queue.come("unmeasured", 1)
    assert (await queue.refused("unmeasured")).retry_after_s == 5.0
    now_s = 3.0  # two at a time, three seconds each: the twelve waiting are admitted within 18 s
    await queue.leave("r0")
    await queue.come("fills up", 1)
    await queue.come("measured", 1)
    assert (await queue.refused("measured")).retry_after_s == pytest.approx(18.0, rel=0.1)
    now_s = 1000.0
    await queue.leave("r1")
    await queue.come("fills up again", 1)
    await queue.come("bounded", 1)
    assert (await queue.refused("bounded")).retry_after_s == 60.0


async def test_a_wait_that_would_be_too_long_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr("service.admission.admission.monotonic", lambda: now_s)
    queue = Queue(running=1, max_queue_s=5.0)
    await queue.come("first", 1)
    now_s = 2.0
    await queue.leave("first")
    for name in ("second", "third", "fourth", "fifth"):
        await queue.come(name, 1)
    refusal = await queue.refused("fifth")
    assert "over the limit of 5 s (limits.max_queue_s)" in str(refusal)
    assert queue.admission.waiting == 2
    # Another key's first request waits for one request of each other key, however long their queues are.
    await queue.come("other", 1, caller=Caller("bob"))
    assert queue.admission.waiting == 3


@pytest.mark.parametrize("caller", [ANYBODY, Caller("ann")])
async def test_a_short_queue_does_not_shut_out_the_largest_requests(caller: Caller) -> None:
    queue = Queue(running=8, waiting=2)
    await queue.come("first", 4)
    await queue.come("large", 8, caller=caller)
    assert queue.admission.waiting == 8
    await queue.come("one more", 1)
    assert "limit of 2 waiting" in str(await queue.refused("one more"))
    await queue.leave("first")
    assert queue.entered == ["first", "large"]
    await queue.leave("large")


async def test_where_nobody_may_wait_nobody_does() -> None:
    queue = Queue(running=8, waiting=0)
    await queue.come("first", 8)
    await queue.come("second", 1)
    assert "limit of 0 waiting" in str(await queue.refused("second"))
    await queue.leave("first")
