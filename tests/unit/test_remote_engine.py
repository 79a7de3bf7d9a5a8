"""The engine over HTTP against a real server that imitates vLLM's, well and broken in many ways."""

from __future__ import annotations

import asyncio
import gzip
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import fields, replace
from typing import Any

import pytest

from tests.unit.openai_imitation import EOS, Server, free_port, imitation, text_of
from tests.unit.virtual_clock import virtually
from vbon.engine import UNKNOWN_TOKEN, Candidate, Partial, Sampling
from vbon.engine.affinity import Placement
from vbon.engine.protocol import candidate_seed
from vbon.engine.remote import server as remote_server
from vbon.engine.remote.engine import RemoteEngine
from vbon.engine.remote.server import (
    RemoteOptions,
    Replica,
    ReplicaError,
    parse_address,
)
from vbon.engine.remote.wire import completion_body, read_tokens
from vbon.errors import (
    CheckpointError,
    EngineDeadError,
    EngineError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
)
from vbon.http.body import WireError
from vbon.prompts import Prompt

OPTIONS = RemoteOptions(
    connect_timeout_s=1.0,
    request_timeout_s=2.0,
    start_timeout_s=0.3,
    backoff_s=0.05,
    max_backoff_s=0.2,
)
MOOD = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}},
                               "required": ["mood"]}},
}  # fmt: skip
SAMPLING = Sampling(max_tokens=8, seed=11)
clocked = virtually("vbon")
PROMPT = Prompt(text="the film was")


@asynccontextmanager
async def remote(
    *servers: Server | str, name: str = "", **options: Any
) -> AsyncGenerator[RemoteEngine, None]:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    engine = RemoteEngine(",".join(urls) + name, replace(OPTIONS, **options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@asynccontextmanager
async def serving(
    count: int = 1, **options: Any
) -> AsyncGenerator[tuple[RemoteEngine, list[Server]], None]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(imitation()) for _ in range(count)]
        engine = await stack.enter_async_context(remote(*servers, **options))
        for server in servers:
            server.bodies.clear()
        yield engine, servers


async def draw(
    engine: RemoteEngine, n: int = 1, sampling: Sampling = SAMPLING, first: int = 0
) -> list[Candidate]:
    ids = await engine.encode(PROMPT)
    async with aclosing(engine.generate(ids, sampling, n, "test", first)) as stream:
        return sorted([c async for c in stream], key=lambda candidate: candidate.index)


async def watch(engine: RemoteEngine, sampling: Sampling = SAMPLING) -> list[Partial]:
    ids = await engine.encode(PROMPT)
    async with aclosing(engine.stream(ids, sampling, 0, "test")) as stream:
        return [partial async for partial in stream]


async def until(condition: Any, seconds: float = 30.0) -> None:
    now = asyncio.get_running_loop().time
    end = now() + seconds
    while not condition():
        assert now() < end, "waited in vain"
        await asyncio.sleep(0.01)


async def settled() -> int:
    """The number of tasks, without those that are ending."""
    await asyncio.sleep(0.05)
    return len(asyncio.all_tasks())


# What is asked


@clocked
async def test_one_request_a_candidate_with_a_seed_of_its_own_and_nothing_left_to_the_server() -> (
    None
):
    async with serving() as (engine, [server]):
        sampling = Sampling(max_tokens=8, temperature=0.7, top_p=0.9, top_k=5, seed=3, stop=("x",))
        await draw(engine, 4, sampling, first=2)
    bodies = sorted(server.bodies, key=lambda body: body["seed"])
    assert [b["seed"] for b in bodies] == sorted(candidate_seed(3, i) for i in range(2, 6))
    for body in bodies:
        assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 5)
        assert (body["max_tokens"], body["n"], body["stop"]) == (8, 1, ["x"])
        # What `vllm serve` would take from the model's generation_config.json otherwise.
        assert (body["repetition_penalty"], body["min_p"]) == (1.0, 0.0)
        assert all(isinstance(token, int) for token in body["prompt"])


@clocked
async def test_without_a_seed_none_is_sent() -> None:
    async with serving() as (engine, [server]):
        await draw(engine, 2, replace(SAMPLING, seed=None))
    assert all("seed" not in body for body in server.bodies)


