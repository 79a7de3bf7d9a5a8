"""Limits that hold over several front ends, and what each does while the host of them is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.admission import shared
from service.admission.admission import Admission
from service.admission.asks import Admits
from service.admission.host import AdmissionHost
from service.admission.shared import SharedAdmission
from service.context.caller import ANYBODY, Caller, current_caller
from tests.unit.memory_link import MemoryLink
from vbon.errors import EngineDeadError, InvalidInputError, OverloadedError

RUNNING, WAITING, TOKENS = 12, 8, 400
FRONT_ENDS = 3
CALLERS = (
    ANYBODY,
    Caller("ann"),
    Caller("bob", max_sequences=5),
    Caller("eve", tokens_per_minute=600),
    Caller("max", max_sequences=6, tokens_per_minute=300),
)


def admission(front_ends: int = 1) -> Admission:
    return Admission(
        running=RUNNING // front_ends,
        waiting=WAITING // front_ends,
        running_tokens=TOKENS // front_ends,
    )


async def settled() -> None:
    """Let everything happen that happens without a clock."""
    for _ in range(12):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (joining has pauses)
            await asyncio.sleep(0.002)


class Requests:
    """Requests that hold their places until told to leave, and what has become of each."""

    def __init__(self) -> None:
        self.state: dict[int, Any] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ends: dict[int, asyncio.Future[int | None]] = {}

    def come(self, name: int, at: Admits, caller: Caller, sequences: int, **more: Any) -> None:
        self._ends[name] = asyncio.get_running_loop().create_future()
        self.state[name] = "waits"
        self._tasks[name] = asyncio.create_task(self._hold(name, at, caller, sequences, **more))

    def leave(self, name: int, decoded: int | None) -> None:
        self._ends[name].set_result(decoded)

    def cancel(self, name: int) -> None:
        self._tasks[name].cancel()

    def having(self, state: str) -> list[int]:
        return [name for name, now in self.state.items() if now == state]

    async def ended(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _hold(self, name: int, at: Admits, caller: Caller, *args: Any, **more: Any) -> None:
        current_caller.set(caller)
        try:
            await at.check_not_used_up()
            async with at.enter(*args, **more) as entry:
                self.state[name] = "runs"
                decoded = await self._ends[name]
                if decoded is not None:
                    entry.spent(decoded)
            self.state[name] = "left"
        except asyncio.CancelledError:
            self.state[name] = "cancelled"
        except OverloadedError as error:
            self.state[name] = str(error), error.retry_after_s
        except InvalidInputError as error:
            self.state[name] = str(error), error.field


class Service:
    """Front ends over one host, which can die and be replaced."""

    def __init__(self) -> None:
        self.admission = admission()
        self.host: AdmissionHost | None = AdmissionHost(self.admission, front_ends=FRONT_ENDS)
        self.links: list[MemoryLink] = []
        self.front_ends = [
            SharedAdmission(self._connector(), admission, front_ends=FRONT_ENDS)
            for _ in range(FRONT_ENDS)
        ]
        self.requests = Requests()

    def _connector(self) -> Callable[[], Any]:
        async def connect() -> MemoryLink:
            if self.host is None:
                raise EngineDeadError("nobody listens")
            link = MemoryLink(self.host)
            self.links.append(link)
            return link

        return connect

    def kill_host(self) -> None:
        self.host = None
        links, self.links = self.links, []
        for link in links:
            link.close()

    def replace_host(self) -> None:
        self.admission = admission()
        self.host = AdmissionHost(self.admission, front_ends=FRONT_ENDS)

    @property
    def own_running(self) -> int:
        return sum(one.own_running for one in self.front_ends)


@asynccontextmanager
async def running() -> AsyncGenerator[Service, None]:
    service = Service()
    await asyncio.gather(*(one.start() for one in service.front_ends))
    await eventually(lambda: not service.admission._closed)
    yield service
    await service.requests.ended()
    await asyncio.gather(*(one.stop() for one in service.front_ends))
    await settled()
    assert (service.admission.running, service.admission.waiting) == (0, 0)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "AGAIN_S", 0.005)


async def check_left(
    service: Service, front_end: Any, caller: Caller, *, over: int, within: int
) -> None:
    """Check what a caller of 600 tokens a minute has left: fewer than ``over`` and at least ``within``."""
    service.requests.come(98, front_end, caller, 1, max_tokens=over)
    await settled()
    assert "has used up its 600 tokens" in service.requests.state[98][0]
    service.requests.come(99, front_end, caller, 1, max_tokens=within)
    await settled()
    assert service.requests.state[99] == "runs"


@pytest.mark.parametrize("seed", range(12))
async def test_front_ends_decide_as_one_admission_does(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random requests of random keys at random front ends, in the same order at one admission."""
    chance = random.Random(seed)
    clock = [100.0]
    monkeypatch.setattr("service.admission.admission.monotonic", lambda: clock[0])
    alone, plain = admission(), Requests()
    kinds = set()
    async with running() as service:
        for name in range(70):
            clock[0] += chance.choice((0.0, 0.0, 0.3, 4.0))
            action = chance.choice(("come", "come", "leave", "cancel"))
            there = plain.having("runs") if action == "leave" else plain.having("waits")
            if action == "come" or not there:
                at = chance.choice(service.front_ends)
                caller, sequences = chance.choice(CALLERS), chance.randint(1, 7)
                more = {
                    "priority": chance.choice((0, 0, 1, -1)),
                    "max_tokens": chance.choice((1, 20, 60)),
                    "candidates": chance.choice((None, 9)),
                }
                plain.come(name, alone, caller, sequences, **more)
                service.requests.come(name, at, caller, sequences, **more)
            elif action == "leave":
                left, decoded = chance.choice(there), chance.choice((None, 0, 3, 40))
                plain.leave(left, decoded)
                service.requests.leave(left, decoded)
            else:
                left = chance.choice(there)
                plain.cancel(left)
                service.requests.cancel(left)
            await settled()
            assert service.requests.state == plain.state
            found = service.admission
            assert (found.running, found.waiting) == (alone.running, alone.waiting)
            assert found.running_tokens == alone.running_tokens
            assert found.retry_after_s() == alone.retry_after_s()
            assert service.own_running == found.running <= RUNNING
        kinds = {type(state) for state in plain.state.values()}
        await plain.ended()
    assert kinds == {str, tuple}  # some ran, and some were refused


