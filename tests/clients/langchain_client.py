"""LangChain's ChatOpenAI: chat loops, streams, structured outputs, tools, and its own error types."""

import sys
from collections.abc import Callable
from typing import Literal

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

URL = sys.argv[1]


class Review(BaseModel):
    """A review."""

    mood: Literal["good", "bad"]
    stars: int


def refusal(ask: Callable[[], object], kind: type[Exception]) -> str:
    """The message with which a request is refused."""
    try:
        ask()
    except kind as error:
        return str(error)
    raise AssertionError("a request was answered that should not be")


chat = ChatOpenAI(model="bon", base_url=URL, api_key="none", max_retries=0, max_tokens=300)
messages = [SystemMessage(""), HumanMessage("the film was")]
said = chat.invoke(messages)
assert said.content
assert said.usage_metadata["output_tokens"] > 0
assert chat.invoke([*messages, said, HumanMessage("more", name="Ann")]).content
assert "".join(chunk.content for chunk in chat.stream(messages))
two = ChatOpenAI(model="bon", base_url=URL, api_key="none", max_retries=0, max_tokens=9, n=2)
assert len(two.generate([messages]).generations[0]) == 2

for method in ("json_schema", "function_calling"):
    for options in ({}, {"strict": True}):
        found = chat.with_structured_output(Review, method=method, **options).invoke("the film was")
        assert isinstance(found, Review), (method, found)
streamed = list(chat.with_structured_output(Review).stream("the film was"))
assert isinstance(streamed[-1], Review)
loose = chat.with_structured_output(Review, method="json_mode", include_raw=True).invoke("json")
assert loose["raw"].content.startswith("{")

called = chat.bind_tools([Review], tool_choice="any").invoke(messages)
assert called.tool_calls[0]["name"] == "Review"
answers = [ToolMessage("kept", tool_call_id=call["id"]) for call in called.tool_calls]
assert chat.invoke([*messages, called, *answers]).content

overlong = refusal(lambda: chat.invoke("x" * 5000), ContextOverflowError)
assert "maximum context length is 4000 tokens" in overlong
unparsed = refusal(lambda: chat.bind_tools([Review]).invoke(messages), Exception)
assert "tool-parser" in unparsed
assert OpenAI(model="bon", base_url=URL, api_key="none", max_tokens=5).invoke("the film was")
