"""``GET /modes``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from service.schemas.wire import ModelRef
from vbon.storage.training_record import TrainingRecord


class ModeInfo(BaseModel):
    """A mode that requests may name."""

    name: str
    description: str
    source: str = Field(description="the paper it follows; empty where there is none")
    settings: dict[str, Any] = Field(description="settings a request may send, with their defaults")
    policy: ModelRef
    reward_model: ModelRef | None
    default_n: int
    training: TrainingRecord | None = Field(
        None, description="how the policy was trained, cost and held-out figures, where it says so"
    )


class ModesResponse(BaseModel):
    """Every mode, with the defaults and limits of the server."""

    default_mode: str
    modes: list[ModeInfo]
    gold_model: ModelRef | None
    limits: dict[str, Any]
    records: bool = Field(description="whether verdicts and runs are kept (`--store`)")
