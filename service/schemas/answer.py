"""``POST /generate``: the response."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.sampling import SamplingUsed
from service.schemas.wire import ModelRef
from vbon.engine import FinishReason
from vbon.maths.intervals import MeanInterval


class Usage(BaseModel):
    """Token counts; tokens decoded are counted apart from tokens returned."""

    prompt_tokens: int
    generated_tokens: int = Field(description="of all candidates, discarded ones included")
    returned_tokens: int = Field(description="of the answer")


class Timings(BaseModel):
    """Milliseconds; queue + decode + rerank equal total up to scheduling delays."""

    queue: float
    decode: float
    rerank: float = Field(description="scoring after the last candidate was decoded")
    scoring: float = Field(
        description="time in which at least one candidate was being scored, during decoding or after"
    )
    total: float


class CandidateOut(BaseModel):
    """One candidate."""

    index: int
    text: str
    reward: float | None
    gold_reward: float | None = Field(None, description="only with gold")
    cumulative_logprob: float | None = Field(description="nats under the policy at temperature 1")
    num_tokens: int
    finish_reason: FinishReason
    token_ids: list[int] | None = None
    token_logprobs: list[float] | None = Field(None, description="nats, one per token")


class RewardCurvePoint(BaseModel):
    """Unbiased estimate of best-of-n's expected reward on this prompt, from the candidates drawn."""

    n: int
    expected_reward: float | None = Field(
        description="null if fewer than n candidates could be scored"
    )


class RoutingOut(BaseModel):
    """The arm that answered a request of mode `auto`."""

    arm: Literal["bon", "live", "next"] = Field(
        description="best-of-N, the live checkpoint, or the one that is being rolled out"
    )
    share: float = Field(description="share of the requests of mode auto that this arm gets now")
    step: int | None = Field(
        description="place of this share among those of the rollout, from 0; null unless the arm is next"
    )
    checkpoint: str | None = Field(description="the checkpoint's id; null for best-of-N")


class ExpectedOut(BaseModel):
    """Measured means per answer of a setting, with their 95% intervals over prompts."""

    reward: MeanInterval | None
    gold: MeanInterval | None
    win_rate: MeanInterval | None = Field(description="against one sample of the reference policy")
    generated_tokens: MeanInterval
    latency_mean_s: MeanInterval | None
    latency_p95_s: MeanInterval | None = Field(description="the 95th percentile, in `mean`")
    money: float | None = Field(description="at the server's prices; null if it has none")


class PriceRoutingOut(BaseModel):
    """The measured setting that answered a request of mode `auto`; what it cost is in the usage."""

    mode: str
    policy: str
    n: int
    settings: dict[str, Any]
    why: str
    expected: ExpectedOut | None = Field(
        description="null if no measured setting could be used, so the server's default answered"
    )
    met: bool | None = Field(
        description="whether the budget is expected to be met; null without a budget"
    )
    differs: list[str] = Field(
        description="sampling parameters of the request that differ from those of the measurement"
    )


class GenerateAnswer(BaseModel):
    """The answer to one prompt."""

    request_id: str
    mode: str
    text: str
    reward: float | None = Field(
        description="raw reward; null if it was not requested or the answer could not be scored"
    )
    gold_reward: float | None = Field(
        None, description="only with gold; null if the gold reward model could not score the answer"
    )
    finish_reason: FinishReason
    selected_index: int
    unscored_candidates: int | None = Field(
        description="candidates the reward model could not score; null if none was scored"
    )
    candidates: list[CandidateOut] | None = None
    token_ids: list[int] | None = Field(None, description="only with logprobs")
    token_logprobs: list[float] | None = Field(
        None, description="only with logprobs; nats, one per token"
    )
    reward_curve: list[RewardCurvePoint] | None = Field(None, description="only if n was a list")
    strategy: dict[str, Any] = Field(description="the strategy's settings, defaults filled in")
    details: dict[str, Any] = Field(description="further facts that the strategy reports")
    sampling: SamplingUsed
    sampling_differences: list[str] = Field(
        default=[],
        description="how this sampling differs from the one that the policy was trained and measured with, "
        "which changes its KL and rewards",
    )
    usage: Usage
    timings_ms: Timings
    policy: ModelRef
    reward_model: ModelRef | None
    routing: RoutingOut | PriceRoutingOut | None = Field(
        None, description="only in mode auto: the arm of a rollout, or the measured setting"
    )


class BatchAnswer(BaseModel):
    """The answers to ``prompts``, in order, with totals."""

    request_id: str
    mode: str
    answers: list[GenerateAnswer]
    usage: Usage
