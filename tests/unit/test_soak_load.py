"""The mixed load's judgement of answers to bad input."""

from __future__ import annotations

import random

import httpx

from tests.soak.load import Load

ERROR = {
    "message": "the Host header is not HOST or HOST:PORT",
    "type": "x",
    "param": None,
    "code": 4,
}


async def test_only_a_request_with_a_host_of_its_own_may_be_answered_400() -> None:
    hosts: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        hosts.append(request.headers["host"])
        return httpx.Response(400, json={"error": ERROR})

    transport = httpx.MockTransport(refuse)
    async with httpx.AsyncClient(base_url="http://test", transport=transport) as client:
        load = Load("http://test", client)
        chance = random.Random(0)
        while len(hosts) < 3000:
            load.wrong.clear()
            await load._bad(chance)
            assert bool(load.wrong) == (hosts[-1] == "test"), hosts[-1]
    assert 5 < sum(host != "test" for host in hosts) < 100
