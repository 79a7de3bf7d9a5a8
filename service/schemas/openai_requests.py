"""Requests of OpenAI's completions and chat completions.

Parameters that this server does not support are accepted only at their neutral value, which clients and
load testers send by default. Any other value is rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from service.schemas.generate import GenerateRequest
from service.schemas.sampling import SamplingFields
from service.schemas.wire import ChatMessage, Text, Wire
from service.strategies.request_fields import settings_in, with_strategy_settings


@dataclass(frozen=True)
class _Only:
    """Accepts only ``neutral`` or null, in validation and in the schema."""

    neutral: Any
    remedy: str = "leave it out"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [None] if self.neutral is None else [self.neutral, None]}

    def _check(self, value: Any) -> Any:
        if value is not None and value != self.neutral:
            raise ValueError(f"this server supports only {self.neutral!r}; {self.remedy}")
        return value


class StreamOptions(Wire):
    """Token counts that a stream adds to the text."""

    include_usage: bool = Field(False, description="end with a chunk that has the token counts")
    continuous_usage_stats: bool = Field(False, description="send the counts so far in every chunk")


class OpenAiFields(SamplingFields):
    """Fields that both routes share."""

    model: str = Field(description="a mode, such as `bon`; `bon@vbon` draws from another policy")
    best_of: int | None = Field(
        None, ge=1, description="N: candidates drawn for the answer; default: the server's"
    )
    n: Annotated[
        int | None,
        _Only(1, "n counts answers; for best-of-N send best_of"),
    ] = Field(None, description="number of answers returned")
    max_completion_tokens: int | None = Field(None, ge=1, description="same as max_tokens")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="ignored")
    return_candidates: bool = Field(False, description="also return every candidate, under `vbon`")
    score: bool = Field(
        False,
        description="single-sample modes: score the answer and report its reward (off by default, because "
        "clients written for other servers do not use it)",
    )
    timeout_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="time limit, seconds; at most the server's, which is the default",
    )
    frequency_penalty: Annotated[float | None, _Only(0)] = None
    presence_penalty: Annotated[float | None, _Only(0)] = None
    repetition_penalty: Annotated[float | None, _Only(1)] = None
    min_p: Annotated[float | None, _Only(0)] = None
    min_tokens: Annotated[
        int | None, _Only(0, "for answers of exactly max_tokens, use ignore_eos")
    ] = None
    logit_bias: Annotated[dict[str, float] | None, _Only({})] = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options requires stream: true")
        return self

    @property
    def options(self) -> StreamOptions:
        """The stream options, defaults filled in."""
        return self.stream_options or StreamOptions()

    def _native(self, *, logprobs: bool, **source: Any) -> GenerateRequest:
        """This request in the form of the native API."""
        sampling = {
            name: getattr(self, name)
            for name in SamplingFields.model_fields
            if name != "max_tokens"
        }
        return GenerateRequest(
            **source,
            **sampling,
            **settings_in(self),
            n=self.best_of,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=logprobs,
            return_candidates=self.return_candidates,
            score=self.score,
            timeout_s=self.timeout_s,
            stream=self.stream,
        )


class CompletionFields(OpenAiFields):
    """``POST /v1/completions``: one text or several, to continue."""

    prompt: Text | Annotated[list[Text], Field(fail_fast=True, min_length=1)] = Field(
        description="one text or several; token ids are not accepted"
    )
    logprobs: Annotated[
        int | None, _Only(0, "0 returns the log-probabilities of the answer's tokens")
    ] = None
    echo: Annotated[bool | None, _Only(False)] = None
    suffix: Annotated[str | None, _Only(None)] = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _no_token_ids(cls, prompt: Any) -> Any:
        if isinstance(prompt, list) and any(isinstance(part, int | list) for part in prompt):
            raise ValueError(
                "token ids are not accepted; send text, which the reward model needs as well"
            )
        return prompt

    @model_validator(mode="after")
    def _streams_one(self) -> Self:
        if self.stream and isinstance(self.prompt, list) and len(self.prompt) > 1:
            raise ValueError("stream takes one prompt; send one request per prompt")
        return self

    def to_native(self) -> GenerateRequest:
        """This request in the form of the native API."""
        logprobs = self.logprobs is not None
        if isinstance(self.prompt, str):
            return self._native(logprobs=logprobs, prompt=self.prompt)
        if self.stream:
            return self._native(logprobs=logprobs, prompt=self.prompt[0])
        return self._native(logprobs=logprobs, prompts=self.prompt)


class TextPart(Wire):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class OpenAiMessage(Wire):
    """One message of a chat; its content is a text or a list of text parts."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True, min_length=1)]

    def to_native(self) -> ChatMessage:
        """This message with its content joined into one text."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return ChatMessage(role=self.role, content=content)


class ChatFields(OpenAiFields):
    """``POST /v1/chat/completions``: a chat to continue, for policies with a chat template."""

    messages: Annotated[list[OpenAiMessage], Field(fail_fast=True, min_length=1)]
    logprobs: bool | None = None
    top_logprobs: Annotated[
        int | None, _Only(0, "logprobs: true returns the log-probabilities of the answer's tokens")
    ] = None

    def to_native(self) -> GenerateRequest:
        """This request in the form of the native API."""
        turns = [message.to_native() for message in self.messages]
        return self._native(logprobs=bool(self.logprobs), messages=turns)


if TYPE_CHECKING:

    class CompletionRequest(CompletionFields):
        """The request with the settings of every strategy, added from the registry."""

    class ChatRequest(ChatFields):
        """The request with the settings of every strategy, added from the registry."""

else:
    CompletionRequest = with_strategy_settings("CompletionRequest", CompletionFields)
    ChatRequest = with_strategy_settings("ChatRequest", ChatFields)
