"""Bad requests: bad HTTP, bad JSON, bad text, or only too large."""

from __future__ import annotations

import asyncio
import json

import httpx

from tests.faults.service import Service
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.faults.tools.wire import post, wire
from tests.fuzz.run import mutants
from tests.fuzz.verdict import wrong_with

PROMISE = "No input makes it crash, stall or fail: all that is wrong is refused by a stated status, as JSON."
HOST = b"host: localhost\r\n"
DEEP = 100_000


def bodies(values: int) -> dict[str, bytes]:
    """JSON, or nearly, by what is wrong with it.

    Args:
        values: number of values in a long list. The service spends at most a quarter of its time on such
            bodies, one after the other, so 100,000 values cost two seconds each.
    """
    long = json.dumps({"prompt": "a" * 10_000_000}).encode()
    wrong = {
        "10 MB of text": long,
        "nested lists": b"[" * DEEP + b"]" * DEEP,
        "nested objects": b'{"prompt":' * DEEP + b"1" + b"}" * DEEP,
        "open brackets": b"[" * DEEP,
        "a nested prompt": b'{"prompt":' + b"[" * DEEP + b"]" * DEEP + b"}",
        "1e400": b'{"prompt":"a","temperature":1e400}',
        "-1e400 tokens": b'{"prompt":"a","max_tokens":-1e400}',
        "NaN": b'{"prompt":"a","temperature":NaN,"top_p":NaN}',
        "Infinity": b'{"prompt":"a","timeout_s":Infinity,"n":-Infinity}',
        "5,000 digits": b'{"prompt":"a","n":' + b"9" * 5000 + b"}",
        "300 digits": b'{"prompt":"a","seed":' + b"9" * 300 + b"}",
        "a lone surrogate": b'{"prompt":"\\ud800"}',
        "a lone surrogate as bytes": b'{"prompt":"\xed\xa0\x80"}',
        "half a character": b'{"prompt":"\xf0\x9f\x91"}',
        "Latin-1": b'{"prompt":"caf\xe9"}',
        "a NUL in a key": b'{"pro\\u0000mpt":"a"}',
        "raw control characters": b'{"prompt":"a\x00b\x1f"}',
        "unknown keys": json.dumps({f"key{i}": i for i in range(60_000)}).encode(),
        "a list of the wrong kind": json.dumps({"prompts": [1] * (2 * values)}).encode(),
        "many prompts": json.dumps({"prompts": ["a"] * values}).encode(),
        "many stop strings": json.dumps({"prompt": "a", "stop": ["x"] * values}).encode(),
        "a list of huge n": b'{"prompt":"a","n":[' + b"1000000," * (values // 2) + b"1]}",
        "a string": b'"prompt"', "a number": b"1", "nothing": b"", "null": b"null", "space": b" " * 9999,
        "two values": b'{"prompt":"a"} {"prompt":"b"}', "a comment": b'{"prompt":"a" /* x */}',
    }  # fmt: skip
    for name in ("n", "max_tokens", "temperature", "seed", "stop", "prompt", "stream", "timeout_s"):
        for number, value in enumerate((b'{"a":1}', b"[[]]", b"-2")):
            wrong[f"{name} of a wrong kind {number}"] = b'{"prompt":"a","%s":%s}' % (
                name.encode(),
                value,
            )
    return wrong


# As the first thing on a connection. None: whatever is said must be a clear error if it is anything.
PROTOCOL: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "a word": b"hello\r\n\r\n",
    "no such version": b"GET /healthz HTTP/9.9\r\n" + HOST + b"\r\n",
    "no such method": b"BREW /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/1.0": b"GET /healthz HTTP/1.0\r\n\r\n",
    "HTTP/1.0, post": b"POST /generate HTTP/1.0\r\ncontent-length: 2\r\n\r\n{}",
    "HEAD": b"HEAD /generate HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
    "OPTIONS": b"OPTIONS * HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
    "TRACE": b"TRACE /generate HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
    "another server's URL": b"GET http://127.0.0.1:1/x HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
    "a path out of the tree": b"GET /../../etc/passwd HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
    "a path with NUL": b"GET /%00%ff%0d%0a HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
    "a bad chunk size": b"POST /generate HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "a huge chunk size": b"POST /generate HTTP/1.1\r\n" + HOST
    + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "chunks past the limit": b"POST /generate HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"
    + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 40,
    "two lengths": b"POST /generate HTTP/1.1\r\n" + HOST
    + b"content-length: 2\r\ncontent-length: 200\r\n\r\n{}",
    "a length and chunks": b"POST /generate HTTP/1.1\r\n" + HOST
    + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a negative length": b"POST /generate HTTP/1.1\r\n" + HOST + b"content-length: -5\r\n\r\n{}",
    "a length of 10^30": b"POST /generate HTTP/1.1\r\n" + HOST
    + b"content-length: 1" + b"0" * 30 + b"\r\n\r\n",
    "a length in letters": b"POST /generate HTTP/1.1\r\n" + HOST + b"content-length: two\r\n\r\n{}",
    "a field that goes on": b"GET /healthz HTTP/1.1\r\n" + HOST + b"x-request-id: a\r\n b\r\n\r\n",
    "a field with a bare line feed": b"GET /healthz HTTP/1.1\r\n" + HOST
    + b"connection: close\r\nx-request-id: a\nset-cookie: b\r\n\r\n",
    "an id with markup": b"GET /healthz HTTP/1.1\r\n" + HOST
    + b"connection: close\r\nx-request-id: <script>\xff\x01\r\n\r\n",
    "an encoded line break": b"GET /healthz HTTP/1.1\r\n" + HOST
    + b"connection: close\r\nx-request-id: a%0d%0aset-cookie: b\r\n\r\n",
    "an upgrade": b"GET /healthz HTTP/1.1\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + HOST + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n",
    "pipelined": (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * 50
    + b"GET /nothing HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n",
}  # fmt: skip


async def inject(stage: Stage) -> Tally:
    """Each of them at each route, then mutants of valid requests."""
    service = await stage.service()
    await service.ask()
    # The store opens, and starts threads and connections of its own, as many as are asked for at once.
    await asyncio.gather(*(service.client.get("/loadtests") for _ in range(64)))
    await mutants(service.url, count=100, seed=0)
    wrong_bodies = bodies(stage.count(100_000, least=20_000))
    before = await service.held()
    tally = Tally()
    for target in (
        "/generate?mode=bon",
        "/v1/completions",
        "/v1/chat/completions",
        "/compare",
        "/preferences",
    ):
        await asyncio.gather(
            *(_body(service, target, *item, tally) for item in wrong_bodies.items())
        )
    kinds = (
        "text/plain",
        "application/xml",
        "multipart/form-data; boundary=x",
        "text/json;;;",
        "\xff",
    )
    await asyncio.gather(*(_content_type(service, kind, tally) for kind in kinds))
    # At once: after some, the server keeps the connection until no more comes for a while.
    await asyncio.gather(*(_protocol(service, *item, tally) for item in PROTOCOL.items()))
    statuses, wrong = await mutants(service.url, count=stage.count(20_000, least=300), seed=1)
    tally.asked += statuses.total() + len(wrong)
    tally.lost += wrong
    tally.errors.update({str(status): count for status, count in statuses.items() if status != 200})
    tally.answered += statuses[200]
    tally.add(await service.ask("bon"))
    tally.left_over = await service.left_over(before)
    return tally


async def _body(service: Service, target: str, name: str, body: bytes, tally: Tally) -> None:
    headers = {"content-type": "application/json"}
    try:
        response = await service.client.post(target, content=body, headers=headers)
    except httpx.HTTPError as error:
        # A refusal of 10 MB may come, and the connection end, before all of it is sent.
        if len(body) > 2**20 and isinstance(error, httpx.WriteError | httpx.ReadError):
            response = await _refusal_while_sending(service, target, body)
        else:
            tally.asked += 1
            tally.lost.append(f"{name}: {type(error).__name__}")
            return
    _judge(f"{name} at {target}", response, tally, may_be_well=False)


async def _refusal_while_sending(service: Service, target: str, body: bytes) -> httpx.Response:
    async with wire(service.url) as connection:
        connection.send(post(target, body[:1000], length=len(body)))
        return await connection.response()


async def _content_type(service: Service, kind: str, tally: Tally) -> None:
    content, headers = b'{"prompt":"a"}', [("content-type", kind.encode("latin-1"))]
    response = await service.client.post("/generate", content=content, headers=headers)
    _judge(f"content type {kind}", response, tally, may_be_well=False)


async def _protocol(service: Service, name: str, said: bytes, tally: Tally) -> None:
    async with wire(service.url) as connection:
        connection.send(said)
        told = await connection.rest()
    if b"set-cookie" in told.lower().partition(b"\r\n\r\n")[0]:
        tally.asked += 1
        tally.lost.append(f"{name}: a field of the client's came back")
    while told:
        told = _judge_first(name, said.partition(b" ")[0].decode("latin-1"), told, tally)


def _judge_first(name: str, method: str, told: bytes, tally: Tally) -> bytes:
    """Judge the first response; what follows it."""
    head, _, rest = told.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = httpx.Headers([line.partition(": ")[::2] for line in lines])
    length = 0 if method == "HEAD" else int(fields.get("content-length", len(rest)))
    try:
        status = int(first.split(" ")[1])
        response = httpx.Response(status, headers=fields, content=rest[:length])
    except (ValueError, IndexError):
        tally.asked += 1
        tally.lost.append(f"{name}: {first[:80]}")
        return b""
    _judge(name, response, tally, method=method, stated=frozenset({400}))
    return rest[length:]


def _judge(
    name: str,
    response: httpx.Response,
    tally: Tally,
    *,
    method: str = "POST",
    may_be_well: bool = True,
    stated: frozenset[int] = frozenset(),
) -> None:
    tally.asked += 1
    trouble = wrong_with(response, method, stated)
    if response.status_code == 200 and not may_be_well:
        trouble = "taken as if nothing were wrong"
    if trouble:
        tally.lost.append(f"{name}: {trouble}"[:300])
    elif response.status_code == 200:
        tally.answered += 1
    else:
        tally.errors[str(response.status_code)] += 1
