"""A deterministic engine for unit tests; a contract test checks that it behaves like the real one."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import Metric

from vbon.engine.fake_json import random_instance
from vbon.engine.protocol import (
    Candidate,
    FoundCalls,
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
    ReloadRefusedError,
)
from vbon.prompts import Prompt
from vbon.storage.checkpoints import check_checkpoint, refuse_changed
from vbon.storage.weights_alone import (
    WITHOUT_IN_PLACE,
    BesideWeights,
    NewWeights,
    new_weights,
    read_beside_weights,
)

WORDS = ("good", "bad", "dull", "superb", "odd", "warm", "cold", "sharp")


# Tokens of JSON texts are characters; their ids follow those of the words.
FIRST_CHARACTER = len(WORDS)
VOCABULARY = FIRST_CHARACTER + sys.maxunicode + 1


def words(token_ids: Sequence[int]) -> str:
    """The text of the fake engine's tokens."""
    return "".join(
        f" {WORDS[i]}" if i < FIRST_CHARACTER else chr(i - FIRST_CHARACTER) for i in token_ids
    )


def fake_top_logprobs(key: str, count: int) -> tuple[float, ...]:
    """Log-probabilities of the ``count`` likeliest tokens: those of a geometric series, fixed by a key.

    The highest is above every log-probability that the fake gives a sampled token.
    """
    ratio = 0.1 + 0.7 * random.Random(key).random()
    return tuple(math.log(1 - ratio) + place * math.log(ratio) for place in range(count))


