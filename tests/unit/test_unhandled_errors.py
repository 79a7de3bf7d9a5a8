"""An unhandled exception gets a response like any other error, and is logged once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse

from service.context.request_context import current_request
from tests.unit.fakes import make_runtime, serving, stream

SITE = "https://page.example"
ID = {"x-request-id": "mine-1"}


def break_routes(app: FastAPI) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"half an "
        raise ZeroDivisionError("secret")

    async def broken() -> None:
        raise ZeroDivisionError("secret")

    async def half() -> StreamingResponse:
        return StreamingResponse(pieces())

    app.post("/broken")(broken)
    app.post("/half")(half)


class Ids(logging.Filter):
    """Records the request in which each log record is made."""

    def filter(self, record: logging.LogRecord) -> bool:
        notes = current_request.get()
        record.made_in = notes and notes.request_id
        return True


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.handler.addFilter(Ids())
    caplog.set_level(logging.WARNING)
    return caplog


async def test_an_error_nobody_foresaw_is_a_whole_answer(errors: pytest.LogCaptureFixture) -> None:
    runtime = make_runtime(cors_origins=[SITE])
    async with serving(runtime) as (app, _):
        break_routes(app)
        # Nothing is left for the server around the application to see.
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.post("/broken", headers={**ID, "origin": SITE})
            metrics = (await client.get("/metrics")).text
    assert answer.status_code == 500
    assert answer.json() == {
        "error": {
            "message": "unexpected ZeroDivisionError; see the log",
            "type": "internal_error",
            "param": None,
            "code": 500,
            "request_id": "mine-1",
        }
    }
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["access-control-allow-origin"] == SITE
    assert 'vbon:request_errors_total{error="internal_error",mode="bon"} 1.0' in metrics
    (record,) = errors.records
    assert vars(record)["made_in"] == "mine-1"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


async def test_half_an_answer_is_cut_off_and_not_ended(errors: pytest.LogCaptureFixture) -> None:
    async with serving(make_runtime()) as (app, client):
        break_routes(app)
        with pytest.raises(ZeroDivisionError):
            await stream(app, "/half", {})
        metrics = (await client.get("/metrics")).text
    assert 'vbon:request_errors_total{error="internal_error",mode="bon"} 1.0' in metrics
    (record,) = errors.records
    assert vars(record)["made_in"].startswith("req-")
