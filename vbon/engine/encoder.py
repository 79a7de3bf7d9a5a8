"""Turns prompts into token ids without delaying the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from array import array
from typing import Any

from vbon.concurrency import forget_failure
from vbon.engine import encoder_process as wire
from vbon.errors import InvalidInputError, PromptTooLongError
from vbon.prompts import Prompt, encode_prompt
from vbon.threads import in_own_thread

logger = logging.getLogger(__name__)

# Texts up to this length are encoded at once, in less time than it takes to ask another process.
QUICK_CHARACTERS = 2000
_START_S = 60.0
_SAMPLE = "A caf\u00e9, 12 caf\u00e9s;\n\n\t <s> [INST] \u6f22\u5b57 \U0001f600"


class PromptEncoder:
    """The tokenizer and chat template of one policy.

    Short texts are encoded at once. Longer ones, and all chats, go to a child process one after the other.
    If a job takes longer than ``limit_s``, the process is ended and a new one is started for the next job.
    Tokenizers that are written in Python work in a thread instead, and without a time limit.

    Args:
        tokenizer: of transformers, as vLLM loads it.
        most_tokens: the longest prompt in tokens.

    Attributes:
        most_bytes: no text with more bytes can be a prompt of at most ``most_tokens`` tokens.
    """

    def __init__(self, tokenizer: Any, *, most_tokens: int, limit_s: float) -> None:
        self._tokenizer = tokenizer
        self._most_tokens, self._limit_s = most_tokens, limit_s
        self.most_bytes = most_tokens * max(len(token.encode()) for token in tokenizer.get_vocab())
        self._state = _state_of(tokenizer)
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    @classmethod
    async def started(cls, tokenizer: Any, *, most_tokens: int, limit_s: float) -> PromptEncoder:
        """A new encoder whose process runs already; it is made in a thread, because that takes a while."""
        encoder = await in_own_thread(
            "make-encoder", cls, tokenizer, most_tokens=most_tokens, limit_s=limit_s
        )
        try:
            await encoder.start()
        except BaseException:
            await encoder.close()
            raise
        return encoder

    def is_quick(self, prompt: Prompt) -> bool:
        """True if the prompt is encoded, or refused, at once."""
        if prompt.text is None:
            return not self._tokenizer.chat_template
        return len(prompt.text) <= QUICK_CHARACTERS

    async def start(self) -> None:
        """Start the process, so that the first long prompt does not wait for it."""
        if self._state is not None:
            async with self._turn:
                await self._started()

    async def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        Raises:
            InvalidInputError: the prompt is empty, or is a chat and there is no chat template, or the
                template rejects it, fails or takes too long.
            PromptTooLongError: the prompt does not fit into the context.
        """
        field = "prompt" if prompt.messages == () else "messages"
        check_bytes(prompt, self.most_bytes, self._most_tokens)
        if self._state is not None and not self.is_quick(prompt):
            # A job goes on when its request is cancelled, because the process can only do it or be ended.
            asking = asyncio.ensure_future(self._ask(prompt, field))
            asking.add_done_callback(forget_failure)
            return await asyncio.shield(asking)
        try:
            if self.is_quick(prompt):
                ids = encode_prompt(self._tokenizer, prompt)
            else:
                ids = await asyncio.to_thread(encode_prompt, self._tokenizer, prompt)
        except ValueError as error:
            raise InvalidInputError(str(error), field=field) from error
        return _not_empty(ids)

    async def close(self) -> None:
        """End the process; jobs that wait for it fail."""
        self._closed = True
        await self._end()

    async def _ask(self, prompt: Prompt, field: str) -> list[int]:
        try:
            job = wire.frame(wire.job_of(prompt))
        except RecursionError as error:
            raise InvalidInputError("the chat is nested too deeply", field=field) from error
        async with self._turn:
            try:
                answer = await self._answer(job)
            except TimeoutError:
                raise InvalidInputError(
                    f"the tokenizer and chat template took more than {self._limit_s:g} s for this prompt "
                    "(engine.encode_timeout_s); shorten it",
                    field=field,
                ) from None
            except EOFError as error:
                raise InvalidInputError(
                    "the tokenizer and chat template failed on this prompt: their process ended",
                    field=field,
                ) from error
        if answer[:1] == wire.FAILED:
            raise InvalidInputError(answer[1:].decode(), field=field)
        count, ids = wire.length_in(answer[1:]), array("I", answer[9:])
        if count > self._most_tokens:
            raise PromptTooLongError(prompt_tokens=count, max_tokens=1, limit=self._most_tokens)
        return _not_empty(list(ids))

    async def _answer(self, job: bytes) -> bytes:
        """The process's answer to a job, in a second process if the first one ended.

        Raises:
            TimeoutError, EOFError: as :meth:`_answer_once`.
        """
        try:
            return await self._answer_once(job)
        except EOFError:
            # Perhaps it was killed from outside; a second time it is the prompt's fault.
            return await self._answer_once(job)

    async def _answer_once(self, job: bytes) -> bytes:
        """The process's answer to a job. The process is ended if there is none.

        Raises:
            TimeoutError: it took too long.
            EOFError: the process ended.
        """
        process = await self._started()
        try:
            async with asyncio.timeout(self._limit_s):
                return await _exchange(process, job)
        except TimeoutError:
            await self._end()
            raise
        except (EOFError, OSError) as error:
            await self._end()
            raise EOFError from error

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is not None and self._process.returncode is None:
            return self._process
        if self._closed:
            raise InvalidInputError("the policy is being unloaded; try again", field="prompt")
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            wire.__name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the service's, which ends this process
            limit=2**20,
        )
        state = {**(self._state or {}), "most_tokens": self._most_tokens, "limit_s": self._limit_s}
        try:
            async with asyncio.timeout(_START_S):
                await _exchange(process, wire.frame(json.dumps(state).encode()))
        except (TimeoutError, EOFError, OSError) as error:
            await self._end()
            logger.error("the process of a tokenizer and chat template did not start: %r", error)
            raise InvalidInputError(
                "the tokenizer and chat template could not be started; see the log", field="prompt"
            ) from error
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            # asyncio closes the pipe to a killed process only when something is written to it.
            if process.stdin is not None:
                process.stdin.close()


