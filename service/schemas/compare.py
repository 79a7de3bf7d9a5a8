"""``POST /compare``: the request and the response."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.prompts import PromptItem
from service.schemas.sampling import SamplingFields, SamplingUsed
from service.schemas.wire import ModelRef
from vbon.maths.intervals import MeanInterval, MedianRange


class CompareRequest(SamplingFields):
    """Prompts to answer in several modes."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompts": ["the film was", "i watched this comedy"], "n": 16, "repeats": 3}
            ]
        }
    )

    n: int | None = Field(
        None, ge=1, description="candidates per prompt; single-sample modes draw 1"
    )
    prompts: Annotated[list[PromptItem], Field(fail_fast=True, min_length=1)] = Field(
        description="texts, or chats as objects with messages"
    )
    modes: Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=256)] | None = Field(
        None, description="default: `bon` and every single-sample mode"
    )
    settings: dict[str, dict[str, Any]] = Field(
        default={},
        description='strategy settings by mode, such as {"soft-bon": {"reward_temperature": 0.5}}',
    )
    baseline: str | None = Field(
        None,
        description="mode that win rates and ratios refer to; default: `ref` if compared, else the first",
    )
    repeats: int = Field(
        1, ge=1, le=100, description="number of rounds; every round runs all modes"
    )
    concurrency: int = Field(
        1,
        ge=1,
        le=1024,
        description="prompts in flight at once; 1 measures latency without load, a high value throughput",
    )


class LatencySummary(BaseModel):
    """E2E latency, milliseconds."""

    mean: float
    p50: float
    p95: float


class ModeReport(BaseModel):
    """One mode's results."""

    mode: str
    policy: ModelRef
    n: int
    sampling_differences: list[str] = Field(
        default=[],
        description="how this sampling differs from the one that the policy was trained and measured with, "
        "which changes its KL and rewards",
    )
    strategy: dict[str, Any] = Field(description="the strategy's settings, defaults filled in")
    reward: MeanInterval | None
    gold_reward: MeanInterval | None
    unscored_answers: int
    win_rate: MeanInterval | None = Field(
        description="against the baseline's answers; a tie counts 1/2"
    )
    gold_win_rate: MeanInterval | None
    e2e_ms: LatencySummary
    requests_per_s: MedianRange
    generated_tokens_per_s: MedianRange
    returned_tokens_per_s: MedianRange
    generated_tokens: int
    returned_tokens: int
    ratio_requests_per_s: MedianRange = Field(
        description="this mode's rate divided by the baseline's, per repeat"
    )
    ratio_e2e: MedianRange
    ratio_generated_tokens: float


class HeadToHead(BaseModel):
    """Wins, losses and ties of one mode against another by reward, over all pairs of answers."""

    mode: str
    against: str
    wins: int
    losses: int
    ties: int
    reward_difference: MeanInterval | None = Field(
        None,
        description="reward of `mode` minus that of `against`, paired by prompt; null if none was scored",
    )
    gold_difference: MeanInterval | None = Field(
        None, description="the same by the gold reward model"
    )


class ComparedAnswer(BaseModel):
    """One mode's first answer to a prompt."""

    text: str
    reward: float | None
    gold_reward: float | None


class PromptRow(BaseModel):
    """One prompt and each mode's first answer."""

    prompt: str = Field(description="the text, or a line for each message of a chat")
    answers: dict[str, ComparedAnswer]


class CompareResponse(BaseModel):
    """The results, with everything needed to repeat the comparison."""

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
