"""The limits of several front ends over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from service.admission import shared
from service.admission.admission import Admission
from service.admission.host import AdmissionHost
from service.admission.shared import SharedAdmission
from service.context.caller import Caller
from service.wire.limits import Place, limits_connector, limits_server
from service.wire.server import WireServer
from tests.unit.test_shared_admission import Requests, eventually

KEY = Caller("bob", max_sequences=4, tokens_per_minute=100)


class Site:
    """A host at one address, which can go and come back, and two front ends."""

    def __init__(self, directory: Path) -> None:
        self._address = f"ipc://{directory}/limits"
        self._server: WireServer | None = None
        self.admission = _admission()
        self.one, self.other = (
            SharedAdmission(limits_connector(self._place), _admission, front_ends=2)
            for _ in range(2)
        )

    async def _place(self) -> Place:
        return self._address, "word"

    async def begin(self) -> None:
        self.admission = _admission()
        host = AdmissionHost(self.admission, front_ends=2)
        self._server = limits_server(self._address, host, "word")
        await self._server.start()

    async def end(self) -> None:
        if self._server is not None:
            await self._server.stop()


def _admission(front_ends: int = 1) -> Admission:
    return Admission(running=8 // front_ends, waiting=8 // front_ends)


def _decided(requests: Requests, name: int) -> bool:
    return requests.state[name] != "waits"


def _has(found: Admission, name: int) -> bool:
    return found.running + found.waiting == (5, 8, 10)[name]


@asynccontextmanager
async def site(directory: Path) -> AsyncGenerator[Site, None]:
    here = Site(directory)
    await here.begin()
    await asyncio.gather(here.one.start(), here.other.start())
    yield here
    await asyncio.gather(here.one.stop(), here.other.stop())
    await here.end()


async def test_limits_hold_over_the_wire_and_come_back_with_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "AGAIN_S", 0.02)
    requests = Requests()
    async with site(tmp_path) as here:
        for name, (at, sequences) in enumerate(((here.one, 5), (here.other, 3), (here.other, 2))):
            requests.come(name, at, Caller(""), sequences)
            await eventually(partial(_has, here.admission, name))
        await eventually(lambda: (here.admission.running, here.admission.waiting) == (8, 2))
        requests.leave(0, 4)
        await eventually(lambda: requests.state[2] == "runs")
        await here.end()
        await eventually(lambda: not (here.one.shared or here.other.shared))
        requests.come(3, here.one, Caller(""), 4)  # its share
        requests.come(4, here.other, Caller(""), 1)  # has 5 of its 4
        await eventually(lambda: requests.state[3] == "runs")
        assert requests.state[4] == "waits"
        await here.begin()
        await eventually(lambda: here.admission.waiting == 1)
        assert here.admission.running == 9
        requests.leave(1, None)
        await eventually(lambda: requests.state[4] == "runs")
        await requests.ended()
        await eventually(lambda: here.admission.running == here.admission.waiting == 0)


async def test_refusals_keep_their_texts_fields_and_times(tmp_path: Path) -> None:
    requests, alone = Requests(), Requests()
    async with site(tmp_path) as here:
        plain = _admission()
        asked = ((5, 1), (1, 101), (2, 50), (1, 1), (1, 1))
        for name, (sequences, max_tokens) in enumerate(asked):
            for them, at in ((requests, here.one), (alone, plain)):
                them.come(name, at, KEY, sequences, max_tokens=max_tokens)
            await eventually(partial(_decided, requests, name))
        for name in (0, 1, 2):
            assert requests.state[name] == alone.state[name]
        # The clock goes on between the two, by much less than a second.
        for name in (3, 4):
            assert requests.state[name][0] == alone.state[name][0]
            assert requests.state[name][1] == pytest.approx(alone.state[name][1], abs=0.5)
        await requests.ended()
        await alone.ended()


async def test_a_wrong_secret_is_refused(tmp_path: Path) -> None:
    async with site(tmp_path) as here:

        async def place() -> Place:
            return (await here._place())[0], "wrong"

        with pytest.raises(Exception, match="secret is wrong"):
            await limits_connector(place)()
