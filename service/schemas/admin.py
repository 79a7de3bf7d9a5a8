"""``/admin``: requests and responses of the administration routes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReloadRequest(BaseModel):
    """The model to load again. Its path comes from the configuration and cannot be sent."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"model": "vbon"}]})

    model: str = Field(description="a policy's name, or `reward` or `gold`", max_length=64)


class ReloadAnswer(BaseModel):
    """The outcome of a reload."""

    models: list[str] = Field(
        description="the models replaced; a base model's adapters are replaced with it"
    )
    before: str = Field(description="the revision served before")
    now: str = Field(description="the revision served now")
    load_s: float = Field(description="seconds to load and warm up the new model")
    drain_s: float = Field(
        description="seconds from then until no request used the old model and it was stopped"
    )
