"""``/admin``: requests and responses of the administration routes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ReloadRequest(BaseModel):
    """The model to load again. Its path comes from the configuration and cannot be sent."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"model": "vbon"}]})

    model: str = Field(description="a policy's name, or `reward` or `gold`", max_length=64)
    in_place: bool = Field(
        default=False,
        description="change the weights in the running engine instead of starting another one beside it; "
        "only if the new version of the policy differs in its weights alone",
    )
    in_flight: Literal["finish", "keep"] = Field(
        default="finish",
        description="with `in_place`: `finish` lets requests in flight finish with the old weights while new "
        "ones wait; with `keep` they go on with the new weights, and the answers to them list the "
        "`earlier_revisions` of their policy",
    )
    limit_s: float | None = Field(
        default=None,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="with `in_place` and `finish`: how long to wait for them before the change is given up; "
        "default: limits.drain_s",
    )


class ReloadAnswer(BaseModel):
    """The outcome of a reload."""

    models: list[str] = Field(
        description="the models replaced; a base model's adapters are replaced with it"
    )
    before: str = Field(description="the revision served before")
    now: str = Field(description="the revision served now")
    load_s: float = Field(
        description="seconds to load and warm up the new model; in place, to check its files"
    )
    drain_s: float = Field(
        description="seconds from then until no request used the old model and it was stopped; in place, "
        "until its weights were in use: new requests waited that long, unless `in_flight` was `keep`"
    )
    in_place: bool = Field(
        default=False, description="whether the weights were changed in the running engine"
    )
