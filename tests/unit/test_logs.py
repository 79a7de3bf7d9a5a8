"""Log records, which never contain prompts, answers or keys."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.auth.keys import new_key, write_keys
from service.context.request_context import RequestContext, current_request
from service.observability import withheld
from service.observability.logs import JsonFormatter, TextFormatter, with_fields
from tests.unit.fakes import FakeReward, make_runtime, serving, stream
from tests.unit.test_api import disconnect_after
from vbon.engine import Candidate, Sampling
from vbon.engine.fake import FakeEngine
from vbon.errors import EngineError

CANARY = "canary7f3a"


async def test_no_record_of_any_level_holds_prompts_answers_or_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [new_key("ann"), new_key("bob", tokens_per_minute=1)]
    file = tmp_path / "keys.jsonl"
    write_keys(file, [key for key, _ in pairs])
    token, poor = (token for _, token in pairs)
    headers = {"authorization": f"Bearer {token}"}
    body: dict[str, Any] = {"prompt": f"{CANARY} was", "n": 2, "max_tokens": 6}
    texts: list[str] = []
    runtime = make_runtime(
        auth={"keys_file": str(file)}, reward=Failing(), access_log=True, log_level="debug"
    )
    with caplog.at_level(logging.DEBUG):
        async with serving(runtime) as (app, client):
            client.headers.update(headers)
            quiet = {**body, "score": False}  # the reward model fails on all prompts of this test
            for path in ("/generate?mode=ref", "/generate?mode=bon"):
                texts.append((await client.post(path, json=quiet)).json().get("text", ""))
            await client.post("/generate", json=body)
            chat = {"model": "vbon", "messages": [{"role": "user", "content": CANARY}]}
            await client.post("/v1/chat/completions", json=chat)
            await client.post("/v1/completions", json={"model": CANARY, "prompt": CANARY})
            await client.post("/compare", json={"prompts": [CANARY], "modes": ["ref", "bon"]})
            await client.post("/generate", json={"prompt": [CANARY], CANARY: 1})
            await client.post("/generate", content=f'{{"prompt": "{CANARY}'.encode())
            await client.post("/generate", json={"prompt": CANARY * 500, "max_tokens": 4000})
            await client.get(f"/{CANARY}?{CANARY}")
            await client.get(f"/v1/models/{CANARY}")
            await client.request(CANARY.upper(), "/generate")
            for bad in (token + "x", f"Basic {token}", poor):
                await client.post(
                    "/generate", json=body, headers={"authorization": f"Bearer {bad}"}
                )
            engine = runtime.policies["ref"]
            assert isinstance(engine, FakeEngine)
            await engine.stop()
            await client.post("/generate", json=body)
            await stream(app, "/generate?mode=ref", {**body, "stream": True})
    assert texts[0]
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert any("failed on" in record.getMessage() for record in ours)  # the reward model's failure
    assert sum(record.name == "service.observability.access_log" for record in ours) > 10
    secrets = [CANARY, token, poor, pairs[0][0].sha256, token.split("-", 2)[2], texts[0]]
    for record in ours:
        for formatter in (logging.Formatter(), TextFormatter(), JsonFormatter()):
            line = formatter.format(record)
            assert not [secret for secret in secrets if secret.lower() in line.lower()], line


class Failing(FakeReward):
    """A reward model that fails on every batch except the warm-up's."""

    def score(self, items: Any) -> list[float | None]:
        if any(CANARY in str(item.prompt) for item in items):
            raise RuntimeError(f"out of memory with {items}")
        return super().score(items)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Standard error of a server with ``--log-format json``."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    yield stream
    root.removeHandler(handler)
    root.setLevel(before)


def parsed(lines: io.StringIO, logger: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [record for record in found if record["logger"] == logger]


class Breaking(FakeEngine):
    """An engine that raises an unexpected error in the middle of an answer."""

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        first_index: int = 0,
    ) -> Any:
        stream = super().generate(prompt_token_ids, sampling, num_samples, request_id, first_index)
        async for candidate in stream:
            assert isinstance(candidate, Candidate)
            if request_id.startswith("bad"):
                raise ZeroDivisionError("two\nlines")
            yield candidate


