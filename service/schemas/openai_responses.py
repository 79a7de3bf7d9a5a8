"""What OpenAI clients get."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.answer import CandidateOut, Timings
from service.schemas.wire import ModelRef, SamplingUsed


class OpenAiUsage(BaseModel):
    """Tokens in and out; candidates that were discarded are not counted here."""

    prompt_tokens: int
    completion_tokens: int = Field(description="of the answers returned")
    total_tokens: int


class VbonReport(BaseModel):
    """What this server adds to an answer: how it was chosen and what that cost."""

    mode: str
    policy: ModelRef
    reward: float | None
    selected_index: int
    unscored_candidates: int | None
    generated_tokens: int = Field(description="of all candidates, discarded ones included")
    returned_tokens: int
    strategy: dict[str, Any]
    details: dict[str, Any]
    candidates: list[CandidateOut] | None
    sampling: SamplingUsed
    timings_ms: Timings
    reward_model: ModelRef | None


class CompletionChoice(BaseModel):
    """One answer; ``logprobs`` has OpenAI's four lists, the alternatives' null."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class AssistantMessage(BaseModel):
    """The answer to a chat."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer; ``logprobs`` lists its tokens under ``content``."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class OpenAiAnswer(BaseModel):
    """What both routes answer."""

    id: str
    created: int = Field(description="Unix time, seconds")
    model: str
    system_fingerprint: str = Field(description="the policy's revision")
    usage: OpenAiUsage
    vbon: VbonReport | list[VbonReport] = Field(
        description="a list, one a choice, where several prompts were sent as a list"
    )


class Completion(OpenAiAnswer):
    """Answer of ``/v1/completions``."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class ChatCompletion(OpenAiAnswer):
    """Answer of ``/v1/chat/completions``."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class OpenAiModel(BaseModel):
    """A mode as OpenAI clients see it."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="when this server started, Unix time")
    owned_by: Literal["vbon"] = "vbon"
    max_model_len: int = Field(description="context of the policy, tokens")
    description: str


class ModelList(BaseModel):
    """Every mode."""

    object: Literal["list"] = "list"
    data: list[OpenAiModel]
