"""``POST /compare``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.wire import ModelRef, SamplingFields, SamplingUsed, Text
from vbon.maths.intervals import MeanInterval, MedianRange


class CompareRequest(SamplingFields):
    """The same prompts through several modes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompts": ["the film was", "i watched this comedy"], "n": 16, "repeats": 3}
            ]
        }
    )

    n: int | None = Field(None, ge=1, description="candidates a prompt; single-sample modes draw 1")
    prompts: Annotated[list[Text], Field(fail_fast=True, min_length=1)]
    modes: Annotated[list[str], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="default: `bon` and one sample of every policy"
    )
    settings: dict[str, dict[str, Any]] = Field(
        default={},
        description='strategy settings by mode, {"soft-bon": {"reward_temperature": 0.5}}',
    )
    baseline: str | None = Field(
        None, description="mode the ratios are against; default `ref` if compared, else the first"
    )
    repeats: int = Field(1, ge=1, le=100, description="rounds; modes are interleaved in each")
    concurrency: int = Field(
        1, ge=1, le=1024, description="prompts in flight; 1 measures idle latency, many throughput"
    )


class LatencySummary(BaseModel):
    """E2E latency in milliseconds."""

    mean: float
    p50: float
    p95: float


class ModeReport(BaseModel):
    """One mode's side of a comparison."""

    mode: str
    policy: ModelRef
    n: int
    strategy: dict[str, Any] = Field(description="its settings, defaults filled in")
    reward: MeanInterval | None
    gold_reward: MeanInterval | None
    unscored_answers: int
    win_rate: MeanInterval | None = Field(description="against the baseline's answers, ties 1/2")
    gold_win_rate: MeanInterval | None
    e2e_ms: LatencySummary
    requests_per_s: MedianRange
    generated_tokens_per_s: MedianRange
    returned_tokens_per_s: MedianRange
    generated_tokens: int
    returned_tokens: int
    ratio_requests_per_s: MedianRange = Field(
        description="this mode's over the baseline's, per repeat"
    )
    ratio_e2e: MedianRange
    ratio_generated_tokens: float


class HeadToHead(BaseModel):
    """Wins and losses of one mode against another by the reward model, over all answer pairs."""

    mode: str
    against: str
    wins: int
    losses: int
    ties: int


class ComparedAnswer(BaseModel):
    """One mode's first answer to a prompt."""

    text: str
    reward: float | None
    gold_reward: float | None


class PromptRow(BaseModel):
    """One prompt and what each mode answered first."""

    prompt: str
    answers: dict[str, ComparedAnswer]


class CompareResponse(BaseModel):
    """A comparison with everything needed to run it again."""

    request_id: str
    baseline: str
    sampling: SamplingUsed
    repeats: int
    concurrency: int
    reward_model: ModelRef | None
    gold_model: ModelRef | None
    modes: list[ModeReport]
    head_to_head: list[HeadToHead]
    prompts: list[PromptRow]
