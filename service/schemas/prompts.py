"""Prompts in lists of requests: texts, and chats beside them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Discriminator, Field, Tag

from service.schemas.messages import ChatMessage
from service.schemas.wire import Text, Wire
from vbon.prompts import Prompt


class ChatPrompt(Wire):
    """A chat where a list of prompts also takes texts."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]


# The form is chosen before validation, so that a wrong value gets one message instead of one per form.
PromptItem = Annotated[
    Annotated[Text, Tag("text")] | Annotated[ChatPrompt, Tag("chat")],
    Discriminator(lambda value: "chat" if isinstance(value, (dict, ChatPrompt)) else "text"),
]


def to_prompt(item: str | ChatPrompt) -> Prompt:
    """The prompt of an item."""
    if isinstance(item, str):
        return Prompt(text=item)
    return Prompt(messages=tuple(turn.to_message() for turn in item.messages))


def to_item(prompt: Prompt) -> str | ChatPrompt:
    """The item of a prompt, the opposite of :func:`to_prompt`."""
    if prompt.messages:
        turns = [ChatMessage.model_validate(dict(turn)) for turn in prompt.messages]
        return ChatPrompt(messages=turns)
    return prompt.text or ""


class EvaluatedPrompts(BaseModel):
    """``GET /evaluation/prompts``: the prompts, in the order of their file."""

    prompts: list[PromptItem]