def check_bytes(prompt: Prompt, most_bytes: int, most_tokens: int) -> None:
    """Check the length of a prompt before any work is done for it.

    Raises:
        PromptTooLongError: the text is so long that its tokens cannot fit into the context.
    """
    texts = [prompt.text] if prompt.text is not None else [m["content"] for m in prompt.messages]
    size = sum(len(text) for text in texts)  # bytes are counted only where characters leave a doubt
    if size <= most_bytes < 4 * size:
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size > most_bytes:
        raise PromptTooLongError.unread(size=size, most=most_bytes, limit=most_tokens)


def _not_empty(ids: list[int]) -> list[int]:
    if not ids:
        raise InvalidInputError("the prompt contains no tokens", field="prompt")
    return ids


def _state_of(tokenizer: Any) -> dict[str, Any] | None:
    """The data with which a process encodes as this tokenizer does; ``None`` if only the tokenizer can."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    template = None
    if tokenizer.chat_template:
        with contextlib.suppress(ValueError):  # it has several, and none is the default
            template = tokenizer.get_chat_template()
    state = {
        "backend": backend.to_str(),
        "encode_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
        "chat_template": template,
        "special_tokens": tokenizer.special_tokens_map,
    }
    # Some tokenizers of transformers do more than their backend.
    light = wire.LightTokenizer(state)
    for special in (True, False):
        ours = list(light(_SAMPLE, add_special_tokens=special)["input_ids"])
        if ours != list(tokenizer(_SAMPLE, add_special_tokens=special)["input_ids"]):
            return None
    return state


async def _exchange(process: asyncio.subprocess.Process, message: bytes) -> bytes:
    """Send a message and read the answer.

    Raises:
        EOFError: the process has ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(message)
    await process.stdin.drain()
    length = wire.length_in(await process.stdout.readexactly(8))
    return await process.stdout.readexactly(length)
