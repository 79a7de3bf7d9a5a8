"""Prompts, which are plain text to continue or a chat, and their conversion to and from tokens."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

Role = Literal["system", "developer", "user", "assistant", "tool"]


class Message(TypedDict):
    """One message of a chat, in OpenAI's form."""

    role: Role
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Either ``text``, which the answer continues, or ``messages``, to which the answer is the next one.

    Attributes:
        template_kwargs: further variables of the policy's chat template.
        tools: the tools that an answer may call, in OpenAI's form, for chat templates that show them.
        special_tokens: whether the tokenizer adds its special tokens, such as BOS; by default only to a text,
            because chat templates write their own.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    template_kwargs: Mapping[str, Any] | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    special_tokens: bool | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.messages):
            raise ValueError("a prompt needs either text or messages, not both")

    @property
    def adds_special_tokens(self) -> bool:
        """``special_tokens``, or its default."""
        return self.text is not None if self.special_tokens is None else self.special_tokens

    @property
    def key(self) -> str:
        """The prompt's identity as readable text: its text, or a ``role: content`` line per message."""
        if self.text is not None:
            return self.text
        return "\n".join(_line(message) for message in self.messages)

    @property
    def size(self) -> int:
        """The number of characters, an upper bound of what encoding it costs in tokens."""
        if self.text is not None:
            return len(self.text)
        return sum(len(message["content"]) + 1 for message in self.messages)


def _line(message: Message) -> str:
    calls = message.get("tool_calls")
    called = "" if not calls else json.dumps(calls, ensure_ascii=False)
    return f"{message['role']}: {message['content']}{called}"


# Number of prompt tokens that a tokenizer needs to know whether a new word begins; the same as vLLM's.
CONTEXT_TOKENS = 5
# Tokenizers decode bytes that are not UTF-8, such as half a character, to this character.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids that a policy sees for a prompt; messages go through its chat template.

    Raises:
        ValueError: the prompt is a chat and the tokenizer has no chat template, or its template rejects
            the messages or lacks a variable.
    """
    if prompt.text is not None:
        return _to_continue(tokenizer, prompt.text, special=prompt.adds_special_tokens)
    if not tokenizer.chat_template:
        raise ValueError(
            "the policy's tokenizer has no chat template; send `prompt`, not `messages`"
        )
    variables = dict(prompt.template_kwargs or {})
    check_variables(str(tokenizer.chat_template), variables)
    if prompt.tools and re.search(r"\btools\b", str(tokenizer.chat_template)):
        variables["tools"] = list(prompt.tools)
    rendered = _templated(
        tokenizer, prompt.messages, "policy", variables, add_generation_prompt=True
    )
    return _to_continue(tokenizer, rendered, special=prompt.adds_special_tokens)


def _to_continue(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    """Token ids of a text that an answer continues: without the EOS that some tokenizers append."""
    ids = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    ending = appended_ending(tokenizer) if special else 0
    return ids[: len(ids) - ending]


# The number of tokens that each tokenizer appends, by tokenizer.
_endings: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def appended_ending(tokenizer: Any) -> int:
    """The number of tokens, EOS the last of them, that a tokenizer appends to every text; 0 for most.

    An answer after EOS would begin another text, so prompts are encoded without.
    """
    if tokenizer not in _endings:
        whole, body = [
            list(tokenizer("Example", add_special_tokens=special)["input_ids"])
            for special in (True, False)
        ]
        # Tokenizers without EOS may lack the attribute.
        ending, eos = _after(whole, body), getattr(tokenizer, "eos_token_id", None)
        appended = len(ending) if ending and ending[-1] == eos else 0
        if appended:
            logger.warning(
                "the tokenizer appends EOS to every text; prompts are encoded without it, because an answer "
                "after EOS would begin another text"
            )
        _endings[tokenizer] = appended
    return _endings[tokenizer]


def _after(whole: list[int], part: list[int]) -> list[int]:
    """The elements after the last occurrence of a part; none if it does not occur."""
    for start in range(len(whole) - len(part), -1, -1):
        if whole[start : start + len(part)] == part:
            return whole[start + len(part) :]
    return []


# Arguments of transformers' `apply_chat_template` that are not the caller's to set.
_OUR_ARGUMENTS = """
    add_generation_prompt chat_template continue_final_message conversation max_length messages padding
    return_assistant_tokens_mask return_dict return_tensors tokenize tokenizer_kwargs tools truncation
