"""``/loadtests``: load tests that this server runs against itself."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from service.schemas.prompts import PromptItem
from service.schemas.sampling import Seed, Temperature
from service.schemas.wire import AnyText, Wire

ModeName = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,64}(@[a-z0-9._-]{1,64})?$")]
Level = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=10_000, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]


def _label(text: str) -> str:
    """The text without the spaces around it, if every database can keep it."""
    if "\0" in text:
        raise ValueError("it has a NUL character, which PostgreSQL cannot keep; leave it out")
    return text.strip()


Label = Annotated[AnyText, AfterValidator(_label)]
Tag = Annotated[Label, Field(min_length=1, max_length=64)]
RunName = Annotated[Label, Field(max_length=80)]

State = Literal["running", "stopping", "finished", "stopped", "failed"]


class LoadTestRequest(Wire):
    """The load test to run. Every field is bounded here or by the server's ``limits``."""

    modes: Annotated[list[ModeName], Field(min_length=1, max_length=8)] | None = Field(
        None, description="modes, or MODE@POLICY; default: every single-sample mode and `bon`"
    )
    n: Annotated[list[Level], Field(min_length=1, max_length=6)] | None = Field(
        None,
        description="values of N for modes that draw several candidates; default: the server's",
    )
    baseline: ModeName = Field("ref", description="mode that win rates refer to")
    concurrency: Annotated[list[Level], Field(max_length=6)] = Field(
        default=[],
        description="closed loop: requests in flight; default, if no rate is given: 1, and two levels that a "
        "short calibration chooses so that every mode is saturated",
    )
    rate: Annotated[list[Rate], Field(max_length=6)] = Field(
        default=[], description="open loop: requests per second"
    )
    rounds: int = Field(
        5,
        ge=1,
        le=20,
        description="blocks per mode, N and level; each round runs all of them once, and a verdict needs 5",
    )
    duration_s: float | None = Field(
        None,
        ge=0.2,
        le=60,
        allow_inf_nan=False,
        description="length of one block, seconds; default: by the calibration, or 5 with levels that are "
        "given",
    )
    requests: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="end a block after this many requests instead of duration_s",
    )
    warmup_s: float | None = Field(
        None,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="start of each block that is not measured, seconds; default: by the calibration, or 1",
    )
    prompts: Annotated[list[PromptItem], Field(min_length=1)] | None = Field(
        None,
        description="texts, or chats as objects with messages; at most limits.max_prompts; default: those "
        "of the evaluation that this server shows, or a few built-in prompts",
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="most new tokens of a candidate; default: default_sampling of /modes",
    )
    temperature: Temperature | None = Field(None, description="default: default_sampling of /modes")
    stream: bool | None = Field(
        None,
        description="stream single-sample modes, to measure TTFT, TPOT and ITL; default: only if no mode "
        "samples several candidates, because a verdict needs equal terms",
    )
    slo_ms: dict[Literal["e2e", "ttft", "tpot"], Milliseconds] = Field(
        default={},
        description="limits in milliseconds; goodput counts the answers that meet all of them",
    )
    quality_prompts: int = Field(
        64,
        ge=0,
        le=128,
        description="prompts answered and scored separately, to measure quality; 0 turns this off",
    )
    quality_samples: int = Field(4, ge=1, le=16, description="scored answers per prompt and mode")
    price_per_hour: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    training_hours: float | None = Field(
        None,
        ge=0,
        le=1e7,
        allow_inf_nan=False,
        description="default: as in the checkpoint's training record",
    )
    currency: Annotated[str, Field(pattern=r"^\w{1,8}$")] = "USD"
    seed: Seed = 0
    tags: Annotated[list[Tag], Field(max_length=8)] = Field(
        default=[], description="tags under which the run is stored"
    )

    @model_validator(mode="after")
    def _not_both_lengths(self) -> LoadTestRequest:
        if self.requests is not None and self.duration_s is not None:
            raise ValueError("give either duration_s or requests, not both")
        return self


class EngineState(BaseModel):
    """An engine of the server while a load test runs."""

    policy: str
    alive: bool
    sequences: int = Field(description="unfinished sequences in the engine")
    restarts: int = Field(description="since the server was started")


class ServerState(BaseModel):
    """The server while a load test runs.

    With several front ends, candidates are those of all of them; sequences, restarts and candidates that wait
    for their reward are those that the front end with the load test knows of.
    """

    running: int = Field(description="candidates admitted")
    waiting: int = Field(description="candidates waiting for admission")
    scores_waiting: int = Field(description="candidates waiting for their reward")
    engines: list[EngineState]


class BlockState(BaseModel):
    """The block that is being measured, over the last seconds."""

    answers_per_s: float
    p95_ms: float | None = Field(description="p95 of E2E; null if nothing was answered")
    failed: int = Field(description="requests of the block that failed so far")


class LoadTestStatus(BaseModel):
    """A load test's state and progress."""

    id: str
    state: State
    message: str | None = Field(None, description="why it failed, or another remark")
    started: datetime
    tags: list[str]
    planned_s: float | None = Field(
        description="total seconds of all blocks, at most where a calibration chooses them; null if blocks "
        "count requests"
    )
    left_s: float | None = Field(
        None, description="seconds of the blocks that are still to come; null until it is known"
    )
    blocks_planned: int | None = Field(description="null until it is known")
    blocks_done: int
    now: str | None = Field(description="what is being measured now")
    now_s: float | None = Field(description="seconds that this takes")
    block: BlockState | None = Field(None, description="null between blocks")
    server: ServerState | None = Field(None, description="null if it has ended")
    result: bool = Field(description="true if /loadtests/ID/result is available")


class KeptRun(BaseModel):
    """A stored load test."""

    id: str
    created: datetime
    url: str
    headline: str
    tags: list[str]
    name: str | None = Field(description="given with PATCH; null if nobody has")
    models: dict[str, str] = Field(
        description="revision of each policy and reward model that was used, by its name"
    )


class RunLabels(Wire):
    """The name and tags of a stored load test; what is left out stays as it is."""

    name: RunName | None = Field(None, description="an empty one removes the name")
    tags: Annotated[list[Tag], Field(max_length=8)] | None = Field(
        None, description="in the place of those that the load test has"
    )


class LoadTests(BaseModel):
    """The load test that is running or ran last, and the stored ones."""

    current: LoadTestStatus | None = Field(
        description="the load test that is running, or the last one that this server ran"
    )
    kept: bool = Field(description="true if this server stores runs (--store)")
    runs: list[KeptRun] = Field(description="newest first")
    max_s: float = Field(description="limits.loadtest_max_s; 0 means that none may be started")
    max_in_flight: int


class ReportLink(BaseModel):
    """A URL at which a browser can open a report without an API key."""

    url: str
    valid_s: float