@pytest.mark.parametrize("shown", [False, True])
async def test_records_of_requests_at_once_carry_each_its_own_id(
    lines: io.StringIO, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(withheld, "_shown", shown)
    runtime = make_runtime(engines={"ref": Breaking("fake-ref")}, log_format="json")
    async with serving(runtime) as (_, client):

        async def ask(request_id: str) -> int:
            answer = await client.post(
                "/generate?mode=bon",
                json={"prompt": "a", "n": 3, "max_tokens": 4},
                headers={"x-request-id": request_id},
            )
            return answer.status_code

        ids = [f"{kind}-{number}" for number in range(5) for kind in ("good", "bad")]
        statuses = dict(zip(ids, await asyncio.gather(*map(ask, ids)), strict=True))
    assert statuses == {name: 200 if name.startswith("good") else 500 for name in ids}
    failures = parsed(lines, "service.routes.errors")
    assert sorted(record["request_id"] for record in failures) == sorted(
        i for i in ids if "bad" in i
    )
    for record in failures:
        assert record["level"] == "error"
        assert ("ZeroDivisionError: two\nlines" in record["exception"]) == shown
        assert shown or record["exception"].endswith(
            "ZeroDivisionError: its text is withheld; --log-user-errors shows it"
        )
        assert "in generate" in record["exception"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
    ended = {
        record["request_id"]: record for record in parsed(lines, "service.observability.access_log")
    }
    assert {name: record["status"] for name, record in ended.items()} == statuses
    assert {record["error"] for name, record in ended.items() if "bad" in name} == {
        "internal_error"
    }
    ready = next(record for record in parsed(lines, "service.runtime.runtime"))
    assert "request_id" not in ready


async def test_the_record_of_a_request_that_has_ended(tmp_path: Path, lines: io.StringIO) -> None:
    key, token = new_key("ann")
    write_keys(tmp_path / "keys.jsonl", [key])
    runtime = make_runtime(auth={"keys_file": str(tmp_path / "keys.jsonl")}, access_log=True)
    async with serving(runtime) as (_, client):
        client.headers["authorization"] = f"Bearer {token}"
        bon = await client.post("/generate?mode=bon", json={"prompt": "a", "n": 3})
        await client.post("/compare", json={"prompts": ["a"], "modes": ["ref", "bon"], "n": 2})
        await client.get("/v1/models/bon@vbon")
        await client.get("/nowhere/at/all")
        await client.get("/healthz")
        await client.post("/generate", json={"prompt": "a"}, headers={"authorization": "no"})
    bon_record, compared, model, nowhere, refused = parsed(
        lines, "service.observability.access_log"
    )
    usage = bon.json()["usage"]
    assert bon_record.pop("duration_ms") >= bon.json()["timings_ms"]["total"]
    assert re.fullmatch(r"req-[0-9a-f]{32}", bon_record.pop("request_id"))
    del bon_record["time"]
    assert bon_record == {
        "level": "info",
        "logger": "service.observability.access_log",
        "message": "request ended",
        "method": "POST",
        "path": "/generate",
        "status": 200,
        "mode": "bon",
        "key": "ann",
        "generated_tokens": usage["generated_tokens"],
        "returned_tokens": usage["returned_tokens"],
        "error": None,
    }
    assert (compared["mode"], compared["path"]) == ("ref,bon", "/compare")
    assert (model["path"], model["status"], model["mode"]) == ("/v1/models/{model}", 200, None)
    assert (nowhere["path"], nowhere["status"], nowhere["error"]) == (None, 404, "not_found")
    assert (refused["status"], refused["error"], refused["key"]) == (401, "unauthorized", None)


async def test_who_leaves_is_in_the_record(lines: io.StringIO) -> None:
    runtime = make_runtime(
        engines={"ref": FakeEngine("fake-ref", seconds_per_token=0.01)}, access_log=True
    )
    body = {"prompt": "a", "n": 4, "max_tokens": 64}
    async with serving(runtime) as (app, _):
        await disconnect_after(app, 0.03)
        await stream(
            app, "/generate?mode=ref", {**body, "stream": True}, lambda seen: bool(seen.pieces)
        )
    whole, streamed = parsed(lines, "service.observability.access_log")
    assert (whole["status"], whole["error"]) == (499, "client_disconnected")
    assert (streamed["status"], streamed["error"]) == (200, "client_disconnected")
    assert (whole["mode"], streamed["mode"]) == ("bon", "ref")


async def test_there_is_no_such_record_unless_asked_for(lines: io.StringIO) -> None:
    async with serving(make_runtime()) as (_, client):
        await client.post("/generate?mode=ref", json={"prompt": "a"})
    assert not parsed(lines, "service.observability.access_log")


def test_a_text_line_says_the_same() -> None:
    record = logging.makeLogRecord(
        {"name": "a", "levelname": "INFO", "msg": "request ended", "created": 0.0}
        | with_fields(method="GET", status=200, mode=None)
    )
    before = current_request.set(RequestContext("req-1"))
    try:
        line = TextFormatter().format(record)
    finally:
        current_request.reset(before)
    assert line.endswith(" INFO a: [req-1] request ended method=GET status=200")
    assert TextFormatter().format(record).endswith(" INFO a: request ended method=GET status=200")


def test_everything_a_json_server_writes_is_json_uvicorn_and_warnings_too() -> None:
    run = (
        "import logging, warnings\n"
        "from service.observability.logs import set_up_logs\n"
        "from service.settings import ServiceSettings\n"
        "set_up_logs(ServiceSettings(log_format='json'))\n"
        "import uvicorn\n"
        "uvicorn.Config(None, log_config=None, log_level='info')\n"
        "logging.getLogger('uvicorn.error').info('started\\n%s', 1)\n"
        "warnings.warn('old')\n"
        "import os, json, logging.config\n"
        "logging.config.dictConfig(json.load(open(os.environ['VLLM_LOGGING_CONFIG_PATH'])))\n"
        "logging.getLogger('vllm.engine').info('model loaded')\n"
        "logging.getLogger('vllm').debug('too fine')\n"
        "import tqdm; list(tqdm.tqdm([1, 2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line["level"]) for line in found] == [
        ("uvicorn.error", "info"),
        ("py.warnings", "warning"),
        ("vllm.engine", "info"),
    ]
    assert found[0]["message"] == "started\n1"


def test_a_traceback_tells_types_and_places_but_no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise EngineError("the engine failed") from error

    def fail_again() -> None:
        try:
            fail()
        finally:
            float(CANARY)

    for formatter in (TextFormatter(), JsonFormatter()):
        try:
            fail_again()
        except ValueError:
            record = logging.LogRecord("x", logging.ERROR, __file__, 1, "m", (), sys.exc_info())
        logging.Formatter().format(
            record
        )  # as another handler does, which leaves the text in the record
        line = formatter.format(record)
        assert CANARY not in line
        for kept in ("KeyError", "EngineError: the engine failed", "ValueError", "in fail_again"):
            assert kept in line
        monkeypatch.setattr(withheld, "_shown", True)
        assert CANARY in formatter.format(record)
        monkeypatch.setattr(withheld, "_shown", False)