async def test_the_state_of_all_front_ends_is_told_to_each() -> None:
    async with running() as service:
        one, other, third = service.front_ends
        service.requests.come(0, one, ANYBODY, 12)
        service.requests.come(1, other, ANYBODY, 8)
        await eventually(lambda: third.full)
        assert (third.running, third.waiting) == (12, 8)
        assert (third.own_running, third.own_waiting) == (0, 0)
        assert (one.own_running, other.own_waiting) == (12, 8)
        service.requests.leave(0, None)
        await eventually(lambda: not third.full)


async def test_each_front_end_is_told_how_many_there_are() -> None:
    async with running() as service:
        one, other, _ = service.front_ends

        def told() -> int:
            return other._backend.state.front_ends

        await eventually(lambda: told() == 3)
        await one.stop()
        await eventually(lambda: told() == 2)
        await one.start()
        await eventually(lambda: told() == 3)


async def test_what_a_dead_front_end_held_is_given_back_once() -> None:
    async with running() as service:
        one, other, _ = service.front_ends
        service.requests.come(0, one, ANYBODY, 10)
        service.requests.come(1, one, ANYBODY, 3)  # waits
        await settled()
        service.requests.come(2, other, ANYBODY, 5)
        await settled()
        assert service.requests.having("runs") == [0]
        await one.stop()  # as the host sees it, a connection that ends
        await eventually(lambda: 2 in service.requests.having("runs"))
        assert (service.admission.running, service.admission.waiting) == (5, 0)
        service.requests.leave(0, 1)
        await settled()
        assert service.admission.running == 5


