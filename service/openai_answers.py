"""Our answers in OpenAI's shapes, whole or in chunks."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from bestofn.engine import Engine, Partial
from service.generation import Plan
from service.live import Admitted, Progress, Quiet, events_of
from service.runtime import Answer
from service.schemas import BatchAnswer, GenerateAnswer
from service.schemas.openai_requests import ChatRequest, CompletionRequest, StreamOptions
from service.schemas.openai_responses import (
    AssistantMessage,
    BestOfNReport,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    OpenAiUsage,
)
from service.sse import comment, event
from service.strategies import ScoredCandidate

DONE = event(None, "[DONE]")
# An engine decodes a token beside those before it; further back they make no difference.
_CONTEXT_TOKENS = 16


async def completion(
    plan: Plan, body: CompletionRequest, found: GenerateAnswer | BatchAnswer
) -> Completion:
    """Answer of ``/v1/completions``."""
    answers = _answers(found)
    choices = []
    for i, answer in enumerate(answers):
        tokens = Tokens(plan, i)
        choices.append(
            CompletionChoice(
                index=i,
                text=answer.text,
                logprobs=await tokens.as_completion(answer.token_ids, answer.token_logprobs),
                finish_reason=answer.finish_reason,
            )
        )
    reports = [_report(answer) for answer in answers]
    return Completion(
        id=f"cmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answers[0].policy.revision,
        usage=_usage(answers),
        bestofn=reports if isinstance(found, BatchAnswer) else reports[0],
        choices=choices,
    )


async def chat_completion(
    plan: Plan, body: ChatRequest, found: GenerateAnswer | BatchAnswer
) -> ChatCompletion:
    """Answer of ``/v1/chat/completions``."""
    (answer,) = _answers(found)
    choice = ChatChoice(
        index=0,
        message=AssistantMessage(content=answer.text),
        logprobs=await Tokens(plan, 0).as_chat(answer.token_ids, answer.token_logprobs),
        finish_reason=answer.finish_reason,
    )
    return ChatCompletion(
        id=f"chatcmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answer.policy.revision,
        usage=_usage([answer]),
        bestofn=_report(answer),
        choices=[choice],
    )


def _answers(found: GenerateAnswer | BatchAnswer) -> list[GenerateAnswer]:
    return found.answers if isinstance(found, BatchAnswer) else [found]


def _usage(answers: Sequence[GenerateAnswer]) -> OpenAiUsage:
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    returned = sum(answer.usage.returned_tokens for answer in answers)
    return OpenAiUsage(
        prompt_tokens=prompt, completion_tokens=returned, total_tokens=prompt + returned
    )


def _report(answer: GenerateAnswer) -> BestOfNReport:
    return BestOfNReport(
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

    Parts of an answer are given in order, and offsets count on from part to part.
    """

    def __init__(self, plan: Plan, index: int) -> None:
        self._engine: Engine = plan.runtime.policies[plan.mode.policy]
        self._prompt = plan.prompts[index]
        self._before: list[int] | None = None
        self._offset = 0

    async def as_completion(
        self, token_ids: Sequence[int] | None, logprobs: Sequence[float] | None
    ) -> dict[str, Any] | None:
        """``/v1/completions``; ``None`` where no log-probabilities were asked for."""
        if token_ids is None or logprobs is None:
            return None
        texts = await self._texts(token_ids)
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

    async def as_chat(
        self, token_ids: Sequence[int] | None, logprobs: Sequence[float] | None
    ) -> dict[str, Any] | None:
        """``/v1/chat/completions``; ``None`` where no log-probabilities were asked for."""
        if token_ids is None or logprobs is None:
            return None
        pairs = zip(await self._texts(token_ids), logprobs, strict=True)
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in pairs
        ]
        return {"content": content, "refusal": None}

    async def _texts(self, token_ids: Sequence[int]) -> list[str]:
        if self._before is None:
            self._before = (await self._engine.encode(self._prompt))[-_CONTEXT_TOKENS:]
        texts = []
        for token in token_ids:
            texts.append(await self._engine.decode(self._before, [token]))
            self._before = [*self._before, token][-_CONTEXT_TOKENS:]
        return texts


async def chunks(plan: Plan, body: CompletionRequest | ChatRequest) -> AsyncGenerator[str, None]:
    """The answer as a stream: tokens as they come from modes of one sample.

    Other modes have no token to show before they have chosen; until then comments tell how far they
    are, and then the answer comes in one piece.

    Raises:
        BestOfNError: as a request that is not streamed.
    """
    writer = _Writer(plan, body)
    progress = Progress(plan.mode.strategy.most_candidates(plan.num_samples))
    async with aclosing(events_of(plan)) as events:
        async for happened in events:
            progress.update(happened)
            if isinstance(happened, Admitted):
                writer.prompt_tokens = happened.prompt_tokens
            elif isinstance(happened, Partial):
                for message in await writer.grow(
                    happened.text, happened.token_ids, happened.token_logprobs
                ):
                    yield message
            elif isinstance(happened, ScoredCandidate | Quiet):
                counted = f"{progress.scored}/{progress.total} candidates scored"
                yield comment(counted if plan.mode.strategy.reranks else "still at work")
            elif isinstance(happened, Answer):
                chosen = happened.outcome.selected.candidate
                for message in await writer.grow(
                    chosen.text, chosen.token_ids, chosen.token_logprobs, last=True
                ):
                    yield message
                for message in writer.end(plan.to_wire(happened)):
                    yield message


class _Writer:
    """Writes the chunks of one answer."""

    def __init__(self, plan: Plan, body: CompletionRequest | ChatRequest) -> None:
        self.prompt_tokens = 0
        self._chat = isinstance(body, ChatRequest)
        self._options: StreamOptions = body.options
        self._tokens = Tokens(plan, 0)
        self._text, self._count = "", 0
        self._begun = False
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{plan.request_id}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": plan.runtime.policies[plan.mode.policy].info.revision,
        }

    async def grow(
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
        listed = None
        if logprobs is not None:
            listing = self._tokens.as_chat if self._chat else self._tokens.as_completion
            listed = await listing(token_ids[self._count :], logprobs[self._count :])
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
                bestofn=_report(answer).model_dump(mode="json"),
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
