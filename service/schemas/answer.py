"""``POST /generate``: what is answered."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from service.schemas.wire import ModelRef, SamplingUsed
from vbon.engine import FinishReason


class Usage(BaseModel):
    """Tokens: everything decoded apart from what was returned."""

    prompt_tokens: int
    generated_tokens: int = Field(description="of all candidates, discarded ones included")
    returned_tokens: int = Field(description="of the answer")


class Timings(BaseModel):
    """Milliseconds; queue + decode + rerank make up total to within scheduling."""

    queue: float
    decode: float
    rerank: float = Field(description="scoring that decoding did not hide")
    scoring: float = Field(description="while any candidate was being scored, hidden or not")
    total: float


class CandidateOut(BaseModel):
    """One candidate."""

    index: int
    text: str
    reward: float | None
    cumulative_logprob: float | None = Field(description="nats under the policy at temperature 1")
    num_tokens: int
    finish_reason: FinishReason
    token_ids: list[int] | None = None
    token_logprobs: list[float] | None = Field(None, description="nats, one a token")


class RewardCurvePoint(BaseModel):
    """What best-of-n is worth on this prompt, estimated without bias from the candidates drawn."""

    n: int
    expected_reward: float | None = Field(
        description="null where fewer than n candidates could be scored"
    )


class GenerateAnswer(BaseModel):
    """One prompt's answer."""

    request_id: str
    mode: str
    text: str
    reward: float | None = Field(description="raw reward; null if not asked for or not scorable")
    finish_reason: FinishReason
    selected_index: int
    unscored_candidates: int | None = Field(
        description="candidates the reward model could not score; null where none was scored"
    )
    candidates: list[CandidateOut] | None = None
    token_ids: list[int] | None = Field(None, description="on request (logprobs)")
    token_logprobs: list[float] | None = Field(None, description="on request; nats, one a token")
    reward_curve: list[RewardCurvePoint] | None = Field(None, description="where n was a list")
    strategy: dict[str, Any] = Field(description="its settings, defaults filled in")
    details: dict[str, Any] = Field(description="what the strategy reports of its choice")
    sampling: SamplingUsed
    usage: Usage
    timings_ms: Timings
    policy: ModelRef
    reward_model: ModelRef | None


class BatchAnswer(BaseModel):
    """Answers to ``prompts``, in order, with totals."""

    request_id: str
    mode: str
    answers: list[GenerateAnswer]
    usage: Usage
