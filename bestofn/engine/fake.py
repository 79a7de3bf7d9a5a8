"""A deterministic engine for unit tests; a contract test holds it to the real one's behaviour."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

from bestofn.engine.protocol import Candidate, ModelInfo, Sampling, candidate_seed, check_fits
from bestofn.errors import (
    EngineDeadError,
    InvalidInputError,
    NotReadyError,
)
from bestofn.prompts import Prompt

WORDS = ("good", "bad", "dull", "superb", "odd", "warm", "cold", "sharp")


class FakeEngine:
    """Words drawn from a seeded generator, one character a prompt token, one word a new token.

    Attributes:
        running: candidates being decoded now.
        aborted: candidates given up before they finished.
    """

    def __init__(
        self, path: str = "fake", *, max_model_len: int = 256, seconds_per_token: float = 0.0
    ) -> None:
        self.info = ModelInfo(path, "fake", max_model_len)
        self.running = 0
        self.aborted = 0
        self._seconds_per_token = seconds_per_token
        self._alive = False

    @property
    def alive(self) -> bool:
        """Whether it was started and not killed."""
        return self._alive

    async def start(self) -> None:
        """Come alive."""
        self._alive = True

    async def stop(self) -> None:
        """Die."""
        self._alive = False

    def encode(self, prompt: Prompt) -> list[int]:
        """One id a character; messages are refused, as by a policy without a chat template."""
        if prompt.messages:
            raise InvalidInputError("the policy's tokenizer has no chat template", field="messages")
        ids = [ord(character) for character in prompt.text or ""]
        if not ids:
            raise InvalidInputError("the prompt holds no token", field="prompt")
        return ids

    async def generate(
        self, prompt_token_ids: list[int], sampling: Sampling, num_samples: int, request_id: str
    ) -> AsyncGenerator[Candidate, None]:
        """Yield candidates in order of their length."""
        if not self._alive:
            raise NotReadyError("the fake engine has not started")
        check_fits(self.info, prompt_token_ids, sampling)
        candidates = [self._candidate(prompt_token_ids, sampling, i) for i in range(num_samples)]
        candidates.sort(key=lambda candidate: len(candidate.token_ids))
        self.running += num_samples
        finished, elapsed = 0, 0
        try:
            for candidate in candidates:
                wait = (len(candidate.token_ids) - elapsed) * self._seconds_per_token
                await asyncio.sleep(wait)
                elapsed = len(candidate.token_ids)
                if not self._alive:
                    raise EngineDeadError("the fake engine was stopped")
                finished += 1
                self.running -= 1
                yield candidate
        finally:
            self.running -= num_samples - finished
            self.aborted += num_samples - finished

    def _candidate(self, prompt_ids: list[int], sampling: Sampling, index: int) -> Candidate:
        if sampling.temperature == 0:
            source = random.Random(str(prompt_ids))
        elif sampling.seed is None:
            source = random.Random()
        else:
            source = random.Random(f"{prompt_ids}{candidate_seed(sampling.seed, index)}")
        length = source.randint(1, sampling.max_tokens + 2)
        ids = [source.randrange(len(WORDS)) for _ in range(min(length, sampling.max_tokens))]
        text = "".join(f" {WORDS[i]}" for i in ids)
        reason = "stop" if length <= sampling.max_tokens else "length"
        for stop in sampling.stop:
            if stop in text:
                text, reason = text.split(stop)[0], "stop"
        logprob = sum(-2.0 - source.random() for _ in ids)
        return Candidate(index, text, tuple(ids), logprob, "stop" if reason == "stop" else "length")
