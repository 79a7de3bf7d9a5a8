"""Our answers in OpenAI's shapes, whole or in chunks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from service.generation import Plan
from service.live import Admitted, Progress, Quiet, events_of
from service.runtime import Answer
from service.schemas import BatchAnswer, GenerateAnswer
from service.schemas.openai_requests import ChatRequest, CompletionRequest, StreamOptions
from service.schemas.openai_responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    OpenAiUsage,
    VbonReport,
)
from service.sse import comment, event
from service.strategies import UNOBSERVED, Observer, ScoredCandidate
from vbon.engine import Candidate, Engine, Partial
from vbon.errors import RequestTimeoutError
from vbon.prompts import Prompt

DONE = event(None, "[DONE]")
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

    async def answer(self, index: int, observer: Observer = UNOBSERVED) -> Answer:
        """Answer one of the prompts. The engine is asked for texts only while this is under way.

        Raises:
            RequestTimeoutError: the answer was there in time and the texts were not.
            VbonError: as :meth:`Runtime.answer`.
        """
        if not self.request.logprobs:
            return await Plan.answer(self, index, observer)
        engine = self.runtime.policies[self.mode.policy]
        tokens = self.tokens[index] = Tokens(engine, self.prompts[index])
        limit, named = self.runtime.settings.limits.time_limit(self.request.timeout_s)
        ends_s = asyncio.get_running_loop().time() + limit
        finder = _Finder(tokens, observer)
        # The answer has this limit itself; a second one could cut into how it ends by the first.
        async with self.runtime.flights.under_way(None, "", (engine,)):
            try:
                # Nothing is waited for before this takes its engine, so it is the one above.
                answer = await Plan.answer(
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


def completion(
    plan: TokenPlan, body: CompletionRequest, found: GenerateAnswer | BatchAnswer
) -> Completion:
    """Answer of ``/v1/completions``."""
    answers = _answers(found)
    reports = [_report(answer) for answer in answers]
    return Completion(
        id=f"cmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answers[0].policy.revision,
        usage=_usage(answers),
        vbon=reports if isinstance(found, BatchAnswer) else reports[0],
        choices=[
            CompletionChoice(
                index=i,
                text=answer.text,
                logprobs=_listed(plan, i, answer.token_logprobs, chat=False),
                finish_reason=answer.finish_reason,
            )
            for i, answer in enumerate(answers)
        ],
    )


def chat_completion(
    plan: TokenPlan, body: ChatRequest, found: GenerateAnswer | BatchAnswer
) -> ChatCompletion:
    """Answer of ``/v1/chat/completions``."""
    (answer,) = _answers(found)
    choice = ChatChoice(
        index=0,
        message=AssistantMessage(content=answer.text),
        logprobs=_listed(plan, 0, answer.token_logprobs, chat=True),
        finish_reason=answer.finish_reason,
    )
    return ChatCompletion(
        id=f"chatcmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answer.policy.revision,
        usage=_usage([answer]),
        vbon=_report(answer),
        choices=[choice],
    )


def _listed(
    plan: TokenPlan, index: int, logprobs: Sequence[float] | None, *, chat: bool
) -> dict[str, Any] | None:
    """The next tokens of an answer; ``None`` where no log-probabilities were asked for."""
    tokens = plan.tokens.get(index)
    if tokens is None or logprobs is None:
        return None
    return tokens.as_chat(logprobs) if chat else tokens.as_completion(logprobs)


def _answers(found: GenerateAnswer | BatchAnswer) -> list[GenerateAnswer]:
    return found.answers if isinstance(found, BatchAnswer) else [found]


def _usage(answers: Sequence[GenerateAnswer]) -> OpenAiUsage:
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    returned = sum(answer.usage.returned_tokens for answer in answers)
    return OpenAiUsage(
        prompt_tokens=prompt, completion_tokens=returned, total_tokens=prompt + returned
    )


def _report(answer: GenerateAnswer) -> VbonReport:
    return VbonReport(
        mode=answer.mode,
        policy=answer.policy,
        reward=answer.reward,
        selected_index=answer.selected_index,
        unscored_candidates=answer.unscored_candidates,
        generated_tokens=answer.usage.generated_tokens,
        returned_tokens=answer.usage.returned_tokens,
        strategy=answer.strategy,
        details=answer.details,
        candidates=answer.candidates,
        sampling=answer.sampling,
        timings_ms=answer.timings_ms,
        reward_model=answer.reward_model,
    )


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


async def chunks(
    plan: TokenPlan, body: CompletionRequest | ChatRequest
) -> AsyncGenerator[str, None]:
    """The answer as a stream: tokens as they come from modes of one sample.

    Other modes have no token to show before they have chosen; until then comments tell how far they
    are, and then the answer comes in one piece.

    Raises:
        VbonError: as a request that is not streamed.
    """
    writer = _Writer(plan, body)
    progress = Progress(plan.mode.strategy.most_candidates(plan.num_samples))
    async with aclosing(events_of(plan)) as events:
        async for happened in events:
            progress.update(happened)
            if isinstance(happened, Admitted):
                writer.prompt_tokens = happened.prompt_tokens
            elif isinstance(happened, Partial):
                for message in writer.grow(
                    happened.text, happened.token_ids, happened.token_logprobs
                ):
                    yield message
            elif isinstance(happened, ScoredCandidate | Quiet):
                counted = f"{progress.scored}/{progress.total} candidates scored"
                yield comment(counted if plan.mode.strategy.reranks else "still at work")
            elif isinstance(happened, Answer):
                chosen = happened.outcome.selected.candidate
                for message in writer.grow(
                    chosen.text, chosen.token_ids, chosen.token_logprobs, last=True
                ):
                    yield message
                for message in writer.end(plan.to_wire(happened)):
                    yield message


class _Writer:
    """Writes the chunks of one answer."""

    def __init__(self, plan: TokenPlan, body: CompletionRequest | ChatRequest) -> None:
        self._plan = plan
        self.prompt_tokens = 0
        self._chat = isinstance(body, ChatRequest)
        self._options: StreamOptions = body.options
        self._text, self._count = "", 0
        self._begun = False
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{plan.request_id}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": plan.runtime.policies[plan.mode.policy].info.revision,
        }

    def grow(
        self,
        text: str,
        token_ids: Sequence[int],
        logprobs: Sequence[float] | None,
        *,
        last: bool = False,
    ) -> list[str]:
        """Chunks for what is new; none while the new tokens have no text of their own yet."""
        new = text[len(self._text) :]
        if not new and not (last and len(token_ids) > self._count and logprobs is not None):
            return []
        messages = []
        if self._chat and not self._begun:
            messages.append(self._chunk({"role": "assistant", "content": ""}))
        self._begun = True
        part = None if logprobs is None else logprobs[self._count :]
        listed = _listed(self._plan, 0, part, chat=self._chat)
        self._text, self._count = text, len(token_ids)
        messages.append(self._chunk({"content": new} if self._chat else new, logprobs=listed))
        return messages

    def end(self, answer: GenerateAnswer) -> list[str]:
        """The finish reason with what this server adds, the usage if asked for, and the end."""
        self._count = answer.usage.returned_tokens
        messages = []
        if self._chat and not self._begun:
            messages.append(self._chunk({"role": "assistant", "content": ""}))
        messages.append(
            self._chunk(
                {} if self._chat else "",
                finish_reason=answer.finish_reason,
                vbon=_report(answer).model_dump(mode="json"),
            )
        )
        if self._options.include_usage:
            usage = _usage([answer]).model_dump()
            messages.append(event(None, {**self._head, "choices": [], "usage": usage}))
        return [*messages, DONE]

    def _chunk(
        self,
        delta: dict[str, str] | str,
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        **extra: Any,
    ) -> str:
        content = {"delta": delta} if self._chat else {"text": delta}
        choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        usage: dict[str, Any] = {}
        if self._options.continuous_usage_stats:
            total = self.prompt_tokens + self._count
            counts = (self.prompt_tokens, self._count, total)
            names = ("prompt_tokens", "completion_tokens", "total_tokens")
            usage["usage"] = dict(zip(names, counts, strict=True))
        elif self._options.include_usage:
            usage["usage"] = None
        return event(None, {**self._head, "choices": [choice], **usage, **extra})