"""


def check_variables(template: str, variables: Iterable[str]) -> None:
    """Check that a chat template has the variables that a request sets.

    Raises:
        ValueError: it lacks one, which would have no effect, or one is not the caller's to set.
    """
    for name in variables:
        if name in _OUR_ARGUMENTS.split():
            raise ValueError(f"chat_template_kwargs cannot set {name!r:.60}; leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ValueError(
                f"the policy's chat template has no variable {name!r:.60}; leave it out of "
                "chat_template_kwargs"
            )


def decode_completion(
    tokenizer: Any, prompt_token_ids: Sequence[int], token_ids: Sequence[int]
) -> str:
    """The text of generated token ids that follow a prompt, without special tokens.

    Characters may take several tokens. If the last one is incomplete, the text ends before the first token
    of it, as vLLM's streamed texts do; U+FFFD within the text stands for bytes that are not UTF-8.
    """
    return completion_decoder(tokenizer, prompt_token_ids)(token_ids)


def completion_decoder(
    tokenizer: Any, prompt_token_ids: Sequence[int]
) -> Callable[[Sequence[int]], str]:
    """A :func:`decode_completion` for several completions of one prompt, whose end is decoded only once."""
    context = list(prompt_token_ids[-CONTEXT_TOKENS:])
    before = _decoded(tokenizer, context)
    complete_before = len(complete_text(tokenizer, context))

    def decode(token_ids: Sequence[int]) -> str:
        text = complete_text(tokenizer, [*context, *token_ids])
        # Otherwise the tokens complete a character that the context began.
        return text[len(before) if text.startswith(before) else complete_before :]

    return decode


def complete_text(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of token ids up to the last complete character."""
    kept = len(token_ids)
    text = _decoded(tokenizer, token_ids)
    while kept and text.endswith(REPLACEMENT):
        kept -= 1
        # A character has at most four bytes, so the last tokens tell whether the text ends with half of one.
        while kept and _decoded(tokenizer, token_ids[max(0, kept - 4) : kept]).endswith(
            REPLACEMENT
        ):
            kept -= 1
        text = _decoded(tokenizer, token_ids[:kept])
    return text


def _decoded(tokenizer: Any, token_ids: list[int]) -> str:
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True)
    return text


def finished_conversation(prompt: Prompt, completion: str) -> list[Message]:
    """The chat with its answer; a text becomes the turn of a user."""
    messages = prompt.messages or (Message(role="user", content=prompt.text or ""),)
    return [*messages, Message(role="assistant", content=completion)]


def render_for_reward(tokenizer: Any, prompt: Prompt, completion: str) -> tuple[str, bool]:
    """The text that a reward model scores, and whether its tokenizer should add special tokens.

    A reward model with a chat template gets the finished conversation in its *own* template
    (``add_generation_prompt=False``), with a doubled BOS removed. A reward model without one gets the
    prompt and the completion as one text.

    Raises:
        ValueError: the chat template rejects the conversation; some reject system messages.
    """
    if tokenizer.chat_template:
        turns = finished_conversation(prompt, completion)
        text = _templated(tokenizer, turns, "reward model", {}, add_generation_prompt=False)
        bos = tokenizer.bos_token
        while bos and text.startswith(bos + bos):
            text = text[len(bos) :]
        return text, not (bos and text.startswith(bos))
    return prompt.key + completion, True


def _templated(
    tokenizer: Any,
    messages: Sequence[Message],
    whose: str,
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
) -> str:
    try:
        text: str = tokenizer.apply_chat_template(
            for_template(messages, str(tokenizer.chat_template)),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except Exception as error:  # a template is a program, which may raise anything
        # `raise_exception` of a template raises this, in words that are meant for the caller.
        meant = type(error).__name__ == "TemplateError"
        reason = str(error) if meant else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"the chat template of the {whose}'s tokenizer rejects the messages: {reason}"
        ) from error
    return text


def for_template(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Messages as chat templates expect them, which differs from OpenAI's form in two points.

    A developer's message is a system message, unless the template knows developers. The arguments of tool
    calls are objects, not JSON texts.
    """
    found = []
    for message in messages:
        turn: dict[str, Any] = dict(message)
        if turn["role"] == "developer" and "developer" not in template:
            turn["role"] = "system"
        if "tool_calls" in turn:
            turn["tool_calls"] = [_with_object(call) for call in turn["tool_calls"]]
        found.append(turn)
    return found


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    """The tool call with its arguments parsed; other text stays as it is."""
    function = dict(call["function"])
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = arguments
        arguments = parsed if isinstance(parsed, dict) else arguments
    return call | {"function": function | {"arguments": arguments}}
