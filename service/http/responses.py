"""Responses built by hand: models as JSON, and errors that middleware sends before any route runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Scope, Send

from service.context.request_context import record_error


def json_of(answer: BaseModel) -> Response:
    """A model as a JSON response, without the second validation that FastAPI would do."""
    return Response(answer.model_dump_json(), media_type="application/json")


def error_body(
    status: int, kind: str, message: str, *, code: str | None = None, request_id: str = ""
) -> dict[str, Any]:
    """An error in the shape of :class:`service.schemas.failure.ErrorResponse`.

    Args:
        kind: the error's ``type``.
        code: the error's ``code``; the status by default.
    """
    error = {
        "message": message,
        "type": kind,
        "param": None,
        "code": code or status,
        "request_id": request_id,
    }
    return {"error": error}


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    kind: str,
    message: str,
    *,
    code: str | None = None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    close: bool = True,
) -> None:
    """Send an error as the whole response.

    Args:
        close: close the connection afterwards. Pass ``False`` only if the request's body has been read.
    """
    record_error(kind)
    request_id = scope.get("state", {}).get("request_id", "")
    body = error_body(status, kind, message, code=code, request_id=request_id)
    content = json.dumps(body).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *headers,
    ]
    if close:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content})
