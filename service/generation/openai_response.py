"""Answers in OpenAI's shapes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from service.generation.token_texts import TokenPlan
from service.schemas import BatchAnswer, GenerateAnswer
from service.schemas.openai_requests import ChatRequest, CompletionRequest
from service.schemas.openai_responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    OpenAiUsage,
    VbonReport,
)


def completion(
    plan: TokenPlan, body: CompletionRequest, found: GenerateAnswer | BatchAnswer
) -> Completion:
    """The response of ``/v1/completions``."""
    answers = _answers(found)
    reports = [vbon_report(answer) for answer in answers]
    return Completion(
        id=f"cmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answers[0].policy.revision,
        usage=openai_usage(answers),
        vbon=reports if isinstance(found, BatchAnswer) else reports[0],
        choices=[
            CompletionChoice(
                index=i,
                text=answer.text,
                logprobs=listed_tokens(plan, i, answer.token_logprobs, chat=False),
                finish_reason=answer.finish_reason,
            )
            for i, answer in enumerate(answers)
        ],
    )


def chat_completion(
    plan: TokenPlan, body: ChatRequest, found: GenerateAnswer | BatchAnswer
) -> ChatCompletion:
    """The response of ``/v1/chat/completions``."""
    (answer,) = _answers(found)
    choice = ChatChoice(
        index=0,
        message=AssistantMessage(content=answer.text),
        logprobs=listed_tokens(plan, 0, answer.token_logprobs, chat=True),
        finish_reason=answer.finish_reason,
    )
    return ChatCompletion(
        id=f"chatcmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answer.policy.revision,
        usage=openai_usage([answer]),
        vbon=vbon_report(answer),
        choices=[choice],
    )


def listed_tokens(
    plan: TokenPlan, index: int, logprobs: Sequence[float] | None, *, chat: bool
) -> dict[str, Any] | None:
    """The answer's next tokens as OpenAI lists them; ``None`` if no log-probabilities are requested.

    Args:
        index: the index of the answer's prompt.
    """
    tokens = plan.tokens.get(index)
    if tokens is None or logprobs is None:
        return None
    return tokens.as_chat(logprobs) if chat else tokens.as_completion(logprobs)


def _answers(found: GenerateAnswer | BatchAnswer) -> list[GenerateAnswer]:
    return found.answers if isinstance(found, BatchAnswer) else [found]


def openai_usage(answers: Sequence[GenerateAnswer]) -> OpenAiUsage:
    """Token counts over several answers."""
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    returned = sum(answer.usage.returned_tokens for answer in answers)
    return OpenAiUsage(
        prompt_tokens=prompt, completion_tokens=returned, total_tokens=prompt + returned
    )


def vbon_report(answer: GenerateAnswer) -> VbonReport:
    """This server's addition to an answer in OpenAI's shape."""
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
        sampling_differences=answer.sampling_differences,
        timings_ms=answer.timings_ms,
        reward_model=answer.reward_model,
    )
