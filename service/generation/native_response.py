"""Answers in the shape of the native API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from service.generation.gold import with_gold
from service.generation.plan import Plan
from service.generation.references import model_ref, sampling_differences, scorer_ref
from service.runtime.prompt import PromptResult
from service.runtime.routing import Expected, PriceRouting, Routing
from service.schemas import (
    BatchAnswer,
    CandidateOut,
    ExpectedOut,
    GenerateAnswer,
    PriceRoutingOut,
    RewardCurvePoint,
    RoutingOut,
    Timings,
    Usage,
)
from service.schemas.sampling import sampling_used
from service.strategies import ScoredCandidate
from vbon.concurrency import all_or_first_error
from vbon.engine.continuation import draws_again
from vbon.maths.curves import expected_best


async def generate(plan: Plan) -> GenerateAnswer | BatchAnswer:
    """Answer every prompt of a plan. If one fails, the whole request fails with its error."""
    if plan.request.prompts is None:
        return await _answered(plan, 0)
    answers = await all_or_first_error(_answered(plan, i) for i in range(len(plan.prompts)))
    return BatchAnswer(
        request_id=plan.request_id,
        mode=plan.mode.name,
        answers=answers,
        usage=Usage(
            prompt_tokens=sum(a.usage.prompt_tokens for a in answers),
            generated_tokens=sum(a.usage.generated_tokens for a in answers),
            returned_tokens=sum(a.usage.returned_tokens for a in answers),
        ),
    )


async def _answered(plan: Plan, index: int) -> GenerateAnswer:
    answer = generate_answer(plan, await plan.answer_prompt(index))
    return await with_gold(plan, answer, plan.prompts[index])


def generate_answer(plan: Plan, result: PromptResult) -> GenerateAnswer:
    """The response for one prompt."""
    request, outcome = plan.request, result.outcome
    selected = candidate_out(outcome.selected, with_logprobs=request.logprobs)
    candidates = None
    if request.return_candidates:
        candidates = [candidate_out(c, with_logprobs=request.logprobs) for c in outcome.candidates]
    curve = None
    if isinstance(request.n, list):
        curve = _reward_curve(request.n, outcome.candidates)
    return GenerateAnswer(
        request_id=plan.request_id,
        mode=result.mode.name,
        text=selected.text,
        reward=selected.reward,
        finish_reason=selected.finish_reason,
        selected_index=selected.index,
        unscored_candidates=_unscored(result),
        candidates=candidates,
        token_ids=selected.token_ids,
        token_logprobs=selected.token_logprobs,
        reward_curve=curve,
        strategy=result.mode.strategy.model_dump(mode="json"),
        details={**outcome.details, **_clipped(plan, result), **_continued(result)},
        sampling=sampling_used(result.sampling, result.num_samples),
        sampling_differences=sampling_differences(
            plan.runtime, result.mode.policy, result.sampling
        ),
        usage=_usage(result),
        timings_ms=_timings(result),
        policy=model_ref(result.mode.policy, result.policy, result.earlier_revisions),
        reward_model=scorer_ref("reward", result.scorer, result.reward_revision),
        routing=_routing(result.routing),
    )


def _routing(found: Routing | PriceRouting | None) -> RoutingOut | PriceRoutingOut | None:
    if isinstance(found, Routing):
        return RoutingOut(**asdict(found))
    if found is None:
        return None
    return PriceRoutingOut(
        mode=found.mode,
        policy=found.policy,
        n=found.n,
        settings=dict(found.settings),
        why=found.why,
        expected=None if found.expected is None else ExpectedOut(**_figures(found.expected)),
        met=found.met,
        differs=list(found.differs),
    )


def _figures(expected: Expected) -> dict[str, Any]:
    return {one.name: getattr(expected, one.name) for one in fields(expected)}


def _clipped(plan: Plan, result: PromptResult) -> dict[str, str]:
    """The note on a default ``max_tokens`` that was lowered to fit into the context; empty if it fitted."""
    default, used = plan.sampling.max_tokens, result.sampling.max_tokens
    if isinstance(result.routing, PriceRouting) and result.routing.max_tokens is not None:
        default = result.routing.max_tokens
    if used == default:
        return {}
    return {
        "max_tokens": f"{used} instead of the default {default}: the prompt's {result.prompt_tokens} tokens "
        f"leave no more of the context of {result.policy.max_model_len}"
    }


def _continued(result: PromptResult) -> dict[str, str]:
    """The note on samples that more than one engine drew; empty if there are none."""
    if not result.outcome.continued:
        return {}
    how = "their rests were drawn after the tokens that had come"
    if draws_again(result.sampling):
        how = "they were drawn again, and the tokens that had come were the same"
    times = "once" if result.outcome.continued == 1 else f"{result.outcome.continued} times"
    return {"continued": f"{times} a replica died, and samples went on at another one: {how}"}


def candidate_out(scored: ScoredCandidate, *, with_logprobs: bool) -> CandidateOut:
    """The response form of a candidate."""
    candidate = scored.candidate
    return CandidateOut(
        index=candidate.index,
        text=candidate.text,
        reward=scored.reward,
        cumulative_logprob=candidate.cumulative_logprob,
        num_tokens=len(candidate.token_ids),
        finish_reason=candidate.finish_reason,
        token_ids=list(candidate.token_ids) if with_logprobs else None,
        token_logprobs=list(candidate.token_logprobs or ()) if with_logprobs else None,
    )


def _unscored(result: PromptResult) -> int | None:
    """The number of candidates without a reward; ``None`` if no candidate was scored."""
    rewards = [candidate.reward for candidate in result.outcome.judged]
    if result.scorer is None or all(reward is None for reward in rewards):
        return None
    return rewards.count(None)


def _usage(result: PromptResult) -> Usage:
    return Usage(
        prompt_tokens=result.prompt_tokens,
        generated_tokens=result.outcome.generated_tokens,
        returned_tokens=result.outcome.returned_tokens,
    )


def _timings(result: PromptResult) -> Timings:
    return Timings(
        queue=round(result.queue_ms, 3),
        decode=round(result.outcome.decode_ms, 3),
        rerank=round(result.outcome.rerank_ms, 3),
        scoring=round(result.scoring_ms, 3),
        total=round(result.total_ms, 3),
    )


def _reward_curve(
    counts: list[int], candidates: Sequence[ScoredCandidate]
) -> list[RewardCurvePoint]:
    rewards = np.array([c.reward for c in candidates if c.reward is not None], dtype=np.float64)
    return [
        RewardCurvePoint(
            n=n, expected_reward=expected_best(rewards, n) if n <= len(rewards) else None
        )
        for n in sorted(set(counts))
    ]
