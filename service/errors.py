"""The one place where errors become HTTP answers; routes hold no try/except."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from bestofn.errors import (
    BestOfNError,
    CandidateCountError,
    CheckpointError,
    EngineDeadError,
    EngineError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    PromptTooLongError,
    RequestTimeoutError,
    RewardError,
)
from service.deps import get_request_id, get_runtime
from service.disconnect import ClientDisconnectedError

logger = logging.getLogger(__name__)

# First match wins, so subclasses come before their bases. (error, status, type on the wire)
TABLE: tuple[tuple[type[Exception], int, str], ...] = (
    (PromptTooLongError, 422, "prompt_too_long"),
    (InvalidInputError, 422, "invalid_input"),
    (OverloadedError, 429, "overloaded"),
    (NotReadyError, 503, "not_ready"),
    (EngineDeadError, 503, "engine_dead"),
    (CandidateCountError, 500, "candidate_count"),
    (EngineError, 500, "engine_error"),
    (RewardError, 502, "reward_error"),
    (RequestTimeoutError, 504, "timeout"),
    (CheckpointError, 500, "checkpoint_error"),
    (ClientDisconnectedError, 499, "client_disconnected"),
    (BestOfNError, 500, "internal_error"),
)
_RETRY_AFTER_S = {503: 5.0}


def add_error_handlers(app: FastAPI) -> None:
    """Install the handlers."""
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)
    for error_type, _, _ in TABLE:
        app.add_exception_handler(error_type, _on_known_error)
    app.add_exception_handler(Exception, _on_unknown_error)


def _answer(
    request: Request,
    status: int,
    kind: str,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: float | None = None,
) -> JSONResponse:
    runtime = get_runtime(request)
    if request.method == "POST":
        # Only names this server knows become labels; anything else would let a client make series.
        named = request.query_params.get("mode", runtime.settings.default_mode)
        mode = named if named in runtime.modes else "unknown"
        runtime.metrics.errors.labels(mode, kind).inc()
    headers = {} if retry_after_s is None else {"retry-after": str(math.ceil(retry_after_s))}
    body = {
        "message": message,
        "type": kind,
        "param": param,
        "code": status,
        "request_id": get_request_id(request),
    }
    return JSONResponse({"error": body}, status_code=status, headers=headers)


async def _on_known_error(request: Request, error: Exception) -> JSONResponse:
    status, kind = next((s, k) for t, s, k in TABLE if isinstance(error, t))
    if status >= 500:
        logger.warning("%s: %s: %s", get_request_id(request), kind, error)
    retry_after_s = _RETRY_AFTER_S.get(status)
    if isinstance(error, OverloadedError):
        retry_after_s = error.retry_after_s
    param = error.field if isinstance(error, InvalidInputError) else None
    return _answer(request, status, kind, str(error), param=param, retry_after_s=retry_after_s)


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines, first = [], None
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        if problem["type"] == "json_invalid":
            first = "body"
            at = f"character {place[-1]}"
            lines.append(f"the body is not valid JSON: {problem['ctx']['error']} (at {at})")
            continue
        name = ".".join(place[1:]) or place[0]
        first = first or name
        given = problem.get("input")
        shown = "" if isinstance(given, dict | list) or given is None else f" (got {given!r:.60})"
        lines.append(f"{name}: {problem['msg']}{shown}")
    message = "; ".join(lines).encode("utf-8", "backslashreplace").decode()
    return _answer(request, 422, "invalid_input", message, param=first)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    response = _answer(request, error.status_code, kind, str(error.detail))
    response.headers.update(error.headers or {})
    return response


async def _on_unknown_error(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s: unexpected error", get_request_id(request), exc_info=error)
    return _answer(
        request, 500, "internal_error", f"unexpected {type(error).__name__}; see the log"
    )
