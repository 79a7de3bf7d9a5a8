"""Spans of requests to the real application: in memory, and once sent to a collector."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.observability.otel_spans import Tracing, otlp_tracing
from service.observability.tracing import open_tracing
from service.runtime.batching_scorer import BatchingScorer
from service.settings import OtelSettings
from tests.unit.fakes import FakeReward, make_runtime, serving, stream
from tests.unit.openai_imitation import imitation
from tests.unit.test_api import disconnect_after
from tests.unit.test_remote_engine import OPTIONS
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.engine.remote.engine import RemoteEngine
from vbon.errors import InvalidInputError
from vbon.prompts import Prompt
from vbon.rewards.remote import RemoteReward
from vbon.trace_context import trace_headers

clocked = virtually("service", "vbon", "tests.unit")

CANARY = "canary7f3a"
BODY = {"prompt": f"{CANARY} was", "n": 4, "max_tokens": 6}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Spans:
    """The spans of one application."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self._exporter))

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def roots(self) -> list[ReadableSpan]:
        return [span for span in self.all if span.kind is SpanKind.SERVER]

    def below(self, root: ReadableSpan) -> list[ReadableSpan]:
        return [s for s in self.all if s.parent and s.parent.span_id == root.context.span_id]

    def only(self) -> tuple[ReadableSpan, dict[str, ReadableSpan]]:
        (root,) = self.roots()
        below = self.below(root)
        assert len({span.name for span in below}) == len(below) == len(self.all) - 1
        assert {span.context.trace_id for span in self.all} == {root.context.trace_id}
        return root, {span.name: span for span in below}


@pytest.fixture
def spans() -> Spans:
    return Spans()


def ms(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e6


def failed(span: ReadableSpan) -> str | None:
    """The error type of a span, or ``None``."""
    return (
        str(span.attributes["error.type"]) if span.status.status_code is StatusCode.ERROR else None
    )  # type: ignore[index]


@clocked
async def test_a_request_is_a_span_with_its_stages_below(spans: Spans) -> None:
    engine = FakeEngine("fake-ref", seconds_per_token=0.002)
    runtime = make_runtime(engines={"ref": engine}, reward=FakeReward(seconds=0.02))
    async with serving(runtime, tracing=spans.tracing) as (_, client):
        answer = (await client.post("/generate?mode=bon", json=BODY)).json()
    root, below = spans.only()
    timings, usage = answer["timings_ms"], answer["usage"]
    assert root.name == "POST /generate"
    assert root.parent is None
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "vbon",
        "gen_ai.request.model": "bon",
        "gen_ai.request.max_tokens": 6,
        "gen_ai.request.temperature": 1.0,
        "gen_ai.response.model": "ref",
        "gen_ai.response.finish_reasons": (answer["finish_reason"],),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["returned_tokens"],
        "vbon.mode": "bon",
        "vbon.n": 4,
        "vbon.prompts": 1,
        "vbon.generated_tokens": usage["generated_tokens"],
        "vbon.request_id": answer["request_id"],
    }
    assert list(below) == ["encode", "queue", "decode", "rerank"]
    assert ms(below["encode"]) + ms(below["queue"]) == pytest.approx(timings["queue"], abs=0.01)
    assert ms(below["decode"]) == pytest.approx(timings["decode"], abs=0.01)
    assert ms(below["rerank"]) == pytest.approx(timings["rerank"], abs=0.01)
    assert ms(below["rerank"]) > 5
    assert ms(root) >= timings["total"]
    assert root.start_time <= below["encode"].start_time  # type: ignore[operator]
    assert below["rerank"].end_time <= root.end_time  # type: ignore[operator]
    for before, after in zip(list(below.values()), list(below.values())[1:], strict=False):
        assert before.end_time == after.start_time
    assert below["decode"].attributes == {
        "vbon.answer_id": f"{answer['request_id']}-0",
        "vbon.mode": "bon",
        "gen_ai.response.model": "ref",
        "vbon.n": 4,
        "vbon.candidates": 4,
        "vbon.generated_tokens": usage["generated_tokens"],
    }
    assert {failed(span) for span in spans.all} == {None}


@clocked
async def test_no_span_holds_what_people_write_or_are_answered(spans: Spans) -> None:
    body = {**BODY, "max_tokens": 40}
    async with serving(make_runtime(), tracing=spans.tracing) as (_, client):
        text = (await client.post("/generate?mode=bon", json=body)).json()["text"]
        await client.post("/generate", json={"prompt": CANARY * 100})
        await client.get(f"/{CANARY}?{CANARY}")
        await client.get(f"/v1/models/{CANARY}")
        await client.request(CANARY.upper(), "/generate")
    told = json.dumps([span.to_json() for span in spans.all]).lower()
    assert len(spans.roots()) == 5
    assert CANARY not in told
    assert text.lower() not in told
    names = [span.name for span in spans.roots()]
    assert names[2:] == ["GET", "GET /v1/models/{model}", "HTTP /generate"]


