"""From a wire request to answers on the wire."""

from __future__ import annotations

from dataclasses import replace

from bestofn.engine import Engine, Sampling
from bestofn.errors import InvalidInputError
from service.concurrency import all_or_first_error
from service.runtime import Answer, Mode, Runtime
from service.schemas import (
    BatchAnswer,
    CandidateOut,
    GenerateAnswer,
    GenerateRequest,
    ModelRef,
    SamplingFields,
    SamplingUsed,
    Timings,
    Usage,
)
from service.scoring import BatchingScorer
from service.strategies import ScoredCandidate
from service.strategy_fields import settings_in


def resolve_sampling(fields: SamplingFields, runtime: Runtime) -> tuple[Sampling, int]:
    """The sampling a request gets, and its N, with the server's defaults and limits applied.

    Raises:
        InvalidInputError: over a limit; names it.
    """
    settings = runtime.settings
    num_samples = fields.n if fields.n is not None else settings.default_n
    max_tokens = fields.max_tokens if fields.max_tokens is not None else settings.default_max_tokens
    check_limit("n", num_samples, settings.limits.max_n)
    check_limit("max_tokens", max_tokens, settings.limits.max_tokens)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        seed=fields.seed,
        stop=fields.stop_strings,
    )
    return sampling, num_samples


def check_limit(field: str, value: int, limit: int) -> None:
    """Refuse a value over a limit of the server.

    Raises:
        InvalidInputError: with the field, the value and the limit.
    """
    if value > limit:
        raise InvalidInputError(
            f"{field} is {value}; this server allows at most {limit}", field=field
        )


async def generate(
    runtime: Runtime,
    mode_name: str | None,
    request: GenerateRequest,
    request_id: str,
    policy: str | None = None,
) -> GenerateAnswer | BatchAnswer:
    """Answer every prompt of a request, or raise: a batch fails as a whole."""
    name = mode_name or runtime.settings.default_mode
    mode = runtime.mode(name, settings_in(request), policy)
    sampling, num_samples = resolve_sampling(request, runtime)
    # Candidates are shown with their log-probabilities; who does not look does not pay.
    sampling = replace(sampling, logprobs=request.return_candidates)
    check_limit("max_n", mode.strategy.most_candidates(num_samples), runtime.settings.limits.max_n)
    prompts = request.to_prompts()
    check_limit("prompts", len(prompts), runtime.settings.limits.max_prompts)
    found = await all_or_first_error(
        runtime.answer(
            mode, prompt, sampling, num_samples, f"{request_id}-{i}", score=request.score
        )
        for i, prompt in enumerate(prompts)
    )
    answers = [
        _to_wire(runtime, answer, sampling, request_id, request.return_candidates)
        for answer in found
    ]
    if request.prompts is None:
        return answers[0]
    return BatchAnswer(
        request_id=request_id,
        mode=mode.name,
        answers=answers,
        usage=Usage(
            prompt_tokens=sum(a.usage.prompt_tokens for a in answers),
            generated_tokens=sum(a.usage.generated_tokens for a in answers),
            returned_tokens=sum(a.usage.returned_tokens for a in answers),
        ),
    )


def policy_ref(runtime: Runtime, mode: Mode) -> ModelRef:
    """The weights a mode samples from."""
    engine: Engine = runtime.policies[mode.policy]
    return ModelRef(name=mode.policy, path=engine.info.path, revision=engine.info.revision)


def scorer_ref(name: str, scorer: BatchingScorer | None) -> ModelRef | None:
    """A reward model's identity."""
    if scorer is None:
        return None
    return ModelRef(name=name, path=scorer.name, revision=scorer.revision)


def sampling_used(sampling: Sampling, num_samples: int) -> SamplingUsed:
    """What is echoed back."""
    return SamplingUsed(
        n=num_samples,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        stop=list(sampling.stop),
    )


def _to_wire(
    runtime: Runtime, answer: Answer, sampling: Sampling, request_id: str, with_candidates: bool
) -> GenerateAnswer:
    outcome, selected = answer.outcome, answer.outcome.selected
    scored = runtime.reward is not None and any(c.reward is not None for c in outcome.candidates)
    unscored = sum(c.reward is None for c in outcome.candidates) if scored else None
    return GenerateAnswer(
        request_id=request_id,
        mode=answer.mode.name,
        text=selected.candidate.text,
        reward=selected.reward,
        finish_reason=selected.candidate.finish_reason,
        selected_index=selected.candidate.index,
        unscored_candidates=unscored,
        candidates=[_candidate(c) for c in outcome.candidates] if with_candidates else None,
        strategy=answer.mode.strategy.model_dump(mode="json"),
        details=dict(outcome.details),
        sampling=sampling_used(sampling, answer.num_samples),
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
        policy=policy_ref(runtime, answer.mode),
        reward_model=scorer_ref("reward", runtime.reward),
    )


def _candidate(scored: ScoredCandidate) -> CandidateOut:
    candidate = scored.candidate
    return CandidateOut(
        index=candidate.index,
        text=candidate.text,
        reward=scored.reward,
        cumulative_logprob=candidate.cumulative_logprob,
        num_tokens=len(candidate.token_ids),
        finish_reason=candidate.finish_reason,
    )