async def test_a_lease_is_released_once() -> None:
    async with running() as service:
        one = service.front_ends[0]
        from service.admission.asks import Ask

        first = await one.admit(Ask(ANYBODY, 5))
        await one.admit(Ask(ANYBODY, 4))
        for _ in range(3):
            one.release(first, None)
        await settled()
        assert (service.admission.running, one.own_running) == (4, 4)


async def test_a_request_cancelled_as_it_is_admitted_leaves_nothing_behind() -> None:
    for turns in range(8):
        async with running() as service:
            one, other, _ = service.front_ends
            service.requests.come(0, one, ANYBODY, 12)
            await settled()
            service.requests.come(1, other, ANYBODY, 3)
            await settled()
            service.requests.leave(0, 0)
            for _ in range(turns):
                await asyncio.sleep(0)
            service.requests.cancel(1)
            await settled()
            assert service.admission.running == service.admission.waiting == 0


async def test_a_lost_leave_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.admission.host.REPEAT_S", 0.01)
    monkeypatch.setattr(shared, "REPEAT_S", 0.01)
    async with running() as service:
        one = service.front_ends[0]
        for link in service.links:
            link.drops = lambda method, _: method == "leave"
        service.requests.come(0, one, ANYBODY, 12)
        await settled()
        service.requests.leave(0, 3)
        await settled()
        assert service.admission.running == 12
        await eventually(lambda: service.admission.running == 0)


async def test_alone_each_has_its_share_and_together_the_limits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running() as service:
        service.kill_host()
        await settled()
        assert not any(one.shared for one in service.front_ends)
        for name in range(30):
            service.requests.come(name, service.front_ends[name % 3], ANYBODY, 1)
        await settled()
        assert [one.running for one in service.front_ends] == [4, 4, 4]  # 12 / 3
        assert [one.waiting for one in service.front_ends] == [2, 2, 2]  # 8 / 3
        assert all(one.full for one in service.front_ends)
        told = [text for text in caplog.messages if "away" in text]
        assert len(told) == 3  # once by each
        assert "1/3" in told[0]
        service.replace_host()
        await eventually(lambda: all(one.shared for one in service.front_ends))
        await settled()
        assert len([text for text in caplog.messages if text.endswith("limits is back")]) == 3
        # What runs is counted by the new host, and what waited waits there.
        assert (service.admission.running, service.admission.waiting) == (12, 6)
        assert service.own_running == 12
        service.requests.leave(0, None)
        await settled()
        assert (service.admission.running, service.admission.waiting) == (12, 5)


async def test_nobody_is_admitted_beyond_a_limit_while_hosts_die_and_return() -> None:
    """What a front end runs grows only within its share while it is alone, else within all limits."""
    chance = random.Random(5)
    names = iter(range(100_000))
    seen = set()
    async with running() as service:
        for _ in range(250):
            alone = [not one.shared for one in service.front_ends]
            before = [one.own_running for one in service.front_ends]
            action = chance.random()
            if action < 0.08:
                service.kill_host()
            elif action < 0.25 and service.host is None:
                service.replace_host()
            elif action < 0.75:
                at = chance.choice(service.front_ends)
                service.requests.come(next(names), at, chance.choice(CALLERS[:3]), 1)
            elif there := service.requests.having("runs"):
                service.requests.leave(chance.choice(there), None)
            await asyncio.sleep(chance.choice((0, 0, 0.006)))
            now_alone = [not one.shared for one in service.front_ends]
            for one, had in zip(service.front_ends, before, strict=True):
                if one.own_running <= had or now_alone != alone:
                    continue
                seen.add(one.shared)
                # A new host admits nobody while it does not know all front ends.
                assert one.shared or one.own_running <= RUNNING // FRONT_ENDS
                assert not one.shared or (service.own_running <= RUNNING and not any(alone))
        assert seen == {True, False}
        if service.host is None:
            service.replace_host()
        await eventually(lambda: all(one.shared for one in service.front_ends))
        await settled()
        assert service.admission.running == service.own_running