@clocked
async def test_a_client_s_trace_goes_on_here(spans: Spans) -> None:
    async with serving(make_runtime(), tracing=spans.tracing) as (_, client):
        given = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        await client.post("/generate?mode=ref", json=BODY, headers=given)
        dropped = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        await client.post("/generate?mode=ref", json=BODY, headers=dropped)
        await client.post("/generate?mode=ref", json=BODY, headers={"traceparent": "nonsense"})
    followed, own = (
        spans.roots()
    )  # a request that the client does not record is not recorded here either
    assert followed.parent is not None
    assert f"{followed.context.trace_id:032x}" == TRACE
    assert f"{followed.parent.span_id:016x}" == PARENT
    assert own.parent is None


@clocked
async def test_each_prompt_has_its_stages_and_probes_have_no_span(spans: Spans) -> None:
    async with serving(make_runtime(), tracing=spans.tracing) as (_, client):
        for path in ("/healthz", "/readyz", "/health", "/metrics"):
            await client.get(path)
        body = {"prompts": ["a", "b", "c"], "score": False}
        await client.post("/generate?mode=ref", json=body)
        await client.post("/compare", json={"prompts": ["a"], "modes": ["ref", "bon"], "n": 2})
    batch, compared = spans.roots()
    stages = [(s.attributes["vbon.answer_id"][-1], s.name) for s in spans.below(batch)]  # type: ignore[index]
    assert stages == [(i, stage) for i in "012" for stage in ("encode", "queue", "decode")]
    assert batch.attributes["vbon.prompts"] == 3  # type: ignore[index]
    assert compared.attributes["gen_ai.request.model"] == "ref,bon"  # type: ignore[index]


class Exploding(FakeReward):
    def score(self, items: Any) -> list[float | None]:
        if any(CANARY in item.prompt.key for item in items):
            raise RuntimeError("out of memory")
        return super().score(items)


@clocked
async def test_what_fails_says_where_and_whose_fault_it_is(spans: Spans) -> None:
    engine = FakeEngine("fake-ref", seconds_per_token=0.01, max_model_len=256)
    limits = {"running_sequences": 4, "waiting_sequences": 0, "timeout_s": 0.5}
    runtime = make_runtime(engines={"ref": engine}, reward=Exploding(), limits=limits)
    calm = {"prompt": "a", "n": 4, "max_tokens": 20}
    async with serving(runtime, tracing=spans.tracing) as (_, client):
        await client.post("/generate?mode=bon", json={**calm, "prompt": "x" * 300})
        first = asyncio.create_task(client.post("/generate?mode=bon", json=calm))
        while runtime.admission.running == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await client.post("/generate?mode=bon", json=calm)
        await first
        await client.post("/generate?mode=bon", json=BODY)
        await client.post("/generate?mode=ref", json={**calm, "max_tokens": 90, "ignore_eos": True})
    by_status = {}
    for root in spans.roots():
        below = [(s.name, failed(s)) for s in spans.below(root)]
        by_status[root.attributes["http.response.status_code"]] = (failed(root), below)  # type: ignore[index]
    assert by_status == {
        422: (None, [("encode", "prompt_too_long")]),
        429: (None, []),  # rejected before it was parsed
        200: (None, [("encode", None), ("queue", None), ("decode", None), ("rerank", None)]),
        502: ("reward_error", [("encode", None), ("queue", None), ("decode", "reward_error")]),
        504: ("timeout", [("encode", None), ("queue", None), ("decode", "timeout")]),
    }
    told = {root.attributes.get("error.type") for root in spans.roots()}  # type: ignore[union-attr]
    assert told == {"prompt_too_long", "overloaded", None, "reward_error", "timeout"}


@clocked
async def test_who_leaves_ends_the_span_in_error(spans: Spans) -> None:
    engine = FakeEngine("fake-ref", seconds_per_token=0.01, endless=True)
    runtime = make_runtime(engines={"ref": engine})
    async with serving(runtime, tracing=spans.tracing) as (app, _):
        await disconnect_after(app, 0.05)
        body = {"prompt": "a", "max_tokens": 64, "stream": True}
        await stream(app, "/generate?mode=ref", body, lambda seen: len(seen.pieces) > 2)
    whole, streamed = spans.roots()
    for root, status in ((whole, 499), (streamed, 200)):
        assert failed(root) == "client_disconnected"
        assert root.attributes["http.response.status_code"] == status  # type: ignore[index]
        last = spans.below(root)[-1]
        assert (last.name, failed(last)) == ("decode", "client_disconnected")
        assert last.end_time <= root.end_time  # type: ignore[operator]
    assert ms(whole) >= 50


