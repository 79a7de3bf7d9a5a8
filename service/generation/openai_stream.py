"""Answers as server-sent chunks of OpenAI's completions and chat completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from service.generation.events import Admitted, CandidateProgress, Quiet, answer_events
from service.generation.native_response import generate_answer
from service.generation.openai_response import listed_tokens, openai_usage, vbon_report
from service.generation.token_texts import TokenPlan
from service.http.sse import comment, event
from service.runtime.prompt import PromptResult
from service.schemas import GenerateAnswer
from service.schemas.openai_requests import ChatRequest, CompletionRequest, StreamOptions
from service.strategies import ScoredCandidate
from vbon.engine import Partial

DONE = event(None, "[DONE]")


async def chunks(
    plan: TokenPlan, body: CompletionRequest | ChatRequest
) -> AsyncGenerator[str, None]:
    """Yield the answer as chunks. Single-sample modes send tokens as they are decoded.

    Other modes cannot send a token before they have chosen. Until then they send comments with their
    progress, and then the whole answer in one chunk.

    Raises:
        VbonError: as a request without ``stream``.
    """
    writer = _ChunkWriter(plan, body)
    progress = CandidateProgress(plan.most_candidates)
    async with aclosing(answer_events(plan)) as events:
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
            elif isinstance(happened, PromptResult):
                chosen = happened.outcome.selected.candidate
                for message in writer.grow(
                    chosen.text, chosen.token_ids, chosen.token_logprobs, last=True
                ):
                    yield message
                for message in writer.end(generate_answer(plan, happened)):
                    yield message


class _ChunkWriter:
    """Composes the chunks of one answer."""

    def __init__(self, plan: TokenPlan, body: CompletionRequest | ChatRequest) -> None:
        self._plan = plan
        self.prompt_tokens = 0
        self._chat = isinstance(body, ChatRequest)
        self._options: StreamOptions = body.options
        self._text, self._count = "", 0
        self._started = False
        self._common = {
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
        """The chunks for the text that is new; none while the new tokens do not complete a character."""
        new = text[len(self._text) :]
        if not new and not (last and len(token_ids) > self._count and logprobs is not None):
            return []
        messages = []
        if self._chat and not self._started:
            messages.append(self._chunk({"role": "assistant", "content": ""}))
        self._started = True
        part = None if logprobs is None else logprobs[self._count :]
        listed = listed_tokens(self._plan, 0, part, chat=self._chat)
        self._text, self._count = text, len(token_ids)
        messages.append(self._chunk({"content": new} if self._chat else new, logprobs=listed))
        return messages

    def end(self, answer: GenerateAnswer) -> list[str]:
        """The last chunks: the finish reason with the report, the usage if requested, and ``[DONE]``."""
        self._count = answer.usage.returned_tokens
        messages = []
        if self._chat and not self._started:
            messages.append(self._chunk({"role": "assistant", "content": ""}))
        messages.append(
            self._chunk(
                {} if self._chat else "",
                finish_reason=answer.finish_reason,
                vbon=vbon_report(answer).model_dump(mode="json"),
            )
        )
        if self._options.include_usage:
            usage = openai_usage([answer]).model_dump()
            messages.append(event(None, {**self._common, "choices": [], "usage": usage}))
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
        return event(None, {**self._common, "choices": [choice], **usage, **extra})
