"""Responses built by hand: models as JSON, and errors that middleware sends before any route runs."""

from __future__ import annotations

import json

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Scope, Send

from service.context.request_context import record_error
from service.http.request_head import Fields


def json_of(answer: BaseModel) -> Response:
    """A model as a JSON response, without the second validation that FastAPI would do."""
    return Response(answer.model_dump_json(), media_type="application/json")


def whole_error(
    status: int,
    kind: str,
    message: str,
    *,
    code: str | None = None,
    request_id: str = "",
    headers: Fields = (),
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Header fields and content of an error, in the shape of :class:`service.schemas.failure.ErrorResponse`.

    Args:
        kind: the error's ``type``.
        code: the error's ``code``; the status by default.
        headers: fields beside those of the content.
    """
    error = {
        "message": message,
        "type": kind,
        "param": None,
        "code": code or status,
        "request_id": request_id,
    }
    content = json.dumps({"error": error}).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *headers,
    ]
    return fields, content


async def refuse(
    scope: Scope,
    send: Send,
    status: int,
    kind: str,
    message: str,
    *,
    code: str | None = None,
    headers: Fields = (),
    close: bool = True,
) -> None:
    """Send an error as the whole response.

    Args:
        close: close the connection afterwards. Pass ``False`` only if the request's body has been read.
    """
    record_error(kind)
    request_id = scope.get("state", {}).get("request_id", "")
    fields, content = whole_error(
        status, kind, message, code=code, request_id=request_id, headers=headers
    )
    if close:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content})