@clocked
async def test_a_priority_is_sent_only_where_it_says_something() -> None:
    urgent = replace(SAMPLING, priority=-2)
    async with serving(by_priority=True) as (engine, [server]):
        await draw(engine)
        await draw(engine, sampling=urgent)
        await watch(engine, urgent)
        await engine.logprobs(await engine.encode(PROMPT), [1, 2], "test", -2)
    assert [body.get("priority") for body in server.bodies] == [None, -2, -2, -2]
    async with serving() as (engine, [server]):
        with pytest.raises(InvalidInputError, match="first come"):
            await draw(engine, sampling=urgent)
    assert not server.bodies


@clocked
async def test_every_sampling_field_reaches_the_server() -> None:
    """Log-probabilities are always asked for, so their field changes only what a candidate carries."""
    other = Sampling(
        max_tokens=5, temperature=0.5, top_p=0.5, top_k=3, seed=1, stop=("x",), ignore_eos=True,
        priority=2, min_p=0.1, min_tokens=3, stop_token_ids=(7,), frequency_penalty=1,
        presence_penalty=-1, repetition_penalty=1.5, logit_bias={3: 2.0}, response_format=MOOD,
        top_logprobs=4,
    )  # fmt: skip
    plain = Sampling(max_tokens=8)
    body = completion_body("m", [1], plain, 0, stream=False)
    for field in fields(Sampling):
        changed = replace(plain, **{field.name: getattr(other, field.name)})
        sent = completion_body("m", [1], changed, 0, stream=False)
        assert (sent == body) == (field.name == "logprobs"), field.name


@pytest.mark.parametrize("field", ["min_p", "repetition_penalty"])
@pytest.mark.parametrize("owner", ["vllm", "sglang", "llamacpp", ""])
async def test_what_no_answer_proves_is_sent_only_to_servers_that_are_known_to_take_it(
    field: str, owner: str
) -> None:
    sampling = replace(SAMPLING, **{field: 0.5})
    async with imitation(owner=owner) as server, remote(server) as engine:
        if owner in {"vllm", "sglang"}:
            await draw(engine, sampling=sampling)
            assert server.bodies[-1][field] == 0.5
            return
        sent = len(server.bodies)
        for attempt in (draw(engine, sampling=sampling), watch(engine, sampling)):
            with pytest.raises(InvalidInputError, match="leave it out") as refused:
                await attempt
            assert refused.value.field == field
        assert len(server.bodies) == sent
        assert engine.alive


async def test_a_stop_token_has_its_text_elsewhere() -> None:
    """What ends one candidate by request is a word of another, unlike EOS."""
    async with serving() as (engine, _):
        ids = await engine.encode(PROMPT)
        plain = (await draw(engine, 1, replace(SAMPLING, ignore_eos=True)))[0]
        stopping = replace(SAMPLING, ignore_eos=True, stop_token_ids=(plain.token_ids[2],))
        stopped = (await draw(engine, 1, stopping))[0]
        assert stopped.finish_reason == "stop"
        first = list(plain.token_ids[:3])
        assert await engine.decode(ids, first) == text_of(first)


@pytest.mark.parametrize("streamed", [False, True])
@clocked
async def test_ignore_eos_decodes_up_to_the_limit(streamed: bool) -> None:
    """Six candidates of 40 tokens; without the field, each of them would end before."""
    sampling = replace(SAMPLING, max_tokens=40, ignore_eos=True)
    async with serving() as (engine, _):
        if streamed:
            found = [(await watch(engine, sampling))[-1]]
        else:
            found = list(await draw(engine, 6, sampling))
        assert all(len(one.token_ids) == 40 and one.finish_reason == "length" for one in found)
        ended = await draw(engine, 6, replace(sampling, ignore_eos=False))
        assert all(len(candidate.token_ids) < 40 for candidate in ended)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("ignore_eos", Sampling(max_tokens=60, seed=11, ignore_eos=True)),
        ("ignore_eos", Sampling(max_tokens=60, seed=11, ignore_eos=True, stop=("nowhere",))),
        ("stop", Sampling(max_tokens=60, seed=11, stop=(" ",))),
        ("min_tokens", Sampling(max_tokens=60, seed=11, min_tokens=59)),
        ("stop_token_ids", Sampling(max_tokens=60, seed=11, stop_token_ids=tuple(range(8)))),
        ("response_format", Sampling(max_tokens=60, seed=11, response_format=MOOD)),
    ],
)
@clocked
async def test_a_server_that_ignores_a_field_is_refused(
    name: str, sampling: Sampling, streamed: bool
) -> None:
    async with serving() as (engine, servers):
        servers[0].ignored = {name}
        with pytest.raises(InvalidInputError, match=servers[0].url) as caught:
            await (watch(engine, sampling) if streamed else draw(engine, 4, sampling))
        assert caught.value.field == name
        assert engine.alive


