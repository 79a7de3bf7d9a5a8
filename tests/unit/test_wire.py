"""The wire between processes: calls, streams, errors, and the ends of either side."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vbon.errors
from service.wire import (
    ConnectionLostError,
    LeavingError,
    WireClient,
    WireError,
    WireServer,
    interface_of,
)
from service.wire import messages as wire_messages
from service.wire.connection import Connection
from service.wire.errors import error_parts, rebuilt_error
from service.wire.interface import read_value
from service.wire.messages import WINDOW, encoded, value_of
from tests.unit.wire_target import INTERFACE, PATIENT, QUICK, Target
from vbon.engine import Candidate, Sampling
from vbon.errors import InvalidInputError, PromptTooLongError, VbonError
from vbon.prompts import Prompt
from vbon.trace_context import trace_headers


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (another side's state)
            await asyncio.sleep(0.002)


@asynccontextmanager
async def connection(
    path: Path, **options: Any
) -> AsyncGenerator[tuple[Target, WireServer, WireClient], None]:
    target = Target()
    server = WireServer(f"ipc://{path}/s", target, INTERFACE, **options)
    await server.start()
    options.pop("on_left", None)
    client = WireClient(server.address, INTERFACE, **options | {"secret": server.secret})
    await client.connect()
    try:
        yield target, server, client
    finally:
        client.close()
        await server.stop()


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncGenerator[tuple[Target, WireServer, WireClient], None]:
    async with connection(tmp_path) as found:
        yield found


Parts = tuple[Target, WireServer, WireClient]


async def test_calls_and_streams_give_what_the_methods_give(parts: Parts) -> None:
    _, _, client = parts
    assert await client.call("add", 2, 3) == 5
    async with aclosing(client.stream("numbers", 5)) as items:
        assert [item async for item in items] == [0, 1, 2, 3, 4]
    results = await asyncio.gather(*(client.call("add", i, i) for i in range(200)))
    assert results == [2 * i for i in range(200)]


async def test_trace_headers_reach_the_method(parts: Parts) -> None:
    _, _, client = parts
    token = trace_headers.set({"traceparent": "00-1-2-01"})
    try:
        assert await client.call("trace") == {"traceparent": "00-1-2-01"}
    finally:
        trace_headers.reset(token)
    assert await client.call("trace") == {}


async def test_typed_errors_keep_their_type_and_others_their_texts_back(parts: Parts) -> None:
    _, _, client = parts
    with pytest.raises(PromptTooLongError, match="limit of 4") as refused:
        await client.call("fail", "typed")
    assert refused.value.field == "prompt"
    with pytest.raises(WireError, match="ZeroDivisionError") as failed:
        await client.call("fail", "other")
    assert "private" not in str(failed.value)
    broken = client.stream("break_off")
    assert await anext(broken) == 1
    with pytest.raises(InvalidInputError, match="enough"):
        await anext(broken)


async def test_an_error_that_cannot_be_sent_whole_still_ends_its_call(parts: Parts) -> None:
    _, _, client = parts
    async with asyncio.timeout(60):
        with pytest.raises(InvalidInputError, match=r"file caf\\udce9 is missing") as named:
            await client.call("fail", "not text")
        assert named.value.field == r"caf\udce9"
        with pytest.raises(InvalidInputError, match="too many"):
            await client.call("fail", "large number")
        assert await client.call("add", 1, 1) == 2


async def test_cancelling_or_leaving_aborts_the_method(parts: Parts) -> None:
    target, server, client = parts
    task = asyncio.create_task(client.call("wait"))
    await eventually(lambda: server.calls == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: target.ended == ["wait"])
    async with aclosing(client.stream("drip")) as items:
        assert await anext(items) == 1
    await eventually(lambda: target.ended == ["wait", "drip"])
    assert server.calls == 0
    assert await client.call("add", 1, 1) == 2


async def test_a_slow_client_holds_the_stream_up(parts: Parts) -> None:
    target, _, client = parts
    async with aclosing(client.stream("numbers", 1_000)) as items:
        assert await anext(items) == 0
        for _ in range(50):  # the server could send everything meanwhile
            assert await client.call("add", 1, 1) == 2
        assert target.sent <= WINDOW + 1
        assert [item async for item in items] == list(range(1, 1_000))


async def test_items_that_arrived_together_can_be_taken_together(parts: Parts) -> None:
    target, _, client = parts
    async with aclosing(client.batches("numbers", 1_000)) as batches:
        sizes, found = [], []
        async for batch in batches:
            for _ in range(10):
                assert await client.call("add", 1, 1) == 2
            assert target.sent <= len(found) + 2 * WINDOW + 1
            sizes.append(len(batch))
            found += batch
    assert found == list(range(1_000))
    assert 1 < max(sizes) <= WINDOW
    broken = client.batches("break_off")
    assert await anext(broken) == [1]
    with pytest.raises(InvalidInputError, match="enough"):
        await anext(broken)


async def test_messages_without_an_answer_arrive_in_order_with_their_client(parts: Parts) -> None:
    target, _, client = parts
    for number in range(3):
        client.tell("note", number)
    me = await client.call("who")
    assert target.told == [(me, number) for number in range(3)]


# Refusals


async def test_what_does_not_fit_is_refused_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with connection(tmp_path, max_bytes=1_000) as (_, _, client):
        assert await client.call("size", "x" * 900) == 900
        with pytest.raises(WireError, match="1,000 at most"):
            await client.call("size", "x" * 1_000)
        with pytest.raises(WireError, match="1,000 at most"):
            await client.call("long", 1_000)
        with pytest.raises(WireError, match="must be data"):
            await client.call("add", object(), 1)
        with pytest.raises(WireError, match="must be data"):
            await client.call("add", 2**64, 1)
        with pytest.raises(WireError, match="must be data"):
            await client.call("size", "\ud800")
        with pytest.raises(WireError, match="arguments of add cannot be read"):
            await client.call("add", "1", "2")
        client._interface = {**INTERFACE, "other": INTERFACE["add"]}
        with pytest.raises(WireError, match="no method 'other'"):
            await client.call("other", 1, 2)
        assert await client.call("add", 1, 1) == 2


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


async def raw_answers(server: WireServer, *sent: bytes) -> list[Any]:
    """The messages with which a server answers these bytes, until it ends the connection."""
    path = server.address.removeprefix("ipc://")
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        for data in sent:
            writer.write(data)
        async with asyncio.timeout(60):
            data = await reader.read()
        answers = []
        while data:
            length = int.from_bytes(data[:4], "big")
            answers.append(wire_messages.from_server.decode(data[4 : 4 + length]))
            data = data[4 + length :]
        assert isinstance(answers[-1], wire_messages.Refused)
        return answers
    finally:
        writer.close()
        await writer.wait_closed()


async def test_malformed_messages_end_their_own_connection_only(tmp_path: Path) -> None:
    async with connection(tmp_path, max_bytes=1_000) as (_, server, client):
        hello = encoded(wire_messages.Hello(wire_messages.VERSION, server.secret))
        for frame, words in (
            (b"", "malformed"),
            (b"\xc1", "malformed"),
            (msgspec.msgpack.encode([2, "x", 3]), "malformed"),
            (msgspec.msgpack.encode([99]), "malformed"),
            (b"\x91" * 1_500, "malformed"),
            (b"x" * 2_100, "2,100 bytes; at most 1,000"),
        ):
            *_, refused = await raw_answers(server, framed(hello, frame))
            assert words in refused.reason
        greetings = (
            (encoded(wire_messages.Beat()), "has not greeted"),
            (encoded(wire_messages.Hello(wire_messages.VERSION, "guess")), "secret is wrong"),
            (encoded(wire_messages.Hello(0, server.secret)), "version 0"),
        )
        for frame, words in greetings:
            [refused] = await raw_answers(server, framed(frame))
            assert words in refused.reason
        # A length without its bytes, as of a peer that speaks something else.
        [refused] = await raw_answers(server, b"GET / HTTP/1.1")
        assert "1,195,725,856 bytes; at most 1,000" in refused.reason
        assert await client.call("add", 1, 1) == 2
        assert server.clients == 1


@given(st.lists(st.binary(max_size=20), max_size=6), st.lists(st.integers(1, 40), max_size=8))
def test_frames_arrive_whole_however_the_bytes_are_cut(
    frames: list[bytes], cuts: list[int]
) -> None:
    found: list[bytes] = []
    connection = Connection(
        lambda _, new: found.extend(new), lambda *_: None, lambda _: None, max_bytes=20
    )
    data = framed(*frames)
    for cut in cuts:
        if data:
            connection.data_received(data[:cut])
            data = data[cut:]
    if data:
        connection.data_received(data)
    assert found == frames


async def test_who_does_not_know_the_secret_takes_no_memory(tmp_path: Path) -> None:
    async with connection(tmp_path) as (_, server, client):
        # The length of a message that would be taken after the greeting, and no more of it.
        async with asyncio.timeout(60):
            [refused] = await raw_answers(server, (50_000_000).to_bytes(4, "big"))
        assert "50,000,000 bytes; at most" in refused.reason
        assert await client.call("size", "x" * 5_000_000) == 5_000_000


async def test_a_client_that_does_not_greet_is_dropped(tmp_path: Path) -> None:
    async with connection(tmp_path, timing=QUICK) as (_, server, _):
        [refused] = await raw_answers(server)
        assert "silent for too long" in refused.reason


async def test_a_wrong_secret_is_refused(parts: Parts) -> None:
    _, server, _ = parts
    stranger = WireClient(server.address, INTERFACE, secret="guess")
    with pytest.raises(ConnectionLostError, match="the secret is wrong"):
        await stranger.connect()
    with pytest.raises(ConnectionLostError, match="the secret is wrong"):
        await stranger.call("add", 1, 1)


# The ends of either side


async def test_nobody_listens(tmp_path: Path) -> None:
    for address in (f"ipc://{tmp_path}/none", "tcp://127.0.0.1:9", "tcp://[::1]:9", "udp://x:1"):
        client = WireClient(address, INTERFACE)
        with pytest.raises(ConnectionLostError, match="nobody listens"):
            await client.connect(20)
        with pytest.raises(ConnectionLostError):
            await client.call("add", 1, 1)


async def test_an_address_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    for address in (f"ipc://{tmp_path}/no/such/directory", "tcp://127.0.0.1:x", "tcp://"):
        server = WireServer(address, Target(), INTERFACE)
        with pytest.raises(WireError, match="cannot listen"):
            await server.start()


async def test_any_free_port_will_do() -> None:
    server = WireServer("tcp://127.0.0.1:*", Target(), INTERFACE)
    await server.start()
    client = WireClient(server.address, INTERFACE, secret=server.secret)
    await client.connect()
    assert await client.call("add", 1, 1) == 2
    client.close()
    await server.stop()


async def test_a_server_that_ends_fails_every_call_and_can_be_found_again(tmp_path: Path) -> None:
    async with connection(tmp_path) as (target, server, client):
        open_calls = [asyncio.create_task(client.call("wait")) for _ in range(3)]

        async def watch() -> None:
            async for _ in client.stream("drip"):
                pass

        open_calls.append(asyncio.create_task(watch()))
        await eventually(lambda: server.calls == 4)
        await server.stop()
        assert sorted(target.ended) == ["drip", "wait", "wait", "wait"]
        ended = await asyncio.gather(*open_calls, return_exceptions=True)
        assert {type(one) for one in ended} == {ConnectionLostError}
        assert not client.connected
        again = WireServer(server.address, target, INTERFACE, secret=server.secret)
        await again.start()
        await client.connect()
        assert await client.call("add", 1, 1) == 2
        await again.stop()


SERVE = """
import asyncio, sys, time
from service.wire import WireServer
from tests.unit.wire_target import INTERFACE, PATIENT, Target

