"""Error responses, and what else routes declare in OpenAPI about their responses."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """One error, in OpenAI's shape."""

    message: str
    type: str
    param: str | None = None
    code: int | str
    request_id: str


class ErrorResponse(BaseModel):
    """The body of every error response of this service."""

    error: ErrorBody


_MEANING = {
    400: "the prompt does not fit into the model's context (context_length_exceeded)",
    401: "the API key is missing or unknown, on a server that requires keys",
    403: "not allowed for this key or under this host name, or the request comes from another site's page",
    404: "not found",
    408: "timed out receiving the request body",
    409: "another operation of this kind is running",
    413: "the request body is too large",
    422: "invalid input; the message names the field and the limit",
    429: "the queue is full or the key's limit is reached; see Retry-After",
    431: "the request headers are too large",
    499: "the client disconnected; appears in logs and metrics only",
    500: "an engine or the service failed",
    502: "the reward model failed",
    503: "models are loading, an engine is dead or the store is locked; see Retry-After",
    504: "timed out generating the answer",
}


def errors(*statuses: int) -> dict[int | str, dict[str, object]]:
    """The OpenAPI ``responses`` of a route that can answer with these error statuses."""
    return {
        status: {"model": ErrorResponse, "description": _MEANING[status]} for status in statuses
    }


# Errors of every route, of routes that read a body, and of routes that use the models.
ANY_ROUTE = errors(401, 403, 431, 500)
WITH_BODY = errors(408, 413, 422)
AT_WORK = WITH_BODY | errors(404, 429, 499, 502, 503, 504)

# The response of a request with `stream`.
EVENT_STREAM: dict[int | str, dict[str, object]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
