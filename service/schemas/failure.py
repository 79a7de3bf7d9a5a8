"""What every error looks like."""

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
