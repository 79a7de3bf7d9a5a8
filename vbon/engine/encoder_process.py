"""Child process that applies a chat template and a tokenizer, so that neither can stop its parent.

Chat templates are programs that come with a checkpoint, and the time of tokenizing grows with the text. The
parent (``encoder.py``) ends this process when it takes too long. It ends itself when the parent is gone: the
pipe closes, or its alarm rings in the middle of a job.

A message is its length in 8 bytes and its content. A job's content is one letter and a text with special
tokens (``t``) or without (``b``), or a chat as JSON (``c``). An answer is one letter and: the number of
tokens in 8 bytes and, if they fit the context, their ids in 4 bytes each (``o``), or an error (``e``).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from array import array
from collections.abc import Sequence
from typing import Any, BinaryIO

from vbon.prompts import Prompt, encode_prompt

TEXT, BARE_TEXT, CHAT, DONE, FAILED = b"t", b"b", b"c", b"o", b"e"
_LENGTH_BYTES = 8
_MOST_MEMORY_BYTES = 4 * 2**30
_GRACE_S = 2.0  # beyond the time after which the parent ends this process


def frame(*parts: bytes) -> bytes:
    """A message as it is sent."""
    content = b"".join(parts)
    return length_bytes(len(content)) + content


def length_bytes(number: int) -> bytes:
    """A length or count as it is sent."""
    return number.to_bytes(_LENGTH_BYTES, "big")


def length_in(content: bytes) -> int:
    """The length or count at the start of some bytes."""
    return int.from_bytes(content[:_LENGTH_BYTES], "big")


class LightTokenizer:
    """A fast tokenizer and its chat template, without the libraries that train and load models.

    It has what :func:`vbon.prompts.encode_prompt` uses of a tokenizer of transformers.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(state["backend"])
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = state["encode_special_tokens"]
        self.chat_template: str | None = state["chat_template"]
        self._special_tokens: dict[str, Any] = state["special_tokens"]
        if self.chat_template:  # so that the first chat does not pay for the import
            import transformers.utils.chat_template_utils  # noqa: F401

    @property
    def eos_token_id(self) -> int | None:
        """The id of EOS; ``None`` without one."""
        eos = self._special_tokens.get("eos_token")
        return None if eos is None else self._backend.token_to_id(str(eos))

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, Sequence[int]]:
        """The ids of a text, under the same key as in transformers."""
        found = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": found.ids}

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        **variables: Any,
    ) -> str:
        """The text that the template makes of a chat."""
        assert not tokenize
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, _ = render_jinja_template(
            [messages],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens | variables,
        )
        text: str = rendered[0]
        return text


def job_of(prompt: Prompt) -> bytes:
    """The job of encoding a prompt."""
    if prompt.text is not None:
        kind = TEXT if prompt.adds_special_tokens else BARE_TEXT
        return kind + prompt.text.encode("utf-8", "surrogatepass")
    chat = {
        "messages": prompt.messages,
        "template_kwargs": prompt.template_kwargs,
        "tools": prompt.tools,
        "special_tokens": prompt.special_tokens,
    }
    return CHAT + json.dumps(chat, ensure_ascii=False).encode("utf-8", "surrogatepass")


def prompt_in(job: bytes) -> Prompt:
    """The prompt of a job."""
    text = job[1:].decode("utf-8", "surrogatepass")
    if job[:1] in (TEXT, BARE_TEXT):
        return Prompt(text=text, special_tokens=job[:1] == TEXT)
    chat = json.loads(text)
    return Prompt(**chat | {"messages": tuple(chat["messages"]), "tools": tuple(chat["tools"])})


def answer(tokenizer: Any, job: bytes, most_tokens: int) -> bytes:
    """The answer to a job; any error is one."""
    try:
        ids = encode_prompt(tokenizer, prompt_in(job))
    except ValueError as error:
        return FAILED + str(error).encode("utf-8", "backslashreplace")
    except BaseException as error:  # whatever the template or the tokenizer raises
        return FAILED + f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")
    fitting = array("I", ids if len(ids) <= most_tokens else ()).tobytes()
    return DONE + length_bytes(len(ids)) + fitting


def serve(jobs: BinaryIO, answers: BinaryIO) -> None:
    """Answer jobs until the pipe closes. The first message is the tokenizer's state."""

    def read() -> bytes | None:
        head = jobs.read(_LENGTH_BYTES)
        return jobs.read(length_in(head)) if len(head) == _LENGTH_BYTES else None

    first = read()
    if first is None:
        return
    state = json.loads(first)
    tokenizer = LightTokenizer(state)

    def say(content: bytes) -> None:
        answers.write(frame(content))
        answers.flush()

    say(DONE)
    while (job := read()) is not None:
        signal.setitimer(signal.ITIMER_REAL, state["limit_s"] + _GRACE_S)
        found = answer(tokenizer, job, state["most_tokens"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        say(found)


def main() -> None:
    """Serve on standard input and output. Whatever else is printed goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # A template can ask for any amount of memory in one expression.
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MOST_MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MOST_MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
