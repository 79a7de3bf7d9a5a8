"""What admins ask for and are told."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReloadRequest(BaseModel):
    """Which model to read again; from where, only the configuration says."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"model": "vbon"}]})

    model: str = Field(description="a policy's name, or `reward` or `gold`", max_length=64)


class ReloadAnswer(BaseModel):
    """What a reload did."""

    models: list[str] = Field(description="what was replaced; adapters go with their base")
    before: str = Field(description="the revision that was served")
    now: str = Field(description="the revision that is served")
    load_s: float = Field(description="until the new one was warm, seconds")
    drain_s: float = Field(description="until nobody used the old one any more, seconds")
