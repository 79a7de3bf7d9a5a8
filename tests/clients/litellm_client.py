"""litellm: chat loops with its own message objects, structured outputs, tools and context fallbacks."""

import sys
from collections.abc import Callable
from typing import Literal

import litellm
from pydantic import BaseModel

URL = sys.argv[1]
litellm.suppress_debug_info = True
at = {"api_base": URL, "api_key": "none", "num_retries": 0}


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


messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "a film"}]
for as_sent in (lambda message: message, lambda message: message.model_dump()):
    found = litellm.completion(model="openai/bon", messages=messages, max_tokens=9, **at)
    said = found.choices[0].message
    assert said.content
    loop = [*messages, as_sent(said), {"role": "user", "content": "more"}]
    assert litellm.completion(model="openai/bon", messages=loop, max_tokens=9, **at).choices

several = litellm.completion(
    model="openai/bon", messages=messages, max_tokens=9, n=2, top_p=0.9, presence_penalty=0.5,
    frequency_penalty=0.5, logit_bias={"3": 1}, user="me", seed=3, **at,
)  # fmt: skip
assert len(several.choices) == 2
stream = litellm.completion(
    model="openai/bon", messages=messages, max_tokens=9, stream=True,
    stream_options={"include_usage": True}, **at,
)  # fmt: skip
assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

typed = litellm.completion(
    model="openai/bon", messages=messages, max_tokens=300, response_format=Review, **at
)
Review.model_validate_json(typed.choices[0].message.content)
tool = {"type": "function",
        "function": {"name": "review", "parameters": Review.model_json_schema()}}  # fmt: skip
called = litellm.completion(
    model="openai/bon", messages=messages, max_tokens=300, tools=[tool],
    tool_choice={"type": "function", "function": {"name": "review"}}, **at,
)  # fmt: skip
call = called.choices[0].message.tool_calls[0]
Review.model_validate_json(call.function.arguments)
loop = [*messages, called.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "kept"}]  # fmt: skip
assert litellm.completion(model="openai/bon", messages=loop, max_tokens=9, **at).choices

overlong = [{"role": "user", "content": "x" * 5000}]
told = refusal(
    lambda: litellm.completion(model="openai/ref", messages=overlong, **at),
    litellm.ContextWindowExceededError,
)
assert "maximum context length is 4000 tokens" in told
models = [
    {"model_name": name, "litellm_params": {"model": f"openai/{model}", **at}}
    for name, model in (("small", "ref"), ("large", "long"))
]
router = litellm.Router(model_list=models, context_window_fallbacks=[{"small": ["large"]}])
fallen = router.completion(model="small", messages=overlong, max_tokens=9)
assert fallen.choices[0].message.content
assert (
    litellm.text_completion(
        model="text-completion-openai/bon", prompt="the film was", max_tokens=9, **at
    )
    .choices[0]
    .text
)
