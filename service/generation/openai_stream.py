"""Answers as server-sent chunks of OpenAI's completions and chat completions."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from service.generation.events import (
    KEEP_ALIVE_S,
    CandidateProgress,
    Quiet,
    answer_events,
)
from service.generation.native_response import generate_answer
from service.generation.openai_response import listed_tokens, openai_usage, vbon_report
from service.generation.token_texts import TokenPlan
from service.generation.tool_calls import told_answer
from service.http.sse import comment, event
from service.runtime.prompt import PromptResult
from service.schemas import GenerateAnswer
from service.schemas.openai_requests import ChatRequest, CompletionRequest, StreamOptions
from service.schemas.openai_responses import AssistantMessage
from service.strategies import Admitted, ScoredCandidate
from vbon.engine import Candidate, Partial

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
    use = body.tool_use if isinstance(body, ChatRequest) else None
    progress = CandidateProgress(plan.most_candidates)
    sent_s = time.monotonic()
    async with aclosing(answer_events(plan)) as events:
        async for happened in events:
            progress.update(happened)
            if isinstance(happened, Admitted):
                writer.begin(happened)
            elif isinstance(happened, Partial) and use is None:
                for message in writer.grow(happened.index, happened):
                    yield message
            elif isinstance(happened, Partial):
                # Calls are sent whole, so tokens only show that the connection is still needed.
                if time.monotonic() - sent_s >= KEEP_ALIVE_S:
                    sent_s = time.monotonic()
                    yield comment("still at work")
            elif isinstance(happened, ScoredCandidate | Quiet):
                counted = f"{progress.scored}/{progress.total} candidates scored"
                yield comment(counted if writer.reranks else "still at work")
            elif isinstance(happened, PromptResult):
                answer = generate_answer(plan, happened)
                writer.complete(answer)
                reasons = []
                for index, scored in enumerate(happened.outcome.returned):
                    told = await told_answer(plan, use, scored.candidate, index)
                    reasons.append(told.finish_reason)
                    for message in writer.whole(index, scored.candidate, told.message):
                        yield message
                for message in writer.end(answer, happened, reasons):
                    yield message


@dataclass(slots=True)
class _Sent:
    """The part of one answer that has been sent."""

    text: str = ""
    tokens: int = 0
    started: bool = False


class _ChunkWriter:
    """Composes the chunks of the answers to one prompt."""

    def __init__(self, plan: TokenPlan, body: CompletionRequest | ChatRequest) -> None:
        self._plan = plan
        self.prompt_tokens, self.reranks = 0, False
        self._chat = isinstance(body, ChatRequest)
        self._options: StreamOptions = body.options
        self._sent = [_Sent() for _ in range(plan.answers)]
        self._common: dict[str, Any] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{plan.request_id}",
            "object": "chat.completion.chunk" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    def begin(self, admitted: Admitted) -> None:
        """Take note of the model that answers, which is known before the first chunk."""
        self.prompt_tokens, self.reranks = admitted.prompt_tokens, admitted.reranks
        self._common["system_fingerprint"] = admitted.policy.revision

    def complete(self, answer: GenerateAnswer) -> None:
        """Take note of an answer that is complete, with all the revisions that had a part in it."""
        self._common["system_fingerprint"] = answer.policy.fingerprint

    def grow(self, index: int, answer: Partial | Candidate) -> list[str]:
        """The chunks for what is new of an answer; none while new tokens do not complete a character."""
        sent, logprobs = self._sent[index], answer.token_logprobs
        new = answer.text[len(sent.text) :]
        last = isinstance(answer, Candidate)
        if not new and not (last and len(answer.token_ids) > sent.tokens and logprobs is not None):
            return []
        messages = self._start(index)
        part = None if logprobs is None else logprobs[sent.tokens :]
        listed = listed_tokens(self._plan, (0, index), part, chat=self._chat)
        sent.text, sent.tokens = answer.text, len(answer.token_ids)
        messages.append(
            self._chunk(index, {"content": new} if self._chat else new, logprobs=listed)
        )
        return messages

    def whole(self, index: int, candidate: Candidate, message: AssistantMessage) -> list[str]:
        """The chunks for the rest of an answer that has ended; calls of tools come whole."""
        if not message.tool_calls:
            return self.grow(index, candidate)
        messages = self._start(index)
        if message.content:
            messages.append(self._chunk(index, {"content": message.content}))
        calls = [
            {"index": number, **call.model_dump()} for number, call in enumerate(message.tool_calls)
        ]
        return [*messages, self._chunk(index, {"tool_calls": calls})]

    def end(
        self, answer: GenerateAnswer, result: PromptResult, reasons: Sequence[str]
    ) -> list[str]:
        """The last chunks: each answer's finish reason, the report, the usage if asked, and ``[DONE]``."""
        messages = []
        returned = result.outcome.returned
        for index, scored in enumerate(returned):
            self._sent[index].tokens = len(scored.candidate.token_ids)
            messages += self._start(index)
            report = {}
            if index == len(returned) - 1:
                report["vbon"] = vbon_report(answer, result).model_dump(mode="json")
            messages.append(
                self._chunk(
                    index,
                    {} if self._chat else "",
                    finish_reason=reasons[index],
                    **report,
                )
            )
        if self._options.include_usage:
            usage = openai_usage([answer]).model_dump()
            messages.append(event(None, {**self._common, "choices": [], "usage": usage}))
        return [*messages, DONE]

    def _start(self, index: int) -> list[str]:
        """The first chunk of a chat's answer, if it has not been sent."""
        sent = self._sent[index]
        if sent.started or not self._chat:
            return []
        sent.started = True
        return [self._chunk(index, {"role": "assistant", "content": ""})]

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any] | str,
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        **extra: Any,
    ) -> str:
        content = {"delta": delta} if self._chat else {"text": delta}
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        usage: dict[str, Any] = {}
        if self._options.continuous_usage_stats:
            completion = sum(sent.tokens for sent in self._sent)
            counts = (self.prompt_tokens, completion, self.prompt_tokens + completion)
            names = ("prompt_tokens", "completion_tokens", "total_tokens")
            usage["usage"] = dict(zip(names, counts, strict=True))
        elif self._options.include_usage:
            usage["usage"] = None
        return event(None, {**self._common, "choices": [choice], **usage, **extra})
