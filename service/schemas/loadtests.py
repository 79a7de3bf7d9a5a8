"""``/loadtests``: load tests of this very server, in bounds."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from service.schemas.wire import Text, Wire

ModeName = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}(@[a-z0-9._-]{1,64})?$")]
Level = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]

State = Literal["running", "stopping", "finished", "stopped", "failed"]


class LoadTestRequest(Wire):
    """What to measure. Every field is bounded here or by the server's ``limits``."""

    modes: Annotated[list[ModeName], Field(min_length=1, max_length=8)] | None = Field(
        None, description="modes, or MODE@POLICY; default: every policy and `bon`"
    )
    n: Annotated[list[Level], Field(min_length=1, max_length=6)] | None = Field(
        None, description="every N of the modes that draw several; default: the server's"
    )
    baseline: ModeName = Field("ref", description="mode that win rates are against")
    concurrency: Annotated[list[Level], Field(max_length=6)] = Field(
        default=[], description="closed loop: requests in flight; default 1, 8, 32 without a rate"
    )
    rate: Annotated[list[Rate], Field(max_length=6)] = Field(
        default=[], description="open loop: requests a second"
    )
    rounds: int = Field(2, ge=1, le=20, description="blocks of each mode, N and level, in turns")
    duration_s: float = Field(
        3.0, ge=0.2, le=60, allow_inf_nan=False, description="length of a block, seconds"
    )
    requests: int | None = Field(
        None, ge=1, le=10_000, description="end a block after so many requests instead"
    )
    warmup_s: float = Field(
        0.5, ge=0, le=10, allow_inf_nan=False, description="of a block; left out"
    )
    prompts: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None, description="at most limits.max_prompts; default: a few built in"
    )
    max_tokens: int = Field(32, ge=1, description="most new tokens of a candidate")
    temperature: float = Field(1.0, ge=0, le=10, allow_inf_nan=False)
    stream: bool = Field(True, description="stream modes of one sample, for TTFT, TPOT and ITL")
    slo_ms: dict[Literal["e2e", "ttft", "tpot"], Milliseconds] = Field(
        default={}, description="goodput counts answers within all of them"
    )
    quality_prompts: int = Field(
        32, ge=0, le=128, description="prompts answered once more, scored, off the clock; 0: none"
    )
    quality_samples: int = Field(2, ge=1, le=16, description="scored answers a prompt and mode")
    price_per_hour: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    training_hours: float | None = Field(
        None,
        ge=0,
        le=1e7,
        allow_inf_nan=False,
        description="default: what the checkpoint's record says",
    )
    currency: Annotated[str, Field(pattern=r"^\w{1,8}$")] = "USD"
    seed: int = Field(0, ge=0, lt=2**63)
    tags: Annotated[list[Tag], Field(max_length=8)] = Field(
        default=[], description="tags of the run in the store"
    )

    @model_validator(mode="after")
    def _not_both_lengths(self) -> LoadTestRequest:
        if self.requests is not None and "duration_s" in self.model_fields_set:
            raise ValueError("give duration_s or requests, not both")
        return self


class LoadTestStatus(BaseModel):
    """Where a load test stands."""

    id: str
    state: State
    message: str | None = Field(None, description="why it failed, or what else there is to say")
    started: datetime
    tags: list[str]
    planned_s: float | None = Field(
        description="seconds of all blocks; null if they count requests"
    )
    blocks_planned: int | None = Field(description="null before it is known")
    blocks_done: int
    now: str | None = Field(description="what is being measured")
    now_s: float | None = Field(description="how long that takes, seconds")
    result: bool = Field(description="whether /loadtests/ID/result has something")


class KeptRun(BaseModel):
    """A run of the store."""

    id: str
    created: datetime
    url: str
    headline: str
    tags: list[str]


class LoadTests(BaseModel):
    """The load test that runs or ran last, and those that are kept."""

    current: LoadTestStatus | None = Field(description="running, or the last that this server ran")
    kept: bool = Field(description="whether this server keeps runs (--store)")
    runs: list[KeptRun] = Field(description="newest first")
    max_s: float = Field(description="limits.loadtest_max_s; 0: none may be started")
    max_in_flight: int


class ReportLink(BaseModel):
    """Where a browser may open a report without sending a key."""

    url: str
    valid_s: float