def scorer_noting(seen: list[str | None]) -> RemoteReward:
    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("traceparent"))
        count = len(json.loads(request.content)["completions"])
        return httpx.Response(200, json={"rewards": [1.0] * count})

    return RemoteReward("http://scorer/score", transport=httpx.MockTransport(answer))


@clocked
async def test_servers_and_scorers_elsewhere_are_told_the_trace(spans: Spans) -> None:
    scored: list[str | None] = []
    async with imitation() as server:
        runtime = make_runtime(
            engines={"ref": RemoteEngine(server.url, OPTIONS)},  # type: ignore[dict-item]
            reward=scorer_noting(scored),  # type: ignore[arg-type]
        )
        runtime.reward._model.batches = []  # type: ignore[union-attr, attr-defined]
        async with serving(runtime, tracing=spans.tracing) as (app, client):
            while not runtime.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            server.traceparents.clear()
            scored.clear()
            await client.post("/generate?mode=bon", json={"prompt": "the film", "n": 3})
            body = {"prompt": "the film", "stream": True, "score": False}
            await stream(app, "/generate?mode=ref", body)
    whole, streamed = (
        f"00-{root.context.trace_id:032x}-{root.context.span_id:016x}" for root in spans.roots()
    )
    assert [str(sent)[:-3] for sent in server.traceparents] == [whole] * 3 + [streamed]
    assert {str(sent)[:-3] for sent in scored} == {whole}


@clocked
async def test_a_batch_of_several_requests_belongs_to_none_of_their_traces() -> None:
    seen: list[str | None] = []
    scorer = BatchingScorer(scorer_noting(seen))
    await scorer.start()
    seen.clear()  # the start asks which kind of server it is

    async def ask(headers: dict[str, str], count: int) -> None:
        trace_headers.set(headers)
        await asyncio.gather(*(scorer.score(Prompt(text="a"), "b") for _ in range(count)))

    one, other = ({"traceparent": name} for name in ("one", "other"))
    await ask(one, 3)
    await asyncio.gather(ask(one, 1), ask(other, 1))
    await ask({}, 1)
    await scorer.stop()
    assert seen == ["one", None, None]


@pytest.mark.parametrize(
    ("endpoint", "environment", "traced"),
    [
        (None, {}, False),
        ("http://127.0.0.1:1", {}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, True),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, False),
        ("http://127.0.0.1:1", {"OTEL_SDK_DISABLED": "true"}, False),
        (None, {"OTEL_SERVICE_NAME": "a"}, False),
    ],
)
@clocked
async def test_when_requests_are_traced(
    endpoint: str | None, environment: dict[str, str], traced: bool
) -> None:
    tracing = open_tracing(OtelSettings(endpoint=endpoint), environment)
    assert (tracing is not None) == traced
    if tracing is not None:
        await tracing.stop()


def test_without_the_packages_only_who_asked_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "service.observability.otel_spans", None)
    with pytest.raises(InvalidInputError, match=r"pip install -e .\.\[otel\]"):
        open_tracing(OtelSettings(endpoint="http://a:4318"), {})
    assert open_tracing(OtelSettings(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}) is None
    assert "OTEL_ variables are ignored" in caplog.text


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, ExportTraceServiceRequest]]]]:
    """The address of a collector, and the paths and messages that it received."""
    received: list[tuple[str, ExportTraceServiceRequest]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, ExportTraceServiceRequest.FromString(content)))
            self.send_response(200)
            self.end_headers()

        def log_request(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(
            target=server.serve_forever, args=[0.01]
        )  # seconds to look for its end
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "vbon"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,team=a"}, "ours"),
    ],
)
@clocked
async def test_over_the_wire_to_a_collector(
    collector: tuple[str, list[tuple[str, ExportTraceServiceRequest]]],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    name: str,
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    address, received = collector
    async with serving(make_runtime(), tracing=otlp_tracing(address)) as (_, client):
        await client.post("/generate?mode=bon", json=BODY)
    ((path, message),) = received  # stopping the service sends the remaining spans
    (of_resource,) = message.resource_spans
    resource = {item.key: item.value.string_value for item in of_resource.resource.attributes}
    names = [span.name for scope in of_resource.scope_spans for span in scope.spans]
    assert path == "/v1/traces"
    assert resource["service.name"] == name
    assert names == ["encode", "queue", "decode", "rerank", "POST /generate"]