@clocked
async def test_what_is_known_of_the_model() -> None:
    async with serving() as (engine, [server]):
        assert engine.info.revision == "remote:org/policy"
        assert engine.info.max_model_len == 256
        assert engine.info.path == server.url


@pytest.mark.parametrize("lora", [False, True])
@clocked
async def test_a_lora_module_of_a_server_is_known_by_its_parent(lora: bool) -> None:
    async with imitation(faults={"lora"} if lora else set()) as server, remote(server) as engine:
        assert engine.info.adapter == lora


@clocked
async def test_candidates_carry_ids_text_and_logprobs() -> None:
    async with serving() as (engine, _):
        found = await draw(engine, 6, Sampling(max_tokens=30, seed=1))
    for candidate in found:
        assert candidate.text == text_of(candidate.token_ids)
        assert len(candidate.token_logprobs) == len(candidate.token_ids)
    assert {c.finish_reason for c in found} == {"stop", "length"} or all(c.token_ids for c in found)


@clocked
async def test_detokenising_leaves_out_what_ended_a_candidate() -> None:
    async with serving() as (engine, _):
        found = await draw(engine, 16, Sampling(max_tokens=30, seed=1))
        ended = next(c for c in found if c.token_ids[-1] == EOS)
        ids = await engine.encode(PROMPT)
        assert await engine.decode(ids, list(ended.token_ids)) == ended.text


@clocked
async def test_line_separators_in_a_streamed_text_end_no_event() -> None:
    async with serving() as (engine, _):
        sampling = Sampling(max_tokens=60, seed=2)
        whole = (await draw(engine, 1, sampling))[0]
        while "\u2028" not in whole.text:
            sampling = replace(sampling, seed=(sampling.seed or 0) + 1)
            whole = (await draw(engine, 1, sampling))[0]
        assert (await watch(engine, sampling))[-1].text == whole.text


@clocked
async def test_the_key_is_sent_and_in_no_log_or_message(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with imitation(api_key="s3cret-key") as server:
        async with remote(server, api_key="s3cret-key") as engine:
            await draw(engine)
        with pytest.raises(CheckpointError, match="remote_api_key_env") as caught:
            async with remote(server, api_key="wr0ng-key"):
                pass
    assert "s3cret" not in caplog.text
    assert "wr0ng" not in f"{caplog.text}{caught.value}{RemoteOptions(api_key='wr0ng')}"


# Servers that can do less


@clocked
async def test_without_token_ids_counts_and_logprobs_remain() -> None:
    async with imitation(with_token_ids=False) as server, remote(server) as engine:
        [candidate] = await draw(engine)
        assert set(candidate.token_ids) == {UNKNOWN_TOKEN}
        assert len(candidate.token_ids) == len(candidate.token_logprobs)
        assert (await watch(engine))[-1].token_ids == candidate.token_ids
        ids = await engine.encode(PROMPT)
        for refused in (
            engine.logprobs(ids, list(candidate.token_ids), "t"),
            engine.decode(ids, list(candidate.token_ids)),
        ):
            with pytest.raises(EngineError, match="return_token_ids"):
                await refused


@clocked
async def test_without_prompt_logprobs_scoring_says_what_is_missing() -> None:
    async with serving() as (engine, [server]):
        server.faults.add("no-prompt-logprobs")
        with pytest.raises(EngineError, match=f"{server.url} sent no `prompt_logprobs`"):
            await engine.logprobs(await engine.encode(PROMPT), [1, 2], "test")


@clocked
async def test_without_a_tokenizer_the_start_says_what_to_set() -> None:
    async with imitation(faults={"no-tokenizer"}) as server:
        with pytest.raises(CheckpointError, match=r"engine\.remote_tokenizer"):
            async with remote(server):
                pass


@clocked
async def test_without_a_context_length_it_must_be_configured() -> None:
    async with imitation(faults={"no-context-length"}) as server:
        with pytest.raises(CheckpointError, match=r"engine\.max_model_len"):
            async with remote(server):
                pass
        async with remote(server, max_model_len=64) as engine:
            assert engine.info.max_model_len == 64


# The start


@clocked
async def test_start_waits_no_longer_than_told_and_names_the_server() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    now = asyncio.get_running_loop().time
    started = now()
    with pytest.raises(CheckpointError, match=f"{url} is left out .*ConnectError"):
        async with remote(url):
            pass
    assert now() - started <= OPTIONS.start_timeout_s


@clocked
async def test_start_waits_for_a_server_that_comes_up() -> None:
    port = free_port()
    engine = RemoteEngine(f"http://127.0.0.1:{port}", replace(OPTIONS, start_timeout_s=5.0))
    starting = asyncio.create_task(engine.start())
    await until(lambda: "ConnectError" in engine.trouble)
    assert not engine.alive
    async with imitation(port):
        await starting
        assert engine.alive
        assert engine.trouble == ""
        await engine.stop()


@clocked
async def test_one_server_is_enough_and_the_missing_one_joins_later() -> None:
    port = free_port()
    missing = f"http://127.0.0.1:{port}/v1"
    async with imitation() as server, remote(server, missing) as engine:
        assert engine.alive
        assert missing in engine.trouble
        assert len(await draw(engine, 4)) == 4
        async with imitation(port) as second:
            await until(lambda: not engine.trouble)
            await draw(engine, 4)
            assert second.bodies


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("#other", {}, "serves org/policy; not 'other'"),
        ("", {"model": "org/other"}, "serves org/.*; not"),
        ("", {"max_model_len": 64}, "context of .* tokens, but the other servers have"),
    ],
)
@clocked
async def test_servers_of_another_model_are_refused(
    name: str, changes: dict[str, Any], words: str
) -> None:
    async with imitation() as a, imitation(**changes) as b:
        with pytest.raises(CheckpointError, match=words):
            async with remote(a, b, name=name):
                pass


