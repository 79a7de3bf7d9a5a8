"""Messages of a chat, as every route takes them.

A message is one of OpenAI's requests, so that what its clients wrote or got back can be sent to any route.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from service.schemas.neutral_fields import MESSAGE, PART, with_neutral_fields
from service.schemas.wire import AnyText, JsonObject, Wire, form_of
from vbon.prompts import Message, Role

# Each message costs the event loop time before anything is known of its request.
MESSAGES = Field(fail_fast=True, min_length=1, max_length=2048)


class CalledFunction(Wire):
    """The function that a tool call calls."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: AnyText
    arguments: Annotated[
        Annotated[AnyText, Tag("text")] | Annotated[JsonObject, Tag("object")],
        Discriminator(lambda value: "object" if isinstance(value, dict) else "text"),
    ] = Field("", description="a JSON object, as text or parsed")


class ToolCall(Wire):
    """One call of a tool by an assistant."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: AnyText | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class _TextPart(Wire):
    """A text part of a message."""

    type: Literal["text"]
    text: AnyText

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, part: Any) -> Any:
        if isinstance(part, dict) and part.get("type") != "text":
            raise ValueError(
                f"this server takes only parts of type 'text', not {part.get('type')!r:.40}; "
                "send the content as text"
            )
        return part


if TYPE_CHECKING:

    class TextPart(_TextPart):
        """The part with its fields that change nothing."""

else:
    TextPart = with_neutral_fields("TextPart", _TextPart, PART)


class _Message(Wire):
    """One message of a chat; the policy's chat template decides what becomes of it."""

    role: Role
    content: Annotated[
        Annotated[AnyText, Tag("one")]
        | Annotated[list[TextPart], Field(fail_fast=True), Tag("several")],
        Discriminator(form_of),
    ] = Field(
        "",
        description="a text or a list of text parts; may be empty, as an assistant's that only calls tools",
    )
    name: AnyText | None = Field(None, description="the speaker, for templates that show it")
    tool_calls: list[ToolCall] | None = Field(
        None, description="the tools that an assistant called"
    )
    tool_call_id: AnyText | None = Field(None, description="the call that a tool's message answers")
    reasoning_content: AnyText | None = Field(
        None, description="an assistant's reasoning, for templates that show it"
    )
    reasoning: AnyText | None = Field(None, description="same as reasoning_content")

    def to_message(self) -> Message:
        """The form that chat templates take: the content as one text, and without what is absent."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        message = Message(role=self.role, content=content)
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        reasoning = self.reasoning_content or self.reasoning
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        return message


if TYPE_CHECKING:

    class ChatMessage(_Message):
        """The message with its fields that change nothing."""

else:
    ChatMessage = with_neutral_fields("ChatMessage", _Message, MESSAGE)
