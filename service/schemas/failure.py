"""What every error looks like, and which there are."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: int | str
    request_id: str


class ErrorResponse(BaseModel):
    """Every error of this service."""

    error: ErrorBody


_MEANING = {
    401: "no known API key, where the server asks for one",
    403: "not with this key, or not from another site's page",
    404: "nothing of that name, or not any more",
    408: "the body did not come in time",
    409: "another of its kind is under way",
    413: "the body is too large",
    422: "wrong input; names the field and the limit",
    429: "too much waits already; see Retry-After",
    431: "the head of the request is too large",
    499: "the client has gone; nobody reads this",
    500: "an engine or the service failed",
    502: "the reward model failed",
    503: "models loading or an engine dead; see Retry-After",
    504: "no answer within the time limit",
}


def errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The part of a route's OpenAPI that says which errors it answers with."""
    return {
        status: {"model": ErrorResponse, "description": _MEANING[status]} for status in statuses
    }


# Whatever is asked; those of what reads a body; and those of what makes models work.
ANY_ROUTE = errors(401, 431, 500)
WITH_BODY = errors(408, 413, 422)
AT_WORK = WITH_BODY | errors(404, 429, 499, 502, 503, 504)
