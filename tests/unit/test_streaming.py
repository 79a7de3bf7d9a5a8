"""Streams through the real application, driven as a server does, with the fake engine."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

import pytest
from starlette.types import Message

from service.generation import events as live
from service.http import sse
from service.strategies import STRATEGIES
from tests.unit.fakes import ChatEngine, FakeReward, Streamed, make_runtime, serving, stream
from tests.unit.virtual_clock import virtually
from vbon.engine import Partial
from vbon.engine.fake import FakeEngine

clocked = virtually("service", "vbon", "tests.unit")

BODY: dict[str, Any] = {
    "prompt": "the film was",
    "n": 8,
    "max_tokens": 12,
    "seed": 3,
    "stream": True,
}
V1: dict[str, Any] = {
    "model": "vbon",
    "prompt": "the film was",
    "max_tokens": 12,
    "seed": 3,
    "stream": True,
}
CHAT: dict[str, Any] = {
    **{key: value for key, value in V1.items() if key != "prompt"},
    "messages": [{"role": "user", "content": "the film was"}],
}
ROUTES = [("/generate?mode=vbon", BODY), ("/v1/completions", V1), ("/v1/chat/completions", CHAT)]


def engines(seconds_per_token: float = 0.0, **options: Any) -> dict[str, FakeEngine]:
    return {
        name: ChatEngine(f"fake-{name}", seconds_per_token=seconds_per_token, **options)
        for name in ("ref", "vbon")
    }


class Failing(ChatEngine):
    """An engine that fails after three tokens."""

    async def stream(self, *args: Any, **kwargs: Any) -> Any:
        count = 0
        async for partial in super().stream(*args, **kwargs):
            if count == 3:
                raise ValueError("secret")
            count += 1
            yield partial
            await asyncio.sleep(0.01)  # so the reader receives each token separately


def chat_text(seen: Streamed) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for data in seen.named("")
        if data != "[DONE]"
        for choice in data["choices"]
    )


# The native route


@clocked
async def test_tokens_come_one_by_one_and_then_the_answer() -> None:
    async with serving(make_runtime(engines=engines(0.02, endless=True))) as (app, client):
        seen = await stream(app, "/generate?mode=vbon", BODY)
        whole = (await client.post("/generate?mode=vbon", json={**BODY, "stream": False})).json()
    assert seen.headers["content-type"].startswith("text/event-stream")
    assert seen.headers["x-request-id"]
    tokens = seen.named("token")
    assert [token["num_tokens"] for token in tokens] == list(range(1, 13))
    assert "".join(token["text"] for token in tokens) == whole["text"]
    gaps = [b - a for (a, _), (b, _) in pairwise(seen.pieces[:12])]
    assert min(gaps) > 0.005  # 0.02 s a token
    (answer,) = seen.named("answer")
    for name in ("text", "reward", "usage", "finish_reason", "sampling", "policy"):
        assert answer[name] == whole[name]
    assert seen.events[-1][0] == "answer"
    assert seen.ended


@pytest.mark.parametrize("mode", STRATEGIES)
@clocked
async def test_candidates_and_progress_of_every_mode(mode: str) -> None:
    body = {**BODY, "return_candidates": True}
    async with serving(make_runtime(engines=engines(0.002))) as (app, _):
        seen = await stream(app, f"/generate?mode={mode}", body)
    (answer,) = seen.named("answer")
    candidates = sorted(seen.named("candidate"), key=lambda c: c["index"])
    assert candidates == answer["candidates"]
    steps = seen.named("progress")
    assert [s["scored"] for s in steps] == sorted(s["scored"] for s in steps)
    count = len(candidates)
    most = 16 if mode == "corrected-bon" else 8  # which may draw as many again
    assert (steps[-1]["finished"], steps[-1]["scored"], steps[-1]["total"]) == (count, count, most)
    kept = [c for c in candidates if c["finish_reason"] != "rejected"]
    if mode == "self-certainty":  # which scores its choice alone
        kept = [c for c in kept if c["reward"] is not None]
        assert [c["index"] for c in kept] == [answer["selected_index"]]
    best = max(kept, key=lambda c: (c["reward"], -c["index"]))
    assert (steps[-1]["best_reward"], steps[-1]["best_index"]) == (best["reward"], best["index"])
    assert not seen.named("token")
    assert seen.events[-1][0] == "answer"


@clocked
async def test_candidates_are_told_while_others_decode() -> None:
    async with serving(make_runtime(engines=engines(0.02))) as (app, _):
        seen = await stream(app, "/generate?mode=bon", BODY)
    first, last = seen.pieces[0][0], seen.pieces[-1][0]
    assert last - first > 0.08  # the shortest of eight ends long before the longest


@clocked
async def test_a_quiet_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.02)
    engine = engines(0.05, endless=True)
    async with serving(make_runtime(engines=engine)) as (app, _):
        native = await stream(app, "/generate?mode=bon", {**BODY, "max_tokens": 4})
        openai = await stream(app, "/v1/completions", {**V1, "model": "bon", "max_tokens": 4})
    assert "still at work" in native.comments
    assert "0/16 candidates scored" in openai.comments
    assert len(native.named("answer")) == 1


@pytest.mark.parametrize(
    ("changes", "status", "field"),
    [
        ({"prompt": ...}, 422, "body"),
        ({"n": 200}, 422, "n"),
        ({"prompt": "x" * 250}, 422, "prompt"),
        ({"prompt": ..., "prompts": ["a", "b"]}, 422, "prompts"),
    ],
)
@clocked
async def test_refusals_are_plain_statuses(
    changes: dict[str, Any], status: int, field: str
) -> None:
    body = {key: value for key, value in {**BODY, **changes}.items() if value is not ...}
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/generate?mode=bon", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, field)


@clocked
async def test_what_a_strategy_refuses_is_a_plain_status_too() -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/generate?mode=treebon", json={**BODY, "guide": "nobody"})
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "guide"


@clocked
async def test_overload_of_streams_is_429_and_a_dead_engine_503() -> None:
    found = engines(0.02)
    limits = {"running_sequences": 8, "waiting_sequences": 8}
    async with serving(make_runtime(engines=found, limits=limits)) as (_, client):
        sent = (client.post("/generate?mode=bon", json=BODY) for _ in range(3))
        responses = await asyncio.gather(*sent)
        await found["ref"].stop()
        dead = await client.post("/generate?mode=bon", json=BODY)
    assert sorted(r.status_code for r in responses) == [200, 200, 429]
    refused = next(r for r in responses if r.status_code == 429)
    assert "retry-after" in refused.headers
    assert dead.status_code == 503


@pytest.mark.parametrize(("path", "body"), ROUTES)
@clocked
async def test_an_error_amid_the_stream_is_told_once(path: str, body: dict[str, Any]) -> None:
    runtime = make_runtime(engines={"ref": FakeEngine(), "vbon": Failing("fake-vbon")})
    async with serving(runtime) as (app, client):
        seen = await stream(app, path, body)
        metrics = (await client.get("/metrics")).text
    assert seen.status == 200
    errors = [data for _, data in seen.events if "error" in data]
    assert len(errors) == 1
    assert seen.events[-1][1] == errors[0]
    assert seen.events[-1][0] == ("error" if path.startswith("/generate") else "")
    error = errors[0]["error"]
    assert (error["type"], error["code"]) == ("internal_error", 500)
    assert error["request_id"] == seen.headers["x-request-id"]
    assert "secret" not in error["message"]
    assert "[DONE]" not in seen.text
    assert seen.ended
    assert not seen.named("answer")
    assert 'vbon:request_errors_total{error="internal_error",mode="vbon"} 1.0' in metrics
    assert runtime.admission.running == 0


@clocked
async def test_a_failing_reward_model_amid_the_stream() -> None:
    class Broken(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            if any(len(item.completion.split()) > 5 for item in items):
                raise RuntimeError("no")
            return [1.0 for _ in items]

    found = engines(0.02)
    async with serving(make_runtime(reward=Broken(), engines=found)) as (app, _):
        seen = await stream(app, "/generate?mode=bon", BODY)
    assert seen.named("candidate")
    assert [e["error"]["type"] for e in seen.named("error")] == ["reward_error"]
    assert found["ref"].running == 0


@clocked
async def test_the_time_limit_ends_a_stream() -> None:
    found = engines(0.05, endless=True)
    async with serving(make_runtime(engines=found)) as (app, _):
        seen = await stream(app, "/generate?mode=vbon", {**BODY, "timeout_s": 0.22})
    assert len(seen.named("token")) >= 2
    assert seen.events[-1][0] == "error"
    assert "0.22 s (timeout_s)" in seen.events[-1][1]["error"]["message"]
    assert (found["vbon"].running, found["vbon"].aborted) == (0, 1)


@pytest.mark.parametrize(("path", "body"), ROUTES)
@clocked
async def test_a_client_that_leaves_amid_the_stream_stops_the_work(
    path: str, body: dict[str, Any]
) -> None:
    found = engines(0.02, endless=True)
    runtime = make_runtime(engines=found)
    async with serving(runtime) as (app, client):
        seen = await stream(
            app, path, {**body, "max_tokens": 100}, leave=lambda seen: len(seen.pieces) >= 4
        )
        assert (found["vbon"].running, found["vbon"].aborted) == (0, 1)
        assert runtime.admission.running == 0
        decoded = found["vbon"].decoded_tokens
        await asyncio.sleep(0.1)
        assert found["vbon"].decoded_tokens == decoded < 10
        metrics = (await client.get("/metrics")).text
    assert not seen.ended
    assert 'vbon:request_errors_total{error="client_disconnected",mode="vbon"} 1.0' in metrics


@clocked
async def test_a_client_that_leaves_before_the_choice_stops_all_candidates() -> None:
    found = engines(0.02)
    reward = FakeReward()
    runtime = make_runtime(engines=found, reward=reward)
    async with serving(runtime) as (app, _):
        await stream(
            app,
            "/v1/completions",
            {**V1, "model": "bon", "max_tokens": 60},
            leave=lambda seen: len(seen.pieces) >= 2,
        )
        assert found["ref"].running == 0
        assert found["ref"].aborted > 0
        assert runtime.admission.running == 0


@clocked
async def test_a_client_that_leaves_before_the_first_token_stops_the_work() -> None:
    found = engines(5.0)
    runtime = make_runtime(engines=found)
    async with serving(runtime) as (app, _):
        seen = await stream(app, "/v1/completions", V1, leave=lambda _: found["vbon"].running > 0)
        assert (found["vbon"].running, found["vbon"].aborted) == (0, 1)
        assert runtime.admission.running == 0
    assert seen.status == 499  # only for the log, because the client has disconnected


@clocked
async def test_a_client_that_stalls_and_then_leaves_stops_the_work() -> None:
    found = engines(0.01, endless=True)
    runtime = make_runtime(engines=found)
    async with serving(runtime) as (app, _):
        seen = await stream(
            app,
            "/v1/completions",
            {**V1, "max_tokens": 200},
            stall_after=2,
            leave=lambda _: found["vbon"].decoded_tokens > 5,
        )
        assert (found["vbon"].running, found["vbon"].aborted) == (0, 1)
    assert len(seen.pieces) == 2


@clocked
async def test_a_slow_reader_gets_fewer_and_longer_steps() -> None:
    mailbox = live._Mailbox()
    for count in range(1, 6):
        mailbox.grown(Partial(0, "x" * count, (1,) * count, (-1.0,) * count, None))
    (only,) = mailbox.take()
    assert isinstance(only, Partial)
    assert only.text == "xxxxx"


@clocked
async def test_first_token_and_steps_are_measured() -> None:
    async with serving(make_runtime(engines=engines(0.01, endless=True))) as (app, client):
        await stream(app, "/v1/completions", V1)
        await client.post("/generate?mode=ref", json={**BODY, "stream": False})
        await stream(app, "/generate?mode=bon", BODY)
        metrics = (await client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    assert lines['vbon:time_to_first_token_seconds_count{mode="vbon"}'] == "1.0"
    assert lines['vbon:inter_token_latency_seconds_count{mode="vbon"}'] == "11.0"
    assert float(lines['vbon:inter_token_latency_seconds_sum{mode="vbon"}']) > 0.1
    assert 0.01 <= float(lines['vbon:time_to_first_token_seconds_sum{mode="vbon"}']) < 5
    assert lines['vbon:request_success_total{mode="vbon"}'] == "1.0"
    assert 'time_to_first_token_seconds_count{mode="ref"}' not in metrics
    assert 'time_to_first_token_seconds_count{mode="bon"}' not in metrics


# /v1


@pytest.mark.parametrize("mode", ["ref", "vbon", "bon", "soft-bon", "treebon", "bon@vbon"])
@clocked
async def test_completion_chunks(mode: str) -> None:
    body = {**V1, "model": mode, "best_of": 4, "stream_options": {"include_usage": True}}
    async with serving(make_runtime(engines=engines(0.002))) as (app, client):
        seen = await stream(app, "/v1/completions", body)
        plain = {k: v for k, v in body.items() if k not in {"stream", "stream_options"}}
        whole = (await client.post("/v1/completions", json=plain)).json()
    assert seen.text.endswith("data: [DONE]\n\n")
    assert seen.text.count("[DONE]") == 1
    *chunks, finish, usage, done = [data for _, data in seen.events]
    assert done == "[DONE]"
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole["choices"][0]["text"]
    assert all(c["choices"][0]["finish_reason"] is None and c["usage"] is None for c in chunks)
    assert finish["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert finish["vbon"]["selected_index"] == whole["vbon"]["selected_index"]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert {c["object"] for c in [*chunks, finish, usage]} == {"text_completion"}
    assert len({c["id"] for c in [*chunks, finish, usage]}) == 1
    if mode not in {"ref", "vbon"}:
        assert len(chunks) == 1  # nothing before a candidate is chosen
        *_, counted, closing = seen.comments
        assert counted.endswith("/4 candidates scored")  # a tree may have fewer leaves
        assert closing == "done"


@clocked
async def test_tokens_of_a_single_mode_come_one_by_one_on_v1() -> None:
    async with serving(make_runtime(engines=engines(0.02, endless=True))) as (app, _):
        seen = await stream(app, "/v1/chat/completions", CHAT)
    # The first piece is the role; it is sent with the first token, not before.
    moments = [moment for moment, _ in seen.pieces]
    gaps = [b - a for a, b in pairwise(moments[1:13])]
    assert min(gaps) > 0.005
    assert moments[1] - moments[0] < min(gaps)


@clocked
async def test_chat_chunks() -> None:
    async with serving(make_runtime(engines=engines(0.002))) as (app, client):
        for model in ("vbon", "bon"):
            seen = await stream(app, "/v1/chat/completions", {**CHAT, "model": model})
            whole = (
                await client.post(
                    "/v1/chat/completions", json={**CHAT, "model": model, "stream": False}
                )
            ).json()
            role, *content, finish, done = [data for _, data in seen.events]
            assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            assert {c["object"] for c in [role, *content]} == {"chat.completion.chunk"}
            assert chat_text(seen) == whole["choices"][0]["message"]["content"]
            assert finish["choices"][0]["delta"] == {}
            assert finish["choices"][0]["finish_reason"] in {"stop", "length"}
            assert done == "[DONE]"
            assert "usage" not in role


@clocked
async def test_usage_in_every_chunk() -> None:
    body = {**V1, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    async with serving(make_runtime(engines=engines(0.01, endless=True))) as (app, _):
        seen = await stream(app, "/v1/completions", body)
    counts = [data["usage"]["completion_tokens"] for _, data in seen.events[:-1]]
    assert counts == [*range(1, 13), 12, 12]
    assert {data["usage"]["prompt_tokens"] for _, data in seen.events[:-1]} == {12}


@clocked
async def test_streamed_logprobs_are_those_of_the_whole_answer() -> None:
    async with serving(make_runtime(engines=engines(0.002))) as (app, client):
        body = {**V1, "logprobs": 0}
        seen = await stream(app, "/v1/completions", body)
        whole = (await client.post("/v1/completions", json={**body, "stream": False})).json()
        chat = await stream(app, "/v1/chat/completions", {**CHAT, "logprobs": True})
    expected = whole["choices"][0]["logprobs"]
    listed = [
        data["choices"][0]["logprobs"] for _, data in seen.events[:-1] if data["choices"][0]["text"]
    ]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for part in listed for value in part[name]] == expected[name]
    tokens = [
        token["token"]
        for _, data in chat.events[:-1]
        if data["choices"][0]["logprobs"]
        for token in data["choices"][0]["logprobs"]["content"]
    ]
    assert "".join(tokens) == chat_text(chat)


@clocked
async def test_a_stop_string_is_never_sent() -> None:
    async with serving(make_runtime(engines=engines(0.002, endless=True))) as (app, client):
        whole = (await client.post("/v1/completions", json={**V1, "stream": False})).json()
        words = whole["choices"][0]["text"].split()
        stop = f"{words[4]} {words[5]}"
        seen = await stream(app, "/v1/completions", {**V1, "stop": [stop]})
    text = "".join(d["choices"][0]["text"] for _, d in seen.events[:-1])
    assert text == whole["choices"][0]["text"].split(stop)[0]


@clocked
async def test_stream_needs_one_prompt() -> None:
    async with serving(make_runtime()) as (app, client):
        several = await client.post("/v1/completions", json={**V1, "prompt": ["a", "b"]})
        one = await stream(app, "/v1/completions", {**V1, "prompt": ["a"]})
    assert several.status_code == 422
    assert "one prompt" in several.json()["error"]["message"]
    assert one.events[-1][1] == "[DONE]"


@clocked
async def test_errors_before_the_stream_are_plain_on_v1() -> None:
    async with serving(make_runtime()) as (_, client):
        missing = await client.post("/v1/completions", json={**V1, "model": "gpt"})
        long = await client.post("/v1/completions", json={**V1, "prompt": "x" * 250})
    assert (missing.status_code, long.status_code) == (404, 400)


def read_stripped(pieces: list[str]) -> list[str]:
    """Messages as `vllm bench serve` 0.32 reads them: it strips the white space around each piece."""
    buffer, messages = "", []
    for piece in pieces:
        buffer += piece.strip()
        *whole, buffer = buffer.split("\n\n")
        messages += [message.strip() for message in whole]
        data = buffer.removeprefix("data: ")
        if data != buffer and (data == "[DONE]" or json.loads(data)):
            messages, buffer = [*messages, buffer], ""
    return [message for message in messages if message.startswith("data: ")]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@clocked
async def test_comments_survive_a_client_that_strips_what_it_receives(path: str) -> None:
    body = {**(CHAT if "chat" in path else V1), "model": "bon", "best_of": 4}
    async with serving(make_runtime(engines=engines(0.002))) as (app, _):
        seen = await stream(app, path, body)
    assert len(seen.comments) == 5
    read = read_stripped([piece for _, piece in seen.pieces])
    whole = [block for block in seen.text.split("\n\n") if block.startswith("data: ")]
    assert read == whole
    assert len(read) >= 3


@clocked
async def test_a_client_that_takes_nothing_is_cut_off_and_what_was_for_it_is_let_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sse, "_STALL_S", 0.1, raising=False)
    told: list[str] = []
    cut = asyncio.Event()
    closed = False

    async def messages() -> AsyncGenerator[str, None]:
        nonlocal closed
        try:
            while True:
                yield "data: x\n\n"
        finally:
            closed = True

    def failed(error: Exception) -> str:
        told.append(str(error))
        return ""

    async def receive() -> Message:
        await cut.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body") == b"data: x\n\n":
            await asyncio.Event().wait()

    stream_of_it = sse.EventStream("data: first\n\n", messages(), failed)
    scope = {"type": "http", "extensions": {"vbon.abort": cut.set}}
    await asyncio.wait_for(stream_of_it(scope, receive, send), 2)
    assert cut.is_set()
    assert closed
    assert told == ["the client read nothing of its stream for 0.1 s"]
    assert "its connection is closed" in caplog.text
    await asyncio.wait_for(
        sse.EventStream("", messages(), failed)({"type": "http"}, receive, send), 2
    )


@clocked
async def test_events_that_were_sent_are_not_kept() -> None:
    class Text(str):
        """A string that supports weak references."""

    sent: list[bytes] = []
    go_on = asyncio.Event()
    first, second = Text("data: first\n\n"), Text("data: second\n\n")
    watched = [weakref.ref(first), weakref.ref(second)]

    async def messages(second: Text) -> AsyncGenerator[str, None]:
        yield second
        del second
        await go_on.wait()

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    answering = asyncio.create_task(
        sse.EventStream(first, messages(second), lambda _: "")({"type": "http"}, receive, send)
    )
    del first, second
    while len(sent) < 3:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert [text() for text in watched] == [None, None]
    go_on.set()
    await answering