async def test_a_new_host_admits_nobody_before_it_knows_what_runs() -> None:
    async with running() as service:
        one, other, _ = service.front_ends
        service.requests.come(0, one, ANYBODY, 12)
        await settled()
        service.kill_host()
        await settled()
        service.replace_host()
        # The second front end is back before the first, and asks at once.
        late, one._connect = one._connect, _never
        await eventually(lambda: other.shared)
        service.requests.come(1, other, ANYBODY, 1)
        await settled()
        assert service.requests.state[1] == "waits"
        one._connect = late
        await eventually(lambda: one.shared)
        await settled()
        assert (service.admission.running, service.admission.waiting) == (12, 1)
        service.requests.leave(0, None)
        await settled()
        assert service.requests.state[1] == "runs"


async def _never() -> Any:
    raise EngineDeadError("nobody listens")


async def test_a_new_host_waits_only_so_long_for_front_ends_that_do_not_come() -> None:
    host = AdmissionHost(found := admission(), front_ends=9, settle_s=0.02)

    async def connect() -> MemoryLink:
        return MemoryLink(host)

    one, requests = SharedAdmission(connect, admission, front_ends=9), Requests()
    await one.start()
    requests.come(0, one, ANYBODY, 3)
    await settled()
    assert (found.running, found.waiting) == (0, 3)
    await eventually(lambda: requests.state[0] == "runs")
    await requests.ended()
    await one.stop()


async def test_a_key_has_its_share_of_its_own_limits_while_the_host_is_away() -> None:
    wide, rated = Caller("wide", max_sequences=6), Caller("rated", tokens_per_minute=300)
    async with running() as service:
        service.kill_host()
        await settled()
        one = service.front_ends[0]
        asked = {
            0: (wide, 2, 1),  # 6 / 3
            1: (wide, 3, 1),
            2: (wide, 7, 1),  # more than it ever may
            3: (rated, 1, 100),  # 300 / 3
            4: (rated, 1, 101),
            5: (rated, 1, 1),
        }
        for name, (caller, sequences, max_tokens) in asked.items():
            service.requests.come(name, one, caller, sequences, max_tokens=max_tokens)
            await settled()
        state = service.requests.state
        assert (state[0], state[3]) == ("runs", "runs")
        assert "wide' may have 2 at each of 3 front ends" in state[1][0]
        assert state[2] == (
            "asked for 7 candidates at once; key 'wide' allows at most 6",
            "n",
        )
        # Its share of the tokens is used up, so it is refused before work is done for it.
        assert "rated' has used up its 100 tokens a minute" in state[4][0]
        assert "rated' has used up its 100 tokens a minute" in state[5][0]


async def test_work_without_an_answer_is_charged_at_the_host() -> None:
    caller = Caller("eve", tokens_per_minute=600)
    async with running() as service:
        current_caller.set(caller)
        one, other, _ = service.front_ends
        one.charge(10_000)
        await settled()
        with pytest.raises(OverloadedError, match="eve' has used up its 600 tokens a minute"):
            await other.check_not_used_up()


async def test_tokens_in_decoding_count_at_the_next_host() -> None:
    caller = Caller("eve", tokens_per_minute=600)
    async with running() as service:
        one, other, _ = service.front_ends
        service.requests.come(0, one, caller, 1, max_tokens=300)
        await settled()
        service.kill_host()
        await settled()
        service.replace_host()
        await eventually(lambda: all(front_end.shared for front_end in service.front_ends))
        await settled()
        service.requests.come(1, other, caller, 1, max_tokens=301)
        await settled()
        assert "has used up its 600 tokens" in service.requests.state[1][0]
        service.requests.leave(0, 0)  # gives 300 back
        await settled()
        service.requests.come(2, other, caller, 1, max_tokens=590)
        await settled()
        assert service.requests.state[2] == "runs"


