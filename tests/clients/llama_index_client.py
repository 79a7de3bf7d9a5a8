"""LlamaIndex's OpenAILike: completions, chats, streams and structured outputs."""

import sys
from typing import Literal

from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Review(BaseModel):
    """A review."""

    mood: Literal["good", "bad"]
    stars: int


def model(**options: object) -> OpenAILike:
    return OpenAILike(
        model="bon", api_base=sys.argv[1], api_key="none", context_window=4000, max_tokens=300,
        max_retries=0, **options,
    )  # fmt: skip


chat = model(is_chat_model=True, is_function_calling_model=True, should_use_structured_outputs=True)
messages = [
    ChatMessage(role=MessageRole.SYSTEM, content=""),
    ChatMessage(role=MessageRole.USER, content="the film was"),
]
said = chat.chat(messages).message
assert said.content
assert chat.chat([*messages, said, ChatMessage(role="user", content="more")]).message.content
assert list(chat.stream_chat(messages))[-1].message.content
assert chat.complete("the film was").text
assert model(is_chat_model=False).complete("the film was").text
found = chat.structured_predict(Review, PromptTemplate("the film was {what}"), what="x")
assert isinstance(found, Review)
