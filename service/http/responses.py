"""Responses built by hand: models as JSON, and refusals that middleware sends before any route."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Scope, Send

from service.context.request_context import note_error


def json_of(answer: BaseModel) -> Response:
    """A model as a JSON response, without the second validation that FastAPI would do."""
    return Response(answer.model_dump_json(), media_type="application/json")


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
    """Answer with an error in the shape of ``service.routes.errors``.

    What is unread of the body stays so, and the connection is closed; without that, ``close`` may be false.
    """
    note_error(kind)
    error = {
        "message": message,
        "type": kind,
        "param": None,
        "code": code or status,
        "request_id": scope.get("state", {}).get("request_id", ""),
    }
    content = json.dumps({"error": error}).encode()
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        *headers,
    ]
    if close:
        fields.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content})
