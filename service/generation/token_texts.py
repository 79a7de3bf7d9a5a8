"""The text and log-probability of every token, for OpenAI's ``logprobs``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from service.generation.plan import Plan
from service.runtime.prompt import PromptResult
from service.runtime.routing import Route
from service.strategies import UNOBSERVED, Admitted, Observer, ScoredCandidate
from vbon.engine import Candidate, Engine, Partial
from vbon.errors import RequestTimeoutError
from vbon.prompts import Prompt

# A token is decoded together with the tokens before it; earlier ones than these do not change its text.
_CONTEXT_TOKENS = 16


@dataclass(frozen=True)
class TokenPlan(Plan):
    """A plan that also finds the text of every token if log-probabilities are requested.

    Attributes:
        tokens: each answer's tokens, by the index of its prompt and its own among the prompt's answers.
    """

    tokens: dict[tuple[int, int], Tokens] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The same plan as a :class:`TokenPlan`."""
        return cls(*(getattr(plan, one.name) for one in fields(plan)))

    async def answer_prompt(
        self, index: int, observer: Observer = UNOBSERVED, route: Route | None = None
    ) -> PromptResult:
        """Answer the prompt at ``index`` and find its tokens' texts. Uses the engine only while it runs.

        Raises:
            RequestTimeoutError: the answer was ready in time and the texts were not.
            VbonError: as :meth:`Runtime.answer`.
        """
        if not self.request.logprobs:
            return await Plan.answer_prompt(self, index, observer, route)
        route = route or self.route(index)
        engine, _ = self.runtime.check_available(self.mode if route is None else route.mode)
        listed = [Tokens(engine, self.prompts[index]) for _ in range(self.answers)]
        self.tokens.update({(index, answer): tokens for answer, tokens in enumerate(listed)})
        limit_s, limit_name = self.runtime.settings.limits.time_limit(self.request.timeout_s)
        ends_s = asyncio.get_running_loop().time() + limit_s
        finder = _TextFinder(listed, observer)
        # Runtime.answer enforces the limit on the answer itself; a second timeout around it could interrupt
        # its clean-up.
        async with self.runtime.in_flight.track(None, "", (engine,)):
            try:
                # Runtime.answer takes its engine before it first awaits, so it uses the engine above.
                answer = await Plan.answer_prompt(
                    self, index, finder if observer.follows_tokens else observer, route
                )
                async with asyncio.timeout_at(ends_s):
                    await finder.finish()
                    for tokens, returned in zip(listed, answer.outcome.returned, strict=True):
                        await tokens.find(returned.candidate.token_ids)
            except TimeoutError as error:
                raise RequestTimeoutError(
                    f"could not decode the answer's tokens within {limit_s:g} s ({limit_name})"
                ) from error
            finally:
                await finder.stop()
        return answer


class _TextFinder(Observer):
    """Passes events on; holds a growing sample back until the texts of its tokens are known.

    A growing sample is an answer, whose index is its own.
    """

    follows_tokens: ClassVar[bool] = True

    def __init__(self, tokens: Sequence[Tokens], observer: Observer) -> None:
        self._tokens, self._observer = tokens, observer
        self._latest: dict[int, Partial] = {}
        self._finding: asyncio.Task[None] | None = None

    def admitted(self, admitted: Admitted) -> None:
        self._observer.admitted(admitted)

    def grown(self, partial: Partial) -> None:
        self.has_tokens = True
        self._latest[partial.index] = partial
        if self._finding is None:
            self._finding = asyncio.create_task(self._find())

    def finished(self, candidate: Candidate) -> None:
        self.has_candidates = True
        self._observer.finished(candidate)

    def scored(self, candidate: ScoredCandidate) -> None:
        self.has_candidates = True
        self._observer.scored(candidate)

    async def finish(self) -> None:
        """Wait until every sample has been passed on; raises the error that stopped it, if any."""
        if self._finding is not None:
            await self._finding

    async def stop(self) -> None:
        """Stop using the engine."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)

    async def _find(self) -> None:
        while self._latest:
            partial = self._latest.pop(next(iter(self._latest)))
            await self._tokens[partial.index].find(partial.token_ids)
            self._observer.grown(partial)
        self._finding = None


class Tokens:
    """The tokens of one answer, listed as OpenAI does, with their texts and log-probabilities.

    An answer may be listed in several parts, in order; text offsets continue from part to part.
    """

    def __init__(self, engine: Engine, prompt: Prompt) -> None:
        self._engine, self._prompt = engine, prompt
        self._before: list[int] | None = None
        # The tokens after these, and their text: decoded together, so that the single texts add up to it.
        self._window: list[int] = []
        self._known = ""
        self._texts: list[str] = []
        self._listed, self._offset = 0, 0

    async def find(self, token_ids: Sequence[int]) -> None:
        """Find the texts of the tokens that are new in ``token_ids``. Must not run twice at once."""
        if self._before is None:
            self._before = (await self._engine.encode(self._prompt))[-_CONTEXT_TOKENS:]
        for token in token_ids[len(self._texts) :]:
            self._window.append(token)
            text = await self._engine.decode(self._before, self._window)
            self._texts.append(text[len(self._known) :])
            self._known = text
            # A token without a text may be the beginning of a character, or of bytes that are none.
            whole = self._texts[-1] or len(self._window) > 4 * _CONTEXT_TOKENS
            if whole and len(self._window) >= _CONTEXT_TOKENS:
                self._before = [*self._before, *self._window][-_CONTEXT_TOKENS:]
                self._window, self._known = [], ""

    def as_completion(self, logprobs: Sequence[float]) -> dict[str, Any]:
        """The next tokens, one per log-probability, as ``/v1/completions`` lists them."""
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
        """The next tokens, one per log-probability, as ``/v1/chat/completions`` lists them."""
        pairs = zip(self._next(len(logprobs)), logprobs, strict=True)
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in pairs
        ]
        return {"content": content, "refusal": None}

    def _next(self, count: int) -> list[str]:
        begin, self._listed = self._listed, self._listed + count
        return self._texts[begin : self._listed]