async def main():
    server = WireServer(sys.argv[1], Target(), INTERFACE, secret="s", timing=PATIENT)
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The address and the process id of a server in another process."""
    address = f"ipc://{tmp_path}/s"
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, address], stdout=subprocess.PIPE, cwd=Path.cwd()
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield address, process.pid
        finally:
            process.kill()


async def test_a_server_that_is_killed_or_hangs_fails_every_call(
    other_process: tuple[str, int],
) -> None:
    address, pid = other_process
    ends: tuple[tuple[int, str], ...] = (
        (signal.SIGSTOP, "no sign of life for 1 s"),
        (signal.SIGKILL, "has ended"),
    )
    for end, words in ends:
        client = WireClient(address, INTERFACE, secret="s", timing=PATIENT)
        await client.connect()
        calls = [asyncio.create_task(client.call("wait")) for _ in range(3)]
        assert await client.call("add", 1, 1) == 2
        os.kill(pid, end)
        async with asyncio.timeout(60):
            ended = await asyncio.gather(*calls, return_exceptions=True)
        for one in ended:
            assert isinstance(one, ConnectionLostError)
            assert words in str(one)
        if end == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)


async def test_the_work_of_a_client_that_is_gone_is_aborted(tmp_path: Path) -> None:
    left: list[str] = []
    async with connection(tmp_path, on_left=left.append, timing=QUICK) as (target, server, client):
        me = await client.call("who")
        task = asyncio.create_task(client.call("wait"))
        await eventually(lambda: server.calls == 1)
        client.close()
        with pytest.raises(ConnectionLostError):
            await task
        await eventually(lambda: left == [me] and target.ended == ["wait"])
        assert (server.clients, server.calls) == (0, 0)


async def test_a_silent_client_is_dropped_and_told_if_it_speaks_again(tmp_path: Path) -> None:
    async with connection(tmp_path, timing=QUICK) as (target, server, client):
        assert client._beating is not None
        client._beating.cancel()  # as if its process were stopped
        task = asyncio.create_task(client.call("wait"))
        await eventually(lambda: target.ended == ["wait"])
        assert server.clients == 0
        later = asyncio.create_task(client.call("add", 1, 1))
        for one in (task, later):
            with pytest.raises(ConnectionLostError, match="silent for too long"):
                await one


async def test_a_server_that_leaves_finishes_what_it_has(parts: Parts) -> None:
    target, server, client = parts
    slow = client.stream("drip")
    assert await anext(slow) == 1
    lasting = client.stream("last")
    assert await anext(lasting) == 0
    draining = asyncio.create_task(server.drain(20))
    await eventually(lambda: client.leaving)
    with pytest.raises(LeavingError):
        await client.call("add", 1, 1)
    with pytest.raises(LeavingError):
        await anext(lasting)
    assert not draining.done()
    newcomer = WireClient(server.address, INTERFACE, secret=server.secret)
    await newcomer.connect()
    await eventually(lambda: newcomer.leaving)
    newcomer.close()
    await slow.aclose()
    assert await draining == 0
    assert target.ended == ["last", "drip"]


async def test_draining_has_a_limit(parts: Parts) -> None:
    _, server, client = parts
    task = asyncio.create_task(client.call("wait"))
    await eventually(lambda: server.calls == 1)
    assert await server.drain(0.01) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_ends_in_one_turn_travels_in_one_message(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server, client = parts
    sent: list[int] = []
    send = Connection.send

    def counted(connection: Connection, frames: Sequence[bytes]) -> None:
        if connection in server._clients:
            sent.append(len(frames))
        send(connection, frames)

    monkeypatch.setattr(Connection, "send", counted)
    async with aclosing(client.stream("numbers", 10)) as items:
        assert len([item async for item in items]) == 10
    assert sent == [11]  # and the end


# Messages

TEXTS = st.text(max_size=20)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
IDS = st.lists(st.integers(0, 2**31), max_size=5).map(tuple)
PROMPTS = st.builds(Prompt, text=TEXTS) | st.builds(
    Prompt,
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": TEXTS},
            optional={
                "tool_calls": st.lists(st.dictionaries(TEXTS, PLAIN, max_size=2), max_size=2)
            },
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    template_kwargs=st.none() | st.dictionaries(TEXTS, PLAIN, max_size=2),
    tools=st.lists(st.dictionaries(TEXTS, PLAIN, max_size=2), max_size=2).map(tuple),
    special_tokens=st.none() | st.booleans(),
)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.integers(1, 10**6),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**64 - 1),
    stop=st.lists(TEXTS, max_size=2).map(tuple),
    priority=st.integers(-(2**63), 2**63 - 1),
    stop_token_ids=IDS,
    logit_bias=st.none() | st.dictionaries(st.integers(0, 2**31), st.floats(-100, 100), max_size=3),
    response_format=st.none() | st.dictionaries(TEXTS, PLAIN, max_size=2),
)
CANDIDATES = st.builds(
    Candidate,
    index=st.integers(0, 100),
    text=TEXTS,
    token_ids=IDS,
    finish_reason=st.sampled_from(["stop", "length"]),
    token_logprobs=st.none() | st.lists(st.floats(-50, 0), max_size=4).map(tuple),
    top_logprobs=st.none()
    | st.lists(st.lists(st.floats(-50, 0), max_size=2).map(tuple), max_size=2).map(tuple),
)


class Shapes:
    """The types that cross."""

    async def both(self, prompt: Prompt, sampling: Sampling) -> Candidate:
        raise NotImplementedError


SHAPES = interface_of(Shapes, "both")["both"]


@settings(max_examples=25)
@given(prompt=PROMPTS, sampling=SAMPLINGS, candidate=CANDIDATES)
def test_whatever_a_request_has_crosses_whole(
    prompt: Prompt, sampling: Sampling, candidate: Candidate
) -> None:
    start = wire_messages.Start(7, "both", value_of((prompt, sampling), 10**6), {"a": "b"})
    again = wire_messages.from_client.decode(encoded(start))
    assert (again.call, again.method, again.trace) == (7, "both", {"a": "b"})
    assert read_value(SHAPES.arguments, again.args, "x") == (prompt, sampling)
    item = wire_messages.from_server.decode(
        encoded(wire_messages.Item(7, value_of(candidate, 10**6)))
    )
    assert read_value(SHAPES.result, item.value, "x") == candidate


@given(st.binary(max_size=60))
def test_no_bytes_become_anything_but_a_message_or_an_error(data: bytes) -> None:
    for decoder in (wire_messages.from_client, wire_messages.from_server):
        try:
            message = decoder.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            continue
        assert isinstance(message, msgspec.Struct)


def test_every_error_crosses_whole() -> None:
    errors: list[VbonError] = []
    for kind in vars(vbon.errors).values():
        if isinstance(kind, type) and issubclass(kind, VbonError):
            bare = kind.__new__(kind)
            bare.args = ("text",)
            errors.append(bare)
    errors.append(InvalidInputError("wrong", field="prompt"))
    errors[-1].log_text = "for the log"
    for error in errors:
        data = msgspec.msgpack.decode(msgspec.msgpack.encode(error_parts(error)))
        again = rebuilt_error(msgspec.convert(data, type(error_parts(error))))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)

    class OwnError(InvalidInputError):
        """An error of a plug-in."""

    own = rebuilt_error(error_parts(OwnError("mine", field="n")))
    assert type(own) is InvalidInputError
    assert (str(own), own.field) == ("mine", "n")