@clocked
async def test_before_the_start_and_after_the_end_it_is_not_ready() -> None:
    async with imitation() as server:
        engine = RemoteEngine(server.url, OPTIONS)
        with pytest.raises(NotReadyError):
            await engine.encode(PROMPT)
        await engine.start()
        await engine.stop()
        await engine.stop()
        with pytest.raises(NotReadyError):
            await engine.encode(PROMPT)
        assert not engine.alive


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("http://user:pw@host/v1", "remote_api_key_env"),
        ("http://host/v1?key=pw", "remote_api_key_env"),
        ("http://", "not a URL"),
        ("http://host:port", "bad port"),
        ("http://a,ftp://b", "not a URL"),
        ("http://a#x,http://b#y", "different models"),
        ("http://a,http://a/v1/", "twice"),
    ],
)
def test_addresses_that_cannot_be(policy: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        parse_address(policy)
    assert "pw" not in str(caught.value)


def test_addresses() -> None:
    assert parse_address("http://a:1/v1/#org/m, http://b") == (
        ("http://a:1/v1", "http://b/v1"),
        "org/m",
    )


# Faults, one by one


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("html", "not JSON"),
        ("json-cut", "not JSON"),
        ("body-cut", "cut its answer short"),
        ("no-choices", "without `choices`"),
        ("two-choices", "2 choices; 1 was requested"),
        ("no-logprobs", r"no `logprobs\.token_logprobs`"),
        ("null-logprob", "None as a log-prob"),
        ("nan-logprob", "nan as a log-prob"),
        ("lost-id", "token ids and"),
        ("miscount", "reports . completion tokens but sent"),
        ("aborted", "without finishing it .'abort'"),
        ("unfinished", "without a finish_reason"),
        ("short", "by length, but max_tokens is 8"),
        ("500", "HTTP 500: no room"),
    ],
)
@clocked
async def test_a_wrong_answer_is_an_error_that_names_the_server(fault: str, words: str) -> None:
    before = await settled()
    async with serving() as (engine, [server]):
        server.faults.add(fault)
        with pytest.raises(EngineError, match=f"{server.url} .*{words}"):
            await draw(engine, 4)
        server.faults.clear()
        await until(lambda: engine.alive)
        assert len(await draw(engine, 4)) == 4
    assert await settled() == before


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("stream-error", "EngineCore died"),
        ("stream-garbage", "not JSON"),
        ("stream-ends", "after 2 tokens without a finish_reason"),
        ("stream-cut", "cut its answer short"),
        ("miscount", "completion tokens but sent"),
    ],
)
@clocked
async def test_half_a_stream_is_an_error_that_names_the_server(fault: str, words: str) -> None:
    goes_on = fault in ("stream-error", "stream-cut")
    async with serving(2) as (engine, servers):
        sampling = await long_one(engine)
        for server in servers:
            server.faults.add(fault)
            server.bodies.clear()
        with pytest.raises(EngineError, match=f"http://127.0.0.1:.* {words}"):
            await watch(engine, sampling)
        # Tokens had come: only what a server's death has cut goes on elsewhere, once.
        assert sum(len(server.bodies) for server in servers) == 1 + goes_on


