"""Requests of OpenAI's completions and chat completions.

Fields that act on the answer are written out here. ``neutral_fields.py`` lists those that are accepted only
with values that change nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from service.schemas.budget import MayBudget
from service.schemas.generate import GenerateRequest, MayStore, TemplateVariables
from service.schemas.messages import MESSAGES, ChatMessage
from service.schemas.neutral_fields import (
    CHAT,
    COMMON,
    COMPLETION,
    Neutral,
    with_neutral_fields,
)
from service.schemas.sampling import SamplingFields
from service.schemas.tools import NamedTool, Tool, ToolChoice, ToolUse
from service.schemas.wire import Text, Wire, form_of, writable
from service.strategies.request_fields import settings_in, with_strategy_settings


class StreamOptions(Wire):
    """Token counts that a stream adds to the text."""

    include_usage: bool = Field(False, description="end with a chunk that has the token counts")
    continuous_usage_stats: bool = Field(False, description="send the counts so far in every chunk")
    include_obfuscation: bool = Field(False, description="ignored: chunks are not padded")


class OpenAiFields(SamplingFields):
    """Fields that both routes share."""

    model: str = Field(description="a mode, such as `bon`; `bon@vbon` draws from another policy")
    best_of: int | None = Field(
        None, ge=1, description="N: candidates drawn for the answer; default: the server's"
    )
    n: int | None = Field(
        None,
        ge=1,
        description="number of answers: as many samples, or of best_of candidates the mode's choice and the "
        "others with the highest rewards; a default best_of that is lower is raised to it",
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="same as max_tokens")
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_candidates: bool = Field(False, description="also return every candidate, under `vbon`")
    score: bool = Field(
        False,
        description="single-sample modes: score the answer and report its reward (off by default, because "
        "clients written for other servers do not use it)",
    )
    store: MayStore = None
    budget: MayBudget = None
    timeout_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="time limit, seconds; at most the server's, which is the default",
    )

    add_special_tokens: bool | None = Field(
        None, description="whether the tokenizer adds its own, such as BOS; default: not to a chat"
    )

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
        sampling = {  # those that were sent, so that a mode may have other defaults
            name: getattr(self, name)
            for name in SamplingFields.model_fields
            if name != "max_tokens" and name in self.model_fields_set
        }
        return GenerateRequest(
            **(sampling | source),
            **settings_in(self),
            n=self.best_of,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=logprobs,
            return_candidates=self.return_candidates,
            score=self.score,
            add_special_tokens=self.add_special_tokens,
            store=self.store,
            budget=self.budget,
            timeout_s=self.timeout_s,
            stream=self.stream,
        )


class CompletionFields(OpenAiFields):
    """``POST /v1/completions``: one text or several, to continue."""

    prompt: Annotated[
        Annotated[Text, Tag("one")]
        | Annotated[list[Text], Field(fail_fast=True, min_length=1), Tag("several")],
        Discriminator(form_of),
    ] = Field(description="one text or several; token ids are not accepted")
    logprobs: Annotated[
        int | None, Neutral((0,), "0 returns the log-probabilities of the answer's tokens")
    ] = None

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


class ChatFields(OpenAiFields):
    """``POST /v1/chat/completions``: a chat to continue, for policies with a chat template."""

    messages: Annotated[list[ChatMessage], MESSAGES]
    logprobs: bool | None = None
    chat_template_kwargs: TemplateVariables = Field(
        None, description="further variables of the policy's chat template"
    )
    tools: Annotated[list[Tool], Field(max_length=128)] | None = Field(
        None, description="tools that the answer may call"
    )
    tool_choice: ToolChoice | None = Field(
        None, description="auto, the default with tools, needs engine.tool_parser"
    )
    parallel_tool_calls: bool = Field(True, description="false: at most one call")

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        use = self.tool_use
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        names = [tool.function.name for tool in self.tools or ()]
        if named is not None and named not in names:
            raise ValueError(
                f"tool_choice names the function {named!r:.60}; tools has {', '.join(names) or 'none'}"
            )
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice is 'required', but tools has none")
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name; rename one of them")
        if use is None:
            return self
        constrained = self.response_format is not None and self.response_format.type != "text"
        if constrained:
            raise ValueError(
                "response_format and tools exclude each other, since an answer has one form; leave one out, "
                "or send tool_choice 'none'"
            )
        # Around the parameters, which are not too deep by themselves, there is more in the native request.
        for made in (use.schema or {}, *(tool.model_dump() for tool in use.tools)):
            writable(made)
        return self

    @property
    def tool_use(self) -> ToolUse | None:
        """The answer's use of tools; ``None`` if it may not use them."""
        if not self.tools or self.tool_choice == "none":
            return None
        choice = self.tool_choice
        named = choice.function.name if isinstance(choice, NamedTool) else None
        known = [tool.function.name for tool in self.tools]
        return ToolUse(
            tools=tuple(self.tools),
            named=named if named in known else None,
            required=choice == "required",
            parallel=self.parallel_tool_calls,
        )

    def to_native(self) -> GenerateRequest:
        """This request in the form of the native API."""
        return self._native(
            logprobs=bool(self.logprobs),
            messages=self.messages,
            chat_template_kwargs=self.chat_template_kwargs,
            **self._tool_fields(),
        )

    def _tool_fields(self) -> dict[str, Any]:
        """The fields of the native request that make the answer use tools."""
        use = self.tool_use
        if use is None:
            return {}
        tools = [tool.model_dump(exclude_none=True) for tool in use.tools]
        if use.schema is None:
            return {"tools": tools}
        schema = {"type": "json_schema", "json_schema": {"schema": use.schema}}
        return {"tools": tools, "response_format": schema}


if TYPE_CHECKING:

    class CompletionRequest(CompletionFields):
        """The request with its fields that change nothing, and the settings of every strategy."""

    class ChatRequest(ChatFields):
        """The request with its fields that change nothing, and the settings of every strategy."""

else:
    CompletionRequest = with_strategy_settings(
        "CompletionRequest",
        with_neutral_fields("CompletionFields", CompletionFields, COMMON, COMPLETION),
    )
    ChatRequest = with_strategy_settings(
        "ChatRequest", with_neutral_fields("ChatFields", ChatFields, COMMON, CHAT)
    )
