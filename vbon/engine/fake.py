"""A deterministic engine for unit tests; a contract test checks that it behaves like the real one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar

from prometheus_client import Metric

from vbon.engine.protocol import (
    Candidate,
    ModelInfo,
    Partial,
    Sampling,
    candidate_seed,
    check_fits,
)
from vbon.errors import (
    EngineDeadError,
    InvalidInputError,
    NotReadyError,
)
from vbon.prompts import Prompt

WORDS = ("good", "bad", "dull", "superb", "odd", "warm", "cold", "sharp")


def words(token_ids: Sequence[int]) -> str:
    """The text of the fake engine's tokens."""
    return "".join(f" {WORDS[i]}" for i in token_ids)


class FakeEngine:
    """An engine that generates random words: a prompt token is a character, a new token is a word.

    It decodes any number of sequences at once, so a priority has no effect. With ``endless``, candidates
    end at ``max_tokens`` only.

    Attributes:
        running: number of candidates that are being decoded.
        aborted: number of candidates aborted before they finished.
        decoded_tokens: number of tokens of finished candidates and of streamed ones so far.
    """

    recovers: ClassVar[bool] = False

    def __init__(
        self,
        path: str = "fake",
        *,
        max_model_len: int = 256,
        seconds_per_token: float = 0.0,
        endless: bool = False,
        by_priority: bool = False,
        adapter: bool = False,
        sampled_logprobs: bool = False,
    ) -> None:
        self.info = ModelInfo(path, "fake", max_model_len, by_priority, adapter, sampled_logprobs)
        self.running = 0
        self.aborted = 0
        self.decoded_tokens = 0
        self._seconds_per_token = seconds_per_token
        self._endless = endless
        self._alive = False

    @property
    def alive(self) -> bool:
        """True after :meth:`start` and before :meth:`stop`."""
        return self._alive

    @property
    def trouble(self) -> str:
        """A text if the engine does not run; it cannot have other problems."""
        return "" if self._alive else "not started, or stopped"

    async def start(self) -> None:
        """Mark the engine as running."""
        self._alive = True

    async def check(self) -> None:
        """Do nothing: the fake engine never hangs."""

    async def stop(self) -> None:
        """Mark the engine as stopped; candidates that are being decoded fail."""
        self._alive = False

    @property
    def unfinished(self) -> int:
        """The number of candidates that are being decoded."""
        return self.running

    async def metrics(self) -> list[Metric]:
        """An empty list: the fake engine has no metrics."""
        return []

    async def encode(self, prompt: Prompt) -> list[int]:
        """One token id per character. Messages are rejected, as by a policy without a chat template."""
        if prompt.messages:
            raise InvalidInputError("the policy's tokenizer has no chat template", field="messages")
        ids = [ord(character) for character in prompt.text or ""]
        if not ids:
            raise InvalidInputError("the prompt contains no tokens", field="prompt")
        return ids

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        """The words of the token ids."""
        return words(token_ids)

    async def generate(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        num_samples: int,
        request_id: str,
        first_index: int = 0,
    ) -> AsyncGenerator[Candidate, None]:
        """Yield candidates in order of their lengths."""
        self._check(prompt_token_ids, sampling)
        indices = range(first_index, first_index + num_samples)
        candidates = [self._candidate(prompt_token_ids, sampling, i) for i in indices]
        candidates.sort(key=lambda candidate: len(candidate.token_ids))
        self.running += num_samples
        finished, elapsed = 0, 0
        try:
            for candidate in candidates:
                await self._decode_for(len(candidate.token_ids) - elapsed)
                elapsed = len(candidate.token_ids)
                finished += 1
                self.running -= 1
                self.decoded_tokens += len(candidate.token_ids)
                yield candidate
        finally:
            self.running -= num_samples - finished
            self.aborted += num_samples - finished

    async def stream(
        self, prompt_token_ids: list[int], sampling: Sampling, index: int, request_id: str
    ) -> AsyncGenerator[Partial, None]:
        """Yield a candidate, one word longer each time."""
        self._check(prompt_token_ids, sampling)
        whole = self._candidate(prompt_token_ids, sampling, index)
        self.running += 1
        ended = False
        try:
            for count in range(1, len(whole.token_ids) + 1):
                await self._decode_for(1)
                self.decoded_tokens += 1
                ended = count == len(whole.token_ids)
                # Like vLLM, hold back text that may turn out to be part of a stop string.
                length = len(words(whole.token_ids[:count]))
                yield Partial(
                    index,
                    whole.text[:length],
                    whole.token_ids[:count],
                    whole.finish_reason if ended else None,
                    whole.token_logprobs and whole.token_logprobs[:count],
                )
        finally:
            self.running -= 1
            self.aborted += not ended

    async def logprobs(
        self,
        prompt_token_ids: list[int],
        completion_token_ids: list[int],
        request_id: str,
        priority: int = 0,
    ) -> list[float]:
        """Random numbers between -3 and -2, fixed by the engine's path and the completion so far."""
        self._check(prompt_token_ids, Sampling(max_tokens=1, priority=priority))
        await self._decode_for(1)
        return [
            -2.0 - random.Random(f"{self.info.path}{completion_token_ids[: k + 1]}").random()
            for k in range(len(completion_token_ids))
        ]

    def _check(self, prompt_token_ids: list[int], sampling: Sampling) -> None:
        if not self._alive:
            raise NotReadyError("the fake engine has not started")
        check_fits(self.info, prompt_token_ids, sampling)

    async def _decode_for(self, tokens: int) -> None:
        await asyncio.sleep(tokens * self._seconds_per_token)
        if not self._alive:
            raise EngineDeadError("the fake engine was stopped")

    def _candidate(self, prompt_ids: list[int], sampling: Sampling, index: int) -> Candidate:
        if sampling.temperature == 0:
            source = random.Random(str(prompt_ids))
        elif sampling.seed is None:
            source = random.Random()
        else:
            source = random.Random(f"{prompt_ids}{candidate_seed(sampling.seed, index)}")
        length = source.randint(1, sampling.max_tokens + 2)
        if self._endless or sampling.ignore_eos:
            length = sampling.max_tokens + 1
        ids = [source.randrange(len(WORDS)) for _ in range(min(length, sampling.max_tokens))]
        text = words(ids)
        reason = "stop" if length <= sampling.max_tokens else "length"
        for stop in sampling.stop:
            if stop in text:
                text, reason = text.split(stop)[0], "stop"
        logprobs = tuple(-2.0 - source.random() for _ in ids)
        return Candidate(
            index,
            text,
            tuple(ids),
            "stop" if reason == "stop" else "length",
            logprobs if sampling.logprobs else None,
        )
