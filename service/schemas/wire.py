"""Building blocks that the requests and responses of several routes share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]


class Wire(BaseModel):
    """Base class of requests; rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChatMessage(Wire):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


class ModelRef(BaseModel):
    """A model's identity: its name on this server, its path and the revision of its content."""

    name: str
    path: str
    revision: str
