"""``GET /modes``: the response."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.wire import ModelRef
from vbon.storage.training_record import TrainingRecord


class ModeInfo(BaseModel):
    """A mode that requests may name."""

    name: str
    description: str
    source: str = Field(description="the paper it follows; empty if there is none")
    settings: dict[str, Any] = Field(
        description="settings that a request may send, with their defaults"
    )
    policy: ModelRef
    reward_model: ModelRef | None
    reranks: bool = Field(description="whether the answer is chosen among n candidates")
    default_n: int
    adapter: bool = Field(
        False,
        description="true: the policy is served as an unmerged LoRA adapter, which decodes more slowly than "
        "merged weights",
    )
    training: TrainingRecord | None = Field(
        None, description="the policy's training record, if it has one"
    )
    sampling_differences: list[str] = Field(
        default=[],
        description="how this server's defaults of max_tokens and temperature, and its rewards, differ from "
        "those that the policy was trained and measured with, which changes its KL and rewards",
    )


class DefaultSampling(BaseModel):
    """The sampling of requests that set none; top_p 1, top_k 0 and no stop strings besides."""

    max_tokens: int
    chat_max_tokens: int = Field(
        description="max_tokens of chats; either is lowered to the room that the prompt leaves"
    )
    temperature: float
    sources: dict[str, str] = Field(
        description="where each value comes from: a setting, the card of a checkpoint, or built in"
    )


class ModesResponse(BaseModel):
    """Every mode, and the server's defaults and limits."""

    default_mode: str
    modes: list[ModeInfo]
    default_sampling: DefaultSampling = Field(
        description="the same for every mode, so that modes compare; a request may set others"
    )
    gold_model: ModelRef | None
    limits: dict[str, Any]
    collects: bool = Field(
        description="true if answers are kept for training unless the request says `store: false`"
    )
    budgets: list[Literal["tokens", "money", "reward"]] = Field(
        description="kinds of budget that requests of mode auto may have; empty without a table of measured "
        "settings, and without money where the server has no prices"
    )
    hardware: str = Field(
        description="this server's GPUs or CPU, on which figures that are measured here depend"
    )
    records: bool = Field(description="true if verdicts and load tests are stored (`--store`)")
    evaluates: bool = Field(description="true if /evaluation/prompts has prompts (`--evaluation`)")