@pytest.mark.parametrize("fault", ["stream-error", "stream-cut"])
@pytest.mark.parametrize("seeded", [True, False])
@clocked
async def test_a_stream_goes_on_at_another_server_when_its_own_dies(
    fault: str, seeded: bool
) -> None:
    async with serving(2) as (engine, servers):
        sampling = await long_one(engine)
        expected = (await watch(engine, sampling))[-1]
        prompt = await engine.encode(PROMPT)
        for server in servers:
            server.faults.add(fault)
            server.bodies.clear()
        if not seeded:
            sampling = replace(sampling, seed=None, ignore_eos=True)
        last = None
        async with aclosing(engine.stream(prompt, sampling, 0, "x")) as partials:
            async for partial in partials:
                last = partial
                for server in servers:
                    if not server.bodies:  # the one that the sample is not drawn at
                        server.faults.clear()
        assert last is not None
        assert last.continued == 1
        [first], [second] = [server.bodies for server in servers]
        if seeded:
            assert replace(last, continued=0, extra_tokens=0) == expected
            assert last.extra_tokens == 2
            assert first == second
        else:
            rest = max(first, second, key=lambda body: len(body["prompt"]))
            assert rest["prompt"] == [*prompt, *last.token_ids[:2]]
            assert rest["max_tokens"] == sampling.max_tokens - 2
            assert len(last.token_ids) == len(last.token_logprobs or ()) == sampling.max_tokens
            assert last.text == await engine.decode(prompt, list(last.token_ids))


async def long_one(engine: RemoteEngine, tokens: int = 8) -> Sampling:
    """A sampling whose candidate 0 has that many tokens."""
    for seed in range(100):
        sampling = Sampling(max_tokens=tokens, seed=seed)
        if (await draw(engine, 1, sampling))[0].finish_reason == "length":
            return sampling
    raise AssertionError


@asynccontextmanager
async def raw(
    path: str, head: str, piece: bytes, pieces: int = 1
) -> AsyncGenerator[tuple[Replica, list[int]], None]:
    """A server that answers one path so, in chunks, and others with ``{}``; the sizes of what it sent."""
    sent: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            asked = (await reader.readline()).split()[1].decode()
            first = head if asked == path else "200 OK"
            writer.write(f"HTTP/1.1 {first}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            for _ in range(pieces if asked == path else 0):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent.append(len(piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n" if asked == path else b"2\r\n{}\r\n0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        replica = Replica(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", OPTIONS)
        yield replica, sent
        await replica.close()


async def exchange(replica: Replica, how: str) -> None:
    if how == "models":
        await replica.models()
    elif how == "ask":
        await replica.ask("/completions", {})
    else:
        async with aclosing(replica.follow("/completions", {})) as events:
            async for _ in events:
                pass


