"""Answers in OpenAI's shapes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from service.generation.native_response import generate_answer
from service.generation.token_texts import TokenPlan
from service.generation.tool_calls import told_answer
from service.runtime.prompt import PromptResult
from service.schemas import GenerateAnswer
from service.schemas.openai_requests import ChatRequest, CompletionRequest
from service.schemas.openai_responses import (
    AnswerReport,
    ChatChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    OpenAiUsage,
    VbonReport,
)
from vbon.concurrency import all_or_first_error
from vbon.engine import Candidate


async def answer_all(plan: TokenPlan) -> list[PromptResult]:
    """Answer every prompt of a plan. If one fails, the whole request fails with its error."""
    return await all_or_first_error(plan.answer_prompt(i) for i in range(len(plan.prompts)))


async def completion(
    plan: TokenPlan, body: CompletionRequest, results: Sequence[PromptResult]
) -> Completion:
    """The response of ``/v1/completions``."""
    answers = [generate_answer(plan, result) for result in results]
    reports = [vbon_report(answer, result) for answer, result in zip(answers, results, strict=True)]
    return Completion(
        id=f"cmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answers[0].policy.fingerprint,
        usage=openai_usage(answers),
        vbon=reports[0] if plan.request.prompts is None else reports,
        choices=[
            CompletionChoice(
                index=prompt * plan.answers + answer,
                text=candidate.text,
                logprobs=listed_tokens(
                    plan, (prompt, answer), candidate.token_logprobs, chat=False
                ),
                finish_reason=candidate.finish_reason,
            )
            for prompt, answer, candidate in _returned(results)
        ],
    )


async def chat_completion(
    plan: TokenPlan, body: ChatRequest, results: Sequence[PromptResult]
) -> ChatCompletion:
    """The response of ``/v1/chat/completions``."""
    (result,) = results
    answer = generate_answer(plan, result)
    return ChatCompletion(
        id=f"chatcmpl-{plan.request_id}",
        created=int(time.time()),
        model=body.model,
        system_fingerprint=answer.policy.fingerprint,
        usage=openai_usage([answer]),
        vbon=vbon_report(answer, result),
        choices=[
            ChatChoice(
                index=index,
                message=told.message,
                logprobs=listed_tokens(plan, (0, index), candidate.token_logprobs, chat=True),
                finish_reason=told.finish_reason,
            )
            for _, index, candidate in _returned(results)
            for told in [await told_answer(plan, body.tool_use, candidate, index)]
        ],
    )


def _returned(results: Sequence[PromptResult]) -> Iterator[tuple[int, int, Candidate]]:
    """Each candidate that is returned, with the index of its prompt and its own among the prompt's."""
    for prompt, result in enumerate(results):
        for answer, scored in enumerate(result.outcome.returned):
            yield prompt, answer, scored.candidate


def listed_tokens(
    plan: TokenPlan, answer: tuple[int, int], logprobs: Sequence[float] | None, *, chat: bool
) -> dict[str, Any] | None:
    """The answer's next tokens as OpenAI lists them; ``None`` if no log-probabilities are requested.

    Args:
        answer: the index of the prompt, and that of the answer among the prompt's.
    """
    tokens = plan.tokens.get(answer)
    if tokens is None or logprobs is None:
        return None
    return tokens.as_chat(logprobs) if chat else tokens.as_completion(logprobs)


def openai_usage(answers: Sequence[GenerateAnswer]) -> OpenAiUsage:
    """Token counts over several answers."""
    prompt = sum(answer.usage.prompt_tokens for answer in answers)
    returned = sum(answer.usage.returned_tokens for answer in answers)
    return OpenAiUsage(
        prompt_tokens=prompt, completion_tokens=returned, total_tokens=prompt + returned
    )


def vbon_report(answer: GenerateAnswer, result: PromptResult) -> VbonReport:
    """This server's addition to an answer in OpenAI's shape."""
    returned = result.outcome.returned
    several = None
    if len(returned) > 1:
        several = [
            AnswerReport(selected_index=one.candidate.index, reward=one.reward) for one in returned
        ]
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
        answers=several,
        candidates=answer.candidates,
        sampling=answer.sampling,
        sampling_differences=answer.sampling_differences,
        timings_ms=answer.timings_ms,
        reward_model=answer.reward_model,
        routing=answer.routing,
    )
