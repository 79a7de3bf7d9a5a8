"""Objects kept on a request and its application: the runtime, the request id, the requested model."""

from __future__ import annotations

from typing import cast

from fastapi import Request

from service.runtime.runtime import Runtime


def get_runtime(request: Request) -> Runtime:
    """The application's runtime."""
    return cast(Runtime, request.app.state.runtime)


def get_request_id(request: Request) -> str:
    """The id that the middleware gave this request."""
    return str(request.scope["state"]["request_id"])


def remember_model(request: Request, model: str) -> None:
    """Store the model that the request body names, so that errors are counted under its mode."""
    request.scope["state"]["model"] = model


def asked_model(request: Request) -> str:
    """The remembered model; empty if the body has not been read."""
    return str(request.scope["state"].get("model", ""))