@pytest.mark.parametrize(
    ("how", "path", "head", "words"),
    [
        ("models", "/v1/models", "200 OK", "more than"),
        ("models", "/health", "500 No", "HTTP 500"),
        ("models", "/v1/models", "400 No", "HTTP 400"),
        ("ask", "/v1/completions", "200 OK", "more than"),
        ("ask", "/v1/completions", "422 No", "HTTP 422"),
        ("follow", "/v1/completions", "200 OK", "more than"),
        ("follow", "/v1/completions", "500 No", "HTTP 500"),
    ],
)
@clocked
async def test_bodies_without_end_are_not_read_to_it(
    how: str, path: str, head: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those that are read nor refusals, which are quoted."""
    for name in ("_MAX_ANSWER_BYTES", "_MAX_PROBE_BYTES", "_MAX_EVENT_BYTES"):
        monkeypatch.setattr(remote_server, name, 100_000)
    async with raw(path, head, b"x" * 2**16, 1000) as (replica, sent):
        with pytest.raises((ReplicaError, InvalidInputError), match=words):
            await exchange(replica, how)
    assert 0 < sum(sent) < 2**25


@pytest.mark.parametrize("how", ["models", "ask", "follow"])
@clocked
async def test_what_is_compressed_is_not_unpacked_and_what_is_too_deep_is_not_json(
    how: str,
) -> None:
    path = "/v1/models" if how == "models" else "/v1/completions"
    packed = gzip.compress(b"[]")
    async with raw(path, "200 OK\r\ncontent-encoding: gzip", packed) as (replica, _):
        with pytest.raises(ReplicaError, match=r"compressed answer \(gzip\)"):
            await exchange(replica, how)
    async with raw(path, "200 OK", b"data: " * (how == "follow") + b"[" * 10**6 + b"\n") as (
        replica,
        _,
    ):
        with pytest.raises(ReplicaError, match="not JSON"):
            await exchange(replica, how)


@clocked
async def test_a_server_that_says_nothing_is_given_up() -> None:
    async with serving(request_timeout_s=0.2) as (engine, [server]):
        server.faults.add("hang")
        for failing in (draw(engine, 2), watch(engine)):
            await until(lambda: engine.alive)
            with pytest.raises(EngineError, match=r"no answer within 0\.2 s"):
                await asyncio.wait_for(failing, 3)
        await until(lambda: server.running == 0)
        assert server.aborted == 3


@clocked
async def test_a_server_that_dies_while_it_decodes() -> None:
    async with serving() as (engine, [server]):
        server.seconds_per_token = 0.5
        for failing in (draw(engine, 3), watch(engine, Sampling(max_tokens=8, seed=11))):
            await until(lambda: engine.alive)
            task = asyncio.create_task(failing)
            await until(lambda: server.running > 0)
            server.cut()
            with pytest.raises(EngineError, match=server.url):
                await asyncio.wait_for(task, 3)


@clocked
async def test_a_refused_request_is_the_callers() -> None:
    async with serving() as (engine, [server]):
        server.max_model_len = 10  # as if restarted; what we believe is checked by the server too
        with pytest.raises(InvalidInputError, match="maximum context length"):
            await draw(engine)
        assert engine.alive


@pytest.mark.parametrize(("status", "alive"), [("429", True), ("503", False)])
@clocked
async def test_no_room_anywhere_is_overload_with_the_soonest_retry(
    status: str, alive: bool
) -> None:
    async with serving(3) as (engine, servers):
        for seconds, server in zip(("9", "7", "8"), servers, strict=True):
            server.faults.add(status)
            server.retry_after = seconds
            server.healthy = alive
        with pytest.raises(OverloadedError, match=f"HTTP {status}") as caught:
            await draw(engine)
        assert caught.value.retry_after_s == 7
        assert engine.alive == alive


# Several servers


@clocked
async def test_the_faster_of_two_servers_gets_more() -> None:
    async with serving(2) as (engine, [slow, fast]):
        slow.seconds_per_token, fast.seconds_per_token = 0.1, 0.001
        gate = asyncio.Semaphore(8)

        async def one(seed: int) -> None:
            async with gate:
                await draw(engine, 1, Sampling(max_tokens=8, seed=seed))

        await asyncio.gather(*(one(seed) for seed in range(60)))
        assert len(slow.bodies) + len(fast.bodies) == 60
        assert len(fast.bodies) > 2 * len(slow.bodies)
        assert slow.bodies


@clocked
async def test_equal_servers_share_and_no_more_than_allowed_are_in_flight() -> None:
    async with serving(2, max_num_seqs=3) as (engine, servers):
        for server in servers:
            server.seconds_per_token, server.peak = 0.005, 0
        await draw(engine, 20)
        assert [len(server.bodies) for server in servers] == [10, 10]
        assert [server.peak for server in servers] == [3, 3]


@pytest.mark.parametrize("fault", ["500", "503", "429", "cut", "gone"])
@clocked
async def test_what_fails_at_one_server_is_done_by_the_other(fault: str) -> None:
    async with AsyncExitStack() as stack:
        good = await stack.enter_async_context(imitation())
        async with AsyncExitStack() as inner:
            bad = await inner.enter_async_context(imitation())
            engine = await stack.enter_async_context(remote(bad, good))
            expected = await draw(engine, 8)
            if fault == "gone":
                await inner.aclose()
                drawn = await draw(engine, 8)
            elif fault == "cut":
                bad.seconds_per_token = 0.5
                task = asyncio.create_task(draw(engine, 8))
                await until(lambda: bad.running == 4)
                bad.cut()
                drawn = await task
            else:
                bad.faults.add(fault)
                drawn = await draw(engine, 8)
            assert drawn == expected


@clocked
async def test_a_request_is_tried_at_two_servers_and_no_more() -> None:
    async with serving(3) as (engine, servers):
        for server in servers:
            server.faults.add("500")
        with pytest.raises(EngineError) as caught:
            await draw(engine)
        assert sum(server.url in str(caught.value) for server in servers) == 2
        assert sum(len(server.bodies) for server in servers) == 2


@clocked
async def test_nonsense_does_not_draw_all_traffic_to_the_server_that_talks_it() -> None:
    async with serving(2, backoff_s=5.0, max_backoff_s=5.0) as (engine, [bad, good]):
        good.seconds_per_token = 0.005
        bad.faults.add("html")
        with pytest.raises(EngineError):
            await draw(engine, 2)
        assert bad.url in engine.trouble
        assert len(await draw(engine, 4)) == 4


@clocked
async def test_a_server_comes_back_only_when_it_is_well() -> None:
    async with serving(2) as (engine, [bad, _]):
        bad.faults.add("500")
        bad.healthy = False
        await draw(engine, 4)
        assert engine.trouble.startswith(f"{bad.url} is left out")
        assert engine.alive
        probed = bad.probes
        await until(lambda: bad.probes > probed + 1)
        assert bad.url in engine.trouble
        bad.bodies.clear()
        await draw(engine, 4)
        assert not bad.bodies
        bad.faults.clear()
        bad.healthy = True
        await until(lambda: not engine.trouble)
        await draw(engine, 4)
        assert bad.bodies


@clocked
async def test_a_server_that_comes_back_with_another_model_stays_out() -> None:
    async with serving(2) as (engine, [bad, _]):
        bad.faults.add("500")
        bad.model = "org/other"
        await draw(engine, 4)
        await until(lambda: "serves org/other" in engine.trouble)
        assert engine.alive


@clocked
async def test_with_no_server_left_it_is_dead_until_one_returns() -> None:
    async with serving() as (engine, [server]):
        server.healthy = False
        server.faults.add("500")
        with pytest.raises(EngineError):
            await draw(engine)
        assert not engine.alive
        with pytest.raises(EngineDeadError, match=server.url):
            await draw(engine)
        server.faults.clear()
        server.healthy = True
        await until(lambda: engine.alive)
        assert len(await draw(engine)) == 1


@clocked
async def test_the_pause_before_a_probe_grows_to_its_limit_and_ends_with_an_answer() -> None:
    async with serving(backoff_s=0.02, max_backoff_s=0.1) as (engine, [server]):
        server.healthy = False
        server.faults.add("500")
        with pytest.raises(EngineError):
            await draw(engine)
        [replica] = engine._replicas._all
        probed = server.probes
        await asyncio.sleep(1.0)
        assert 9 <= server.probes - probed <= 26  # every 0.05 to 0.1 s, once grown
        server.faults.clear()
        server.healthy = True
        await until(lambda: engine.alive)
        assert replica.failures > 5
        await draw(engine)
        assert replica.failures == 0


# Leaving


@clocked
async def test_closing_makes_the_server_abort() -> None:
    before = await settled()
    async with serving() as (engine, [server]):
        long = await long_one(engine, 20)
        server.seconds_per_token = 0.02
        ids = await engine.encode(PROMPT)
        async with aclosing(engine.generate(ids, Sampling(60, seed=3), 16, "t")) as stream:
            async for _ in stream:
                break
        await until(lambda: server.running == 0)
        assert server.aborted > 0
        aborted = server.aborted
        async with aclosing(engine.stream(ids, long, 0, "t")) as partials:
            async for _ in partials:
                break
        await until(lambda: server.aborted == aborted + 1)
        task = asyncio.create_task(draw(engine, 16, Sampling(60)))
        await until(lambda: server.running > 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.running == 0)
        assert engine.alive
        assert not engine.trouble
    await until(lambda: server.connections == 0)
    assert await settled() == before


@clocked
async def test_connections_are_used_again_and_not_left_open() -> None:
    async with serving(max_num_seqs=4) as (engine, [server]):
        for seed in range(5):
            await draw(engine, 8, Sampling(max_tokens=8, seed=seed))
        assert server.connections <= 5


@clocked
async def test_a_slow_reader_is_given_what_is_new() -> None:
    async with serving() as (engine, [server]):
        sampling = await long_one(engine, 20)
        server.seconds_per_token = 0.005
        ids = await engine.encode(PROMPT)
        lengths = []
        async with aclosing(engine.stream(ids, sampling, 0, "t")) as stream:
            async for partial in stream:
                lengths.append(len(partial.token_ids))
                await asyncio.sleep(0.06)
        assert lengths[-1] == 20
        assert 1 < len(lengths) <= 6


@pytest.mark.parametrize("fault", ["echoes", "echoes-200", "echoes-text"])
async def test_what_a_server_says_reaches_its_caller_alone(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Servers repeat prompts in their errors. Everybody else reads only that the server failed."""
    caplog.set_level(logging.DEBUG, "vbon")
    async with serving(2) as (engine, servers):
        servers[0].faults.add(fault)
        servers[1].faults.add(fault)
        with pytest.raises(EngineError) as failed:
            await draw(engine)
        assert "secret" in str(failed.value)
        assert failed.value.log_text
        assert "secret" not in f"{failed.value.log_text}{engine.trouble}"
    assert "secret" not in caplog.text


# Prefix caches


def text(seed: int, characters: int) -> str:
    source = random.Random(seed)
    return "".join(source.choice("abcdefghij ") for _ in range(characters))


async def computed(placement: Placement, replicas: int) -> float:
    """Prompt tokens that servers compute for each of 8 requests with N = 16, four of them at a time."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(imitation(max_model_len=4_096)) for _ in range(replicas)
        ]
        engine = await stack.enter_async_context(remote(*servers, placement=placement))
        for server in servers:
            server.computed = 0
        gate = asyncio.Semaphore(4)

        async def one(seed: int) -> None:
            ids = await engine.encode(Prompt(text=text(seed, 1_000)))
            async with gate:
                assert len([c async for c in engine.generate(ids, SAMPLING, 16, "test")]) == 16

        await asyncio.gather(*(one(seed) for seed in range(8)))
        return sum(server.computed for server in servers) / 8


async def test_candidates_of_a_long_prompt_compute_it_once_over_all_servers() -> None:
    alone = await computed("prefix", 1)
    # By hand: one candidate computes 1,000 tokens, each other one what follows 62 blocks of 16.
    assert alone == 1_000 + 15 * 8
    assert await computed("prefix", 4) <= 1.2 * alone
    assert await computed("least-busy", 4) == 4 * 1_000 + 12 * 8


async def test_the_turns_of_a_conversation_compute_what_is_new() -> None:
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(imitation(max_model_len=4_096)) for _ in range(4)
        ]
        engine = await stack.enter_async_context(remote(*servers))
        for server in servers:
            server.computed = 0
        for _ in range(
            2
        ):  # the first request of each conversation, then the same and 160 more tokens
            for seed in range(6):
                ids = await engine.encode(Prompt(text=text(seed, 640 + 160 * _)))
                async for _partial in engine.stream(ids, SAMPLING, 0, "test"):
                    pass
        # By hand: 640 tokens are 40 blocks, all of which the second turn finds.
        assert sum(server.computed for server in servers) == 6 * (640 + 160)


@clocked
async def test_a_server_that_was_left_out_is_not_expected_to_have_what_it_had() -> None:
    async with serving(2) as (engine, servers):
        ids = await engine.encode(Prompt(text=text(1, 200)))

        async def home() -> Server:
            before = [len(server.bodies) for server in servers]
            async for _ in engine.generate(ids, SAMPLING, 4, "test"):
                pass
            [one] = [s for s, b in zip(servers, before, strict=True) if len(s.bodies) > b]
            return one

        first = await home()
        assert await home() is first
        first.faults.add("500")
        async for _ in engine.generate(ids, SAMPLING, 4, "test"):
            pass
        first.faults.clear()
        await until(lambda: not engine.trouble)
        assert await home() is not first


def test_numbers_that_are_no_token_ids_are_an_unusable_answer() -> None:
    """Such a number would not fit into the arrays that prefixes are hashed from."""
    for wrong in (2**63, 10**30, -1, True, 1.5):
        with pytest.raises(WireError, match="without a list `tokens`"):
            read_tokens({"tokens": [1, wrong]})
    assert read_tokens({"tokens": [0, 2**63 - 1]}) == [0, 2**63 - 1]
