"""Texts and log-probabilities of single tokens, as OpenAI answers carry them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from service.generation.plan import Plan
from service.runtime.prompt import PromptResult
from service.strategies import UNOBSERVED, Observer, ScoredCandidate
from vbon.engine import Candidate, Engine, Partial
from vbon.errors import RequestTimeoutError
from vbon.prompts import Prompt

# An engine decodes a token beside those before it; further back they make no difference.
_CONTEXT_TOKENS = 16


@dataclass(frozen=True)
class TokenPlan(Plan):
    """A plan that finds the texts of tokens too, where log-probabilities are asked for.

    Attributes:
        tokens: of each answer, by the index of its prompt.
    """

    tokens: dict[int, Tokens] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The same plan as one of these."""
        return cls(*(getattr(plan, one.name) for one in fields(plan)))

    async def answer_prompt(self, index: int, observer: Observer = UNOBSERVED) -> PromptResult:
        """Answer one of the prompts. The engine is asked for texts only while this is under way.

        Raises:
            RequestTimeoutError: the answer was there in time and the texts were not.
            VbonError: as :meth:`Runtime.answer`.
        """
        if not self.request.logprobs:
            return await Plan.answer_prompt(self, index, observer)
        engine = self.runtime.policies[self.mode.policy]
        tokens = self.tokens[index] = Tokens(engine, self.prompts[index])
        limit, named = self.runtime.settings.limits.time_limit(self.request.timeout_s)
        ends_s = asyncio.get_running_loop().time() + limit
        finder = _Finder(tokens, observer)
        # The answer has this limit itself; a second one could cut into how it ends by the first.
        async with self.runtime.in_flight.track(None, "", (engine,)):
            try:
                # Nothing is waited for before this takes its engine, so it is the one above.
                answer = await Plan.answer_prompt(
                    self, index, finder if observer.follows_tokens else observer
                )
                async with asyncio.timeout_at(ends_s):
                    await finder.finish()
                    await tokens.find(answer.outcome.selected.candidate.token_ids)
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"no texts of the answer's tokens within {limit:g} s ({named})"
                ) from error
            finally:
                await finder.stop()
        return answer


class _Finder(Observer):
    """Tells of a growing sample once the texts of its tokens are known."""

    follows_tokens: ClassVar[bool] = True

    def __init__(self, tokens: Tokens, observer: Observer) -> None:
        self._tokens, self._observer = tokens, observer
        self._latest: Partial | None = None
        self._finding: asyncio.Task[None] | None = None

    def admitted(self, prompt_tokens: int) -> None:
        self._observer.admitted(prompt_tokens)

    def grown(self, partial: Partial) -> None:
        self._latest = partial
        if self._finding is None:
            self._finding = asyncio.create_task(self._find())

    def finished(self, candidate: Candidate) -> None:
        self._observer.finished(candidate)

    def scored(self, candidate: ScoredCandidate) -> None:
        self._observer.scored(candidate)

    async def finish(self) -> None:
        """Until all is told, or what was raised meanwhile."""
        if self._finding is not None:
            await self._finding

    async def stop(self) -> None:
        """Ask the engine no more."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)

    async def _find(self) -> None:
        while (partial := self._latest) is not None:
            self._latest = None
            await self._tokens.find(partial.token_ids)
            self._observer.grown(partial)
        self._finding = None


class Tokens:
    """The tokens of one answer as OpenAI lists them, with their texts and log-probabilities.

    Parts of an answer are listed in order, and offsets count on from part to part.
    """

    def __init__(self, engine: Engine, prompt: Prompt) -> None:
        self._engine, self._prompt = engine, prompt
        self._before: list[int] | None = None
        self._texts: list[str] = []
        self._listed, self._offset = 0, 0

    async def find(self, token_ids: Sequence[int]) -> None:
        """Ask the engine for the texts of an answer so far. Not twice at once."""
        if self._before is None:
            self._before = (await self._engine.encode(self._prompt))[-_CONTEXT_TOKENS:]
        for token in token_ids[len(self._texts) :]:
            self._texts.append(await self._engine.decode(self._before, [token]))
            self._before = [*self._before, token][-_CONTEXT_TOKENS:]

    def as_completion(self, logprobs: Sequence[float]) -> dict[str, Any]:
        """``/v1/completions``, the tokens that come next: as many as have a log-probability here."""
        texts = self._next(len(logprobs))
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": list(logprobs),
            "top_logprobs": None,
            "text_offset": offsets,
        }

    def as_chat(self, logprobs: Sequence[float]) -> dict[str, Any]:
        """The same for ``/v1/chat/completions``."""
        pairs = zip(self._next(len(logprobs)), logprobs, strict=True)
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in pairs
        ]
        return {"content": content, "refusal": None}

    def _next(self, count: int) -> list[str]:
        begin, self._listed = self._listed, self._listed + count
        return self._texts[begin : self._listed]