class FakeEngine:
    """An engine that generates random words: a prompt token is a character, a new token is a word.

    All words have the same logit, 0, to which biases and penalties are added. A candidate that must be JSON
    is a random instance of its schema, in tokens of one character; biases and penalties do not change it.

    It decodes any number of sequences at once, so a priority has no effect. With ``endless``, candidates
    end at ``max_tokens`` only. If its path is a model directory, the words also depend on the directory's
    revision, as if that were the weights.

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
        self._weights = ""
        self._beside: BesideWeights | None = None
        self._open = asyncio.Event()
        self._open.set()
        # Candidates without a seed differ from each other, but are the same in every run of a test.
        self._seeds = random.Random(path)

    @property
    def alive(self) -> bool:
        """True after :meth:`start` and before :meth:`stop`."""
        return self._alive

    @property
    def trouble(self) -> str:
        """A text if the engine does not run; it cannot have other problems."""
        return "" if self._alive else "not started, or stopped"

    async def start(self) -> None:
        """Mark the engine as running; read the revision if the path is a model directory."""
        self._read_directory()
        self._alive = True

    def _read_directory(self) -> None:
        if (Path(self.info.path) / "config.json").is_file():
            found = check_checkpoint(self.info.path, "causal-lm")
            self.info = replace(self.info, revision=found.revision)
            self._weights, self._beside = found.revision, read_beside_weights(found)

    async def check_weights(self, path: str) -> NewWeights:
        """Compare the files of two model directories."""
        if self._beside is None:
            raise ReloadRefusedError(f"{self.info.path} is not a directory; {WITHOUT_IN_PLACE}")
        return new_weights(check_checkpoint(path, "causal-lm"), self._beside)

    async def change_weights(self, new: NewWeights, *, keep_requests: bool = False) -> None:
        """Let other words come from now on; candidates that are kept have been drawn already."""
        self._open.clear()
        try:
            while self.running and not keep_requests:  # noqa: ASYNC110  (as vLLM does)
                await asyncio.sleep(self._seconds_per_token or 0.001)
            await self._load(new)
        finally:
            self._open.set()
        self._weights, self._beside = new.checkpoint.revision, new.beside
        self.info = self.info.changed_to(new.checkpoint)

    async def _load(self, new: NewWeights) -> None:
        refuse_changed(new.checkpoint)

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

    def is_quick(self, prompt: Prompt) -> bool:
        """True: characters are counted at once."""
        return True

    async def encode(self, prompt: Prompt) -> list[int]:
        """One token id per character. Messages are rejected, as by a policy without a chat template."""
        if prompt.messages:
            raise InvalidInputError("the policy's tokenizer has no chat template", field="messages")
        ids = [ord(character) for character in prompt.text or ""]
        if not ids:
            raise InvalidInputError("the prompt contains no tokens", field="prompt")
        return ids

    @property
    def finds_calls(self) -> bool:
        """False: words call no tools."""
        return False

    async def find_calls(
        self, candidate: Candidate, tools: Sequence[Mapping[str, Any]]
    ) -> FoundCalls | None:
        """``None``: words call no tools."""
        return None

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
        await self._open.wait()
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
        await self._open.wait()
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
        await self._open.wait()
        await self._decode_for(1)
        return [
            -2.0
            - random.Random(
                f"{self.info.path}{self._weights}{completion_token_ids[: k + 1]}"
            ).random()
            for k in range(len(completion_token_ids))
        ]

    def _check(self, prompt_token_ids: list[int], sampling: Sampling) -> None:
        if not self._alive:
            raise NotReadyError("the fake engine has not started")
        check_fits(self.info, prompt_token_ids, sampling)
        for field, ids in (
            ("stop_token_ids", sampling.stop_token_ids),
            ("logit_bias", sampling.logit_bias or ()),
        ):
            if any(not 0 <= token < VOCABULARY for token in ids):
                raise InvalidInputError(f"{field} has ids outside the vocabulary", field=field)

    async def _decode_for(self, tokens: int) -> None:
        await asyncio.sleep(tokens * self._seconds_per_token)
        if not self._alive:
            raise EngineDeadError("the fake engine was stopped")

    def _candidate(self, prompt_ids: list[int], sampling: Sampling, index: int) -> Candidate:
        if sampling.temperature == 0:
            source = random.Random(f"{self._weights}{prompt_ids}")
        elif sampling.seed is None:
            source = random.Random(self._seeds.getrandbits(64))
        else:
            source = random.Random(
                f"{self._weights}{prompt_ids}{candidate_seed(sampling.seed, index)}"
            )
        if sampling.json_schema is None:
            ids, ended = self._words(source, sampling)
        else:
            ids, ended = _characters(source, sampling)
        for position, token in enumerate(ids):
            if token in sampling.stop_token_ids and position >= sampling.min_tokens:
                ids, ended = ids[: position + 1], True
                break
        # Like EOS, which has no id here, a token that ends a candidate has no text.
        by_token = bool(ids) and ids[-1] in sampling.stop_token_ids
        text = words(ids[:-1] if ended and by_token else ids)
        for stop in sampling.stop:
            if stop in text:
                text, ended = text.split(stop)[0], True
        logprobs = tuple(-2.0 - source.random() for _ in ids)
        return Candidate(
            index,
            text,
            tuple(ids),
            "stop" if ended else "length",
            logprobs if sampling.logprobs else None,
            tuple(
                fake_top_logprobs(f"{prompt_ids}{ids[:k]}", sampling.top_logprobs)
                for k in range(len(ids))
            )
            if sampling.top_logprobs
            else None,
        )

    def _words(self, source: random.Random, sampling: Sampling) -> tuple[list[int], bool]:
        """The words of a candidate, and whether it ended before ``max_tokens``."""
        length = source.randint(1, sampling.max_tokens + 2)
        if self._endless or sampling.ignore_eos:
            length = sampling.max_tokens + 1
        if sampling.min_tokens:
            length = max(length, sampling.min_tokens + 1)  # as where EOS is a token
        ids: list[int] = []
        for _ in range(min(length, sampling.max_tokens)):
            ids.append(_next_word(source, sampling, ids))
        return ids, length <= sampling.max_tokens


def _next_word(source: random.Random, sampling: Sampling, before: Sequence[int]) -> int:
    bias = sampling.logit_bias or {}
    if not bias and not sampling.frequency_penalty and not sampling.presence_penalty:
        return source.randrange(len(WORDS))
    logits = [
        bias.get(token, 0.0)
        - sampling.frequency_penalty * before.count(token)
        - sampling.presence_penalty * (token in before)
        for token in range(len(WORDS))
    ]
    if sampling.temperature == 0:
        return max(range(len(WORDS)), key=lambda token: logits[token])
    highest = max(logits)
    weights = [math.exp((logit - highest) / sampling.temperature) for logit in logits]
    weights = [weight if weight >= sampling.min_p else 0.0 for weight in weights]
    return source.choices(range(len(WORDS)), weights)[0]


def _characters(source: random.Random, sampling: Sampling) -> tuple[list[int], bool]:
    """The characters of a JSON text that fits the schema, and whether it ended before ``max_tokens``."""
    assert sampling.json_schema is not None
    instance = random_instance(sampling.json_schema, source)
    text = json.dumps(instance, ensure_ascii=False)
    ids = [FIRST_CHARACTER + ord(character) for character in text]
    return ids[: sampling.max_tokens], len(ids) <= sampling.max_tokens
