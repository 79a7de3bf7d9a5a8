"""A prompt as a user gives it: plain text to continue, or a chat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One turn of a chat, as chat templates take it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Either ``text`` (the answer continues it) or ``messages`` (the answer is the next turn)."""

    text: str | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.messages):
            raise ValueError("a prompt is either text or messages")

    @property
    def key(self) -> str:
        """A readable identity: the text itself, or the chat flattened."""
        if self.text is not None:
            return self.text
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


# Enough of the prompt for a tokenizer to know whether a word begins: vLLM looks back as far.
CONTEXT_TOKENS = 5

ChatTemplate = Callable[..., Any]


def encode_prompt(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Token ids that a policy sees for a prompt: its chat template if there are messages.

    Text is encoded as the tokenizer does by default (its own BOS included); a template's text is
    encoded without special tokens, since templates write their own.

    Raises:
        ValueError: if messages are given and the tokenizer has no chat template, or one that refuses
            them.
    """
    if prompt.text is not None:
        return list(tokenizer(prompt.text)["input_ids"])
    if not tokenizer.chat_template:
        raise ValueError(
            "the policy's tokenizer has no chat template; send `prompt`, not `messages`"
        )
    rendered = _templated(tokenizer, prompt.messages, "policy", add_generation_prompt=True)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def decode_completion(
    tokenizer: Any, prompt_token_ids: Sequence[int], token_ids: Sequence[int]
) -> str:
    """Text of generated ids in the context of the prompt's last tokens, without special tokens."""
    return completion_decoder(tokenizer, prompt_token_ids)(token_ids)


def completion_decoder(
    tokenizer: Any, prompt_token_ids: Sequence[int]
) -> Callable[[Sequence[int]], str]:
    """:func:`decode_completion` for several completions of one prompt, whose end it decodes once."""
    context = list(prompt_token_ids[-CONTEXT_TOKENS:])
    before = len(tokenizer.decode(context, skip_special_tokens=True))

    def decode(token_ids: Sequence[int]) -> str:
        text: str = tokenizer.decode([*context, *token_ids], skip_special_tokens=True)
        return text[before:]

    return decode


def render_for_reward(tokenizer: Any, prompt: Prompt, completion: str) -> tuple[str, bool]:
    """The text a reward model scores, and whether the tokenizer should add its special tokens.

    A reward model with a chat template sees a finished conversation in its *own* template
    (``add_generation_prompt=False``) with a doubled BOS stripped; one without sees the prompt and
    the completion as one text.

    Raises:
        ValueError: its template refuses the conversation, as some do a system message.
    """
    if tokenizer.chat_template:
        messages: Sequence[Message] = prompt.messages or (
            Message(role="user", content=prompt.text or ""),
        )
        turns = [*messages, Message(role="assistant", content=completion)]
        text = _templated(tokenizer, turns, "reward model", add_generation_prompt=False)
        bos = tokenizer.bos_token
        while bos and text.startswith(bos + bos):
            text = text[len(bos) :]
        return text, not (bos and text.startswith(bos))
    return prompt.key + completion, True


def _templated(
    tokenizer: Any, messages: Sequence[Message], whose: str, *, add_generation_prompt: bool
) -> str:
    # Comes with transformers' templates, which not all prompts need.
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise ValueError(
            f"the chat template of the {whose}'s tokenizer refuses it: {error}"
        ) from error
    return text
