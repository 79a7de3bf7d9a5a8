"""Responses in OpenAI's shapes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.answer import CandidateOut, PriceRoutingOut, RoutingOut, Timings
from service.schemas.sampling import SamplingUsed
from service.schemas.wire import ModelRef


class OpenAiUsage(BaseModel):
    """Token counts; discarded candidates are not counted here."""

    prompt_tokens: int
    completion_tokens: int = Field(description="of the answers returned")
    total_tokens: int


class AnswerReport(BaseModel):
    """One of several answers to a prompt."""

    selected_index: int
    reward: float | None


class VbonReport(BaseModel):
    """This server's addition to an answer: how it was chosen, and what that cost."""

    mode: str
    policy: ModelRef
    reward: float | None
    selected_index: int
    unscored_candidates: int | None
    generated_tokens: int = Field(description="of all candidates, discarded ones included")
    returned_tokens: int
    strategy: dict[str, Any]
    details: dict[str, Any]
    answers: list[AnswerReport] | None = Field(
        None, description="with n above 1, one entry per choice, in their order"
    )
    candidates: list[CandidateOut] | None
    sampling: SamplingUsed
    sampling_differences: list[str] = Field(
        default=[],
        description="how this sampling differs from the one that the policy was trained and measured with, "
        "which changes its KL and rewards",
    )
    timings_ms: Timings
    reward_model: ModelRef | None
    routing: RoutingOut | PriceRoutingOut | None = Field(
        None, description="only for the model auto: the arm of a rollout, or the measured setting"
    )


class CompletionChoice(BaseModel):
    """One answer; ``logprobs`` has OpenAI's four lists, of which ``top_logprobs`` is null."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class MadeFunction(BaseModel):
    """A called function, with its arguments as JSON."""

    name: str
    arguments: str


class MadeCall(BaseModel):
    """One call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: MadeFunction


class AssistantMessage(BaseModel):
    """The answer to a chat."""

    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null if the answer only calls tools")
    refusal: None = None
    tool_calls: list[MadeCall] | None = None


class ChatChoice(BaseModel):
    """One answer; ``logprobs`` lists its tokens under ``content``."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class OpenAiAnswer(BaseModel):
    """Fields that the answers of both routes share."""

    id: str
    created: int = Field(description="Unix time, seconds")
    model: str
    system_fingerprint: str = Field(description="the policy's revision")
    usage: OpenAiUsage
    vbon: VbonReport | list[VbonReport] = Field(
        description="a list with one entry per prompt if the prompts were sent as a list"
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
    """A mode in the shape of OpenAI's models."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which this server started, seconds")
    owned_by: Literal["vbon"] = "vbon"
    max_model_len: int = Field(description="context length of the policy, tokens")
    description: str


class ModelList(BaseModel):
    """Every mode of this server."""

    object: Literal["list"] = "list"
    data: list[OpenAiModel]