@pytest.mark.parametrize("noticed_by_host", [True, False])
@pytest.mark.parametrize("decoded", [200, 50, 10])
async def test_a_front_end_that_joins_again_is_charged_and_counted_once(
    noticed_by_host: bool, decoded: int
) -> None:
    caller = Caller("eve", tokens_per_minute=600)
    async with running() as service:
        one, other, _ = service.front_ends
        for name in (0, 1):
            service.requests.come(name, one, caller, 2, max_tokens=100)
        await settled()
        link = one._backend._link  # type: ignore[union-attr]
        if noticed_by_host:
            link.close()
        else:  # the network hides the end of the connection
            calls, link._calls = link._calls, {}
            for answers in calls.values():
                answers.put_nowait(("error", EngineDeadError("the connection is lost")))
        await eventually(lambda: not one.shared)
        service.requests.leave(
            0, decoded
        )  # while it is alone: what was not decoded is given back later
        await eventually(lambda: one.shared)
        await settled()
        assert service.admission.running == 2
        assert one._backend.state.front_ends == FRONT_ENDS
        service.requests.leave(1, 0)  # gives 200 back
        await settled()
        assert service.admission.running == 0
        await check_left(service, other, caller, over=605 - decoded, within=595 - decoded)


async def test_tokens_are_given_back_though_the_host_never_heard_of_the_end() -> None:
    """A connection that the network holds up takes messages to the grave for some seconds."""
    caller = Caller("eve", tokens_per_minute=600)
    async with running() as service:
        one, other, _ = service.front_ends
        for name in (0, 1):
            service.requests.come(name, one, caller, 2, max_tokens=100)
        await settled()
        link = one._backend._link  # type: ignore[union-attr]
        service.requests.leave(1, 0)  # is told: 200 are given back, once
        await settled()
        link.drops = lambda method, _: method == "leave"
        service.requests.leave(0, 50)  # is not, and the front end believes that it is
        await settled()
        assert one.shared
        link.close()
        await eventually(lambda: not one.shared)
        await eventually(lambda: one.shared)
        await settled()
        assert service.admission.running == 0
        await check_left(service, other, caller, over=555, within=545)


async def test_a_connection_that_ends_before_it_was_used_forgets_no_charge() -> None:
    caller = Caller("eve", tokens_per_minute=600)
    async with running() as service:
        one, other, _ = service.front_ends
        service.requests.come(0, one, caller, 2, max_tokens=100)
        await settled()
        assert service.host is not None
        one._backend._link.close()  # type: ignore[union-attr]
        await eventually(lambda: not one.shared)
        states = service.host.join("never told", one._name)
        await anext(states)
        await states.aclose()
        await eventually(lambda: one.shared)
        await settled()
        assert service.admission.running == 2
        service.requests.leave(0, 200)  # all that it might have
        await settled()
        await check_left(service, other, caller, over=405, within=395)


async def test_the_number_of_front_ends_shrinks_after_some_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(shared, "monotonic", lambda: now_s[0])
    one = SharedAdmission(_never, admission, front_ends=3)
    seen = []
    times = (0, 10, 20, 59, 60, 61, 100, 130, 189, 190)
    for now_s[0], told in zip(times, (1, 2, 1, 1, 1, 1, 5, 4, 4, 4), strict=True):
        one._learn_front_ends(told)
        seen.append(one._front_ends)
    # Two were there meanwhile, when less than a minute had passed since there were three.
    assert seen == [3, 3, 3, 3, 2, 2, 5, 5, 5, 4]


async def test_a_front_end_starts_without_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "FIRST_S", 0.01)
    one = SharedAdmission(_never, admission, front_ends=3)
    await one.start()
    assert (one.shared, one.full) == (False, False)
    async with one.enter(4):
        assert one.own_running == one.running == 4
    await one.stop()


@pytest.mark.parametrize("turned_into", [RuntimeError, EngineDeadError])
async def test_a_front_end_ends_although_connecting_swallows_the_cancellation(
    monkeypatch: pytest.MonkeyPatch, turned_into: type[Exception]
) -> None:
    """As calls of Ray do, which end with an error of their own."""
    monkeypatch.setattr(shared, "FIRST_S", 0.01)

    async def connect() -> MemoryLink:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise turned_into("the call was cancelled") from None
        raise AssertionError

    one = SharedAdmission(connect, admission, front_ends=3)
    await one.start()
    stopping = asyncio.create_task(one.stop())
    done, _ = await asyncio.wait({stopping}, timeout=2)
    assert done
