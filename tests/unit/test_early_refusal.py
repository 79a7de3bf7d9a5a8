"""Refusals that a full service sends before the application is asked, compared with the application's own."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.admission.load_shedding import EarlyRefusal
from service.app import create_app
from service.auth.keys import new_key, write_keys
from service.context.request_context import current_request
from service.observability import access_log
from service.observability.otel_spans import Tracing
from service.runtime.runtime import Runtime
from tests.unit.fakes import make_runtime, on_a_port
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine

clocked = virtually("service", "vbon", "tests.unit")

KEYS = {"ann": new_key("ann"), "gone": new_key("gone")}


def head(*fields: str, path: str = "/generate?mode=bon", host: str = "localhost") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", "connection: close", *fields]
    return "\r\n".join(lines).encode() + b"\r\n"


def bearer(name: str) -> str:
    return f"authorization: Bearer {KEYS[name][1]}"


@dataclass(frozen=True)
class Case:
    """A request to a full service, the service's settings, and who is to answer with what."""

    request: bytes = head()
    body: bytes = b"{not json"
    status: int = 429
    early: bool = True
    settings: dict[str, Any] = field(default_factory=dict)


KEYED: dict[str, Any] = {"auth": {"keys_file": "keys.jsonl"}, "access_log": True}
CORS: dict[str, Any] = {"cors_origins": ["http://page.example"]}
SMALL: dict[str, Any] = {"limits": {"max_body_bytes": 1024}}
CASES = {
    "plain": Case(),
    "an id of its own": Case(head("x-request-id: mine")),
    "an id that is none": Case(head("x-request-id: <b>")),
    "the default mode": Case(head(path="/generate")),
    "a mode that there is not": Case(head(path="/generate?mode=nonsense")),
    "a mode in escapes": Case(head(path="/generate?mode=b%6Fn")),
    "a long query": Case(head(path="/generate?mode=ref&x=" + "x" * 100)),
    "OpenAI's API": Case(head(path="/v1/chat/completions")),
    "a path in escapes": Case(head(path="/gener%61te"), early=False),
    "an access log": Case(settings={"access_log": True}),
    "no body": Case(body=b""),
    "a known key": Case(head(bearer("ann")), settings=KEYED),
    "an unknown key": Case(head(bearer("gone")), status=401, early=False, settings=KEYED),
    "no key": Case(status=401, early=False, settings=KEYED),
    "another host": Case(head(host="other.example"), status=403, early=False),
    "another host, with a key": Case(head(bearer("ann"), host="other.example"), settings=KEYED),
    "a configured host": Case(head(host="own.example"), settings={"hosts": ["own.example"]}),
    "a page": Case(head("origin: http://page.example"), early=False, settings=CORS),
    "no page, where pages may ask": Case(settings=CORS),
    "a body over the limit": Case(body=b"x" * 1025, status=413, early=False, settings=SMALL),
}


@pytest.mark.parametrize("name", CASES)
@clocked
async def test_it_is_the_answer_that_the_application_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case, answered = CASES[name], 0
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path / "keys.jsonl", [KEYS["ann"][0]])
    caplog.set_level("INFO", access_log.__name__)
    plain = EarlyRefusal.response

    def counted(self: EarlyRefusal, scope: Any) -> Any:
        nonlocal answered
        found = plain(self, scope)
        answered += found is not None
        return found

    monkeypatch.setattr(EarlyRefusal, "response", counted)
    by_the_application = await shown(case, caplog, early=False)
    assert answered == 0
    assert await shown(case, caplog, early=True) == by_the_application
    assert answered == case.early
    assert by_the_application[0].startswith(f"HTTP/1.1 {case.status} ")


async def shown(
    case: Case, caplog: pytest.LogCaptureFixture, *, early: bool
) -> tuple[str, list[str], list[Any]]:
    """Everything of one refusal that can be seen: the response, the counted errors, and the access log."""
    runtime = full_soon(case.settings)
    lines: list[Any] = []

    def note(record: Any) -> bool:
        if (
            record.name != access_log.__name__
        ):  # another test may have let uvicorn's records through
            return True
        request = current_request.get()
        assert request is not None
        fields = {**record.fields, "duration_ms": None, "request_id": request.request_id}
        lines.append(json.loads(without_chance(json.dumps(fields))))
        return True

    caplog.handler.addFilter(note)
    try:
        async with on_a_port(runtime, early=early, timeout_graceful_shutdown=1) as url:
            async with runtime.admission.enter(2):
                response = await say(url, case.request, case.body)
            errors = [
                line
                for line in runtime.metrics.render().decode().splitlines()
                if line.startswith("vbon:request_errors_total")
            ]
    finally:
        caplog.handler.removeFilter(note)
    return without_chance(response), errors, lines


def full_soon(settings: dict[str, Any]) -> Runtime:
    """A runtime that is full as soon as two sequences run."""
    limits = {"running_sequences": 2, "waiting_sequences": 0, **settings.get("limits", {})}
    return make_runtime(engines={"ref": FakeEngine("fake-ref")}, **{**settings, "limits": limits})


async def say(url: str, request: bytes, body: bytes) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    writer.write(request + b"content-length: %d\r\n\r\n" % len(body) + body)
    told = (await reader.read()).decode()
    writer.close()
    return told


def without_chance(text: str) -> str:
    """The text without dates and drawn ids, and without Vary, since nothing may store these answers."""
    text = re.sub(r"req-[0-9a-f]{32}", "req-", re.sub(r"(?m)^date: .*$", "date:", text))
    return re.sub(r"(?m)^vary: Origin\r\n", "", text)


@clocked
async def test_a_service_with_room_answers_nothing_early() -> None:
    runtime = full_soon({})
    async with on_a_port(runtime, early=True, timeout_graceful_shutdown=1) as url:
        request, body = head(path="/generate?mode=ref"), b'{"prompt": "a", "max_tokens": 1}'
        async with runtime.admission.enter(1):
            assert (await say(url, request, body)).startswith("HTTP/1.1 200 ")
            assert (await say(url, request, b"{not json")).startswith("HTTP/1.1 422 ")


def test_traced_requests_are_left_to_the_application() -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    tracing = Tracing(SimpleSpanProcessor(InMemorySpanExporter()))
    assert create_app(make_runtime(), tracing=tracing).state.early_refusal is None
    assert create_app(make_runtime()).state.early_refusal is not None
