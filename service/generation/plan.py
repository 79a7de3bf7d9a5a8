"""From a wire request to answers on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.generation.references import check_limit, model_ref, scorer_ref
from service.runtime.modes import Mode
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.runtime import Runtime
from service.schemas import (
    BatchAnswer,
    CandidateOut,
    GenerateAnswer,
    GenerateRequest,
    RewardCurvePoint,
    SamplingFields,
    Timings,
    Usage,
)
from service.schemas.sampling import sampling_used
from service.strategies import UNOBSERVED, Observer, ScoredCandidate
from service.strategies.bon import Bon
from service.strategies.request_fields import settings_in
from vbon.concurrency import all_or_first_error
from vbon.engine import Sampling
from vbon.errors import InvalidInputError
from vbon.maths.curves import expected_best
from vbon.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Plan:
    """A request whose mode, limits and defaults are settled."""

    runtime: Runtime
    request: GenerateRequest
    request_id: str
    mode: Mode
    sampling: Sampling
    num_samples: int
    prompts: list[Prompt]

    async def answer_prompt(self, index: int, observer: Observer = UNOBSERVED) -> PromptResult:
        """Answer one of the prompts."""
        return await self.runtime.answer(
            PromptRequest(
                self.mode,
                self.prompts[index],
                self.sampling,
                self.num_samples,
                f"{self.request_id}-{index}",
                score=self.request.score,
                timeout_s=self.request.timeout_s,
                observer=observer,
            )
        )

    def to_wire(self, answer: PromptResult) -> GenerateAnswer:
        """An answer as it is sent."""
        return _to_wire(self, answer)


def make_plan(
    runtime: Runtime,
    mode_name: str | None,
    request: GenerateRequest,
    request_id: str,
    policy: str | None = None,
) -> Plan:
    """Settle what a request asks for.

    Raises:
        InvalidInputError: unknown mode, settings that are not its, or over a limit.
    """
    limits = runtime.settings.limits
    mode = runtime.mode(mode_name or runtime.settings.default_mode, settings_in(request), policy)
    if isinstance(request.n, list) and not isinstance(mode.strategy, Bon):
        raise InvalidInputError(
            f"mode {mode.name!r} takes one n; a list is for mode 'bon', whose candidates for the "
            "largest n estimate all the others",
            field="n",
        )
    sampling, num_samples = resolve_sampling(request, request.num_samples, runtime)
    check_limit("max_n", mode.strategy.most_candidates(num_samples), limits.max_n)
    # Who does not look at log-probabilities does not pay for them.
    sampling = replace(sampling, logprobs=request.logprobs or request.return_candidates)
    if request.timeout_s is not None:
        check_limit("timeout_s", request.timeout_s, limits.timeout_s)
    if request.stream and request.prompts is not None:
        raise InvalidInputError(
            "stream takes one prompt; send `prompt` or `messages`, not `prompts`", field="prompts"
        )
    check_limit("prompts", len(request.prompts or ()), limits.max_prompts)
    prompts = request.to_prompts()
    return Plan(runtime, request, request_id, mode, sampling, num_samples, prompts)


def resolve_sampling(
    fields: SamplingFields, asked: int | None, runtime: Runtime
) -> tuple[Sampling, int]:
    """The sampling a request gets, and its N, with the server's defaults and limits applied.

    Raises:
        InvalidInputError: over a limit; names it.
    """
    settings = runtime.settings
    num_samples = asked if asked is not None else settings.default_n
    sampling = fields.to_sampling(settings.default_max_tokens)
    check_limit("n", num_samples, settings.limits.max_n)
    check_limit("max_tokens", sampling.max_tokens, settings.limits.max_tokens)
    return sampling, num_samples


async def generate(plan: Plan) -> GenerateAnswer | BatchAnswer:
    """Answer every prompt of a request, or raise: a batch fails as a whole."""
    if plan.request.prompts is None:
        return plan.to_wire(await plan.answer_prompt(0))
    found = await all_or_first_error(plan.answer_prompt(i) for i in range(len(plan.prompts)))
    answers = [plan.to_wire(answer) for answer in found]
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


def candidate_out(scored: ScoredCandidate, *, with_logprobs: bool) -> CandidateOut:
    """A candidate as it is sent."""
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


def _to_wire(plan: Plan, answer: PromptResult) -> GenerateAnswer:
    request = plan.request
    outcome = answer.outcome
    selected = candidate_out(outcome.selected, with_logprobs=request.logprobs)
    scored = answer.scorer is not None and any(c.reward is not None for c in outcome.candidates)
    unscored = sum(c.reward is None for c in outcome.candidates) if scored else None
    candidates = None
    if request.return_candidates:
        candidates = [candidate_out(c, with_logprobs=request.logprobs) for c in outcome.candidates]
    return GenerateAnswer(
        request_id=plan.request_id,
        mode=answer.mode.name,
        text=selected.text,
        reward=selected.reward,
        finish_reason=selected.finish_reason,
        selected_index=selected.index,
        unscored_candidates=unscored,
        candidates=candidates,
        token_ids=selected.token_ids,
        token_logprobs=selected.token_logprobs,
        reward_curve=_reward_curve(request.n, outcome.candidates)
        if isinstance(request.n, list)
        else None,
        strategy=answer.mode.strategy.model_dump(mode="json"),
        details=dict(outcome.details),
        sampling=sampling_used(plan.sampling, answer.num_samples),
        usage=Usage(
            prompt_tokens=answer.prompt_tokens,
            generated_tokens=outcome.generated_tokens,
            returned_tokens=outcome.returned_tokens,
        ),
        timings_ms=Timings(
            queue=round(answer.queue_ms, 3),
            decode=round(outcome.decode_ms, 3),
            rerank=round(outcome.rerank_ms, 3),
            scoring=round(answer.scoring_ms, 3),
            total=round(answer.total_ms, 3),
        ),
        policy=model_ref(answer.mode.policy, answer.policy),
        reward_model=scorer_ref("reward", answer.scorer),
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
