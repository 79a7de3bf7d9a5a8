"""Whether an answer is one that the service may give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

# What an answer to bad input may be; 500 and 502 never are, since no input may break a model.
STATED = {200, 204, 401, 403, 404, 405, 408, 413, 422, 429, 431, 503, 504}
WITHOUT_BODY = {"HEAD"}


def wrong_with(
    response: httpx.Response, method: str = "POST", stated: frozenset[int] = frozenset()
) -> str | None:
    """What is wrong with a response, in a few words; nothing if all is well.

    Args:
        stated: statuses it may have beside the usual ones; 400 is for what is no HTTP.
    """
    status = response.status_code
    overlong = status == 400 and b'"code":"context_length_exceeded"' in response.content
    if status not in STATED | stated and not overlong:
        return f"{status}: {response.text[:200]}"
    if method in WITHOUT_BODY:
        return None
    if status == 204:
        return "204 with a body" if response.content else None
    kind = response.headers.get("content-type", "").split(";")[0]
    if status == 200 and kind in {"text/event-stream", "text/plain", "text/html"}:
        return None
    try:
        body = strictly(response.content)
    except ValueError as error:
        return f"{status} without JSON ({error}): {response.text[:200]!r}"
    if status == 200:
        return None
    return _wrong_with_error(body, response)


def may_be_400(headers: Mapping[str, str]) -> frozenset[int]:
    """The statuses beside the usual ones for a request with these headers: a bad Host is not valid HTTP."""
    return frozenset({400}) if "host" in headers else frozenset()


def strictly(content: bytes) -> Any:
    """JSON as the standard has it: no NaN, no Infinity, no lone surrogates.

    Raises:
        ValueError: it is none.
    """

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    return json.loads(content.decode("utf-8"), parse_constant=refuse)


def _wrong_with_error(body: Any, response: httpx.Response) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= error.keys():
        return f"{response.status_code} of another shape: {response.text[:200]}"
    if not error["message"] or len(error["message"]) > 5000:
        return f"{response.status_code} with a message of {len(error['message'])} characters"
    if response.status_code in {429, 503} and "retry-after" not in response.headers:
        return f"{response.status_code} without Retry-After"
    return None
