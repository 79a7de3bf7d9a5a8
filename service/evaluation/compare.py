"""Comparison of several modes on the same prompts.

The comparison is fair in these ways. All modes get the same sampling parameters and token limits. Every
repeat runs all modes, in rotated order, so that drift affects all of them alike. Each combination of mode,
repeat and prompt has a seed of its own: with a shared seed the baseline's answer would be one of best-of-N's
candidates and could never win. Scoring counts towards the time only in modes that need it to answer. The
answers of single-sample modes, and the gold rewards of all modes, are scored afterwards.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from time import perf_counter

from service.evaluation.compare_report import (
    ModeRuns,
    Rewards,
    head_to_head,
    mode_report,
    prompt_row,
)
from service.generation.plan import check_fixed, check_steering, resolve_sampling
from service.generation.references import check_limit, scorer_ref
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from service.schemas import CompareRequest, CompareResponse
from service.schemas.prompts import to_prompt
from service.schemas.sampling import sampling_used
from service.settings import REFERENCE
from vbon.concurrency import all_or_first_error
from vbon.engine import Sampling
from vbon.errors import BusyError, InvalidInputError
from vbon.maths.seeds import seed_of
from vbon.prompts import Prompt


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A comparison request whose modes, baseline and sampling are settled.

    Attributes:
        runs: by mode, in the order of the request.
    """

    request: CompareRequest
    request_id: str
    runs: dict[str, ModeRuns]
    baseline: str
    sampling: Sampling
    num_samples: int
    prompts: list[Prompt]


async def compare(runtime: Runtime, request: CompareRequest, request_id: str) -> CompareResponse:
    """Run a comparison.

    Raises:
        InvalidInputError: a mode is unknown, or a limit is exceeded.
        BusyError: a model was reloaded meanwhile.
        VbonError: as :meth:`Runtime.answer`.
    """
    comparison = _settle(runtime, request, request_id)
    revisions = runtime.revisions
    await _answer_all(runtime, comparison)
    await _score_all(runtime, comparison)
    if not revisions.items() <= runtime.revisions.items():  # a policy that has joined does no harm
        raise BusyError("a model was reloaded during the comparison, so it is invalid; try again")
    return _response(runtime, comparison)


def default_modes(runtime: Runtime) -> list[str]:
    """Every single-sample mode, and best-of-N if a reward model is configured."""
    return [*runtime.policies, *(["bon"] if "bon" in runtime.modes else [])]


def run_seed(seed: int, *parts: object) -> int:
    """The seed of one part of a run; the seeds of different parts are independent."""
    return seed_of(repr((seed, *parts)))


def _settle(runtime: Runtime, request: CompareRequest, request_id: str) -> _Comparison:
    names = list(dict.fromkeys(request.modes or default_modes(runtime)))
    runs = {name: ModeRuns(runtime.mode(name, request.settings.get(name))) for name in names}
    for name in request.settings.keys() - runs.keys():
        raise InvalidInputError(
            f"settings has mode {name!r}, which is not compared", field="settings"
        )
    baseline = request.baseline or (REFERENCE if REFERENCE in runs else names[0])
    if baseline not in runs:
        runs[baseline] = ModeRuns(runtime.mode(baseline))
    limits = runtime.settings.limits
    sampling, num_samples = resolve_sampling(request, request.n, runtime)
    for run in runs.values():
        check_fixed(run.mode, "modes")
        check_limit("max_n", run.mode.strategy.most_candidates(num_samples), limits.max_n)
        check_steering(run.mode, sampling)
    check_limit("prompts", len(request.prompts), limits.max_prompts)
    prompts = [to_prompt(item) for item in request.prompts]
    return _Comparison(request, request_id, runs, baseline, sampling, num_samples, prompts)


async def _answer_all(runtime: Runtime, comparison: _Comparison) -> None:
    names = list(comparison.runs)
    for repeat in range(comparison.request.repeats):
        offset = repeat % len(names)
        for name in names[offset:] + names[:offset]:
            await _answer_once(runtime, comparison, comparison.runs[name], repeat)


async def _answer_once(
    runtime: Runtime, comparison: _Comparison, run: ModeRuns, repeat: int
) -> None:
    """Answer all prompts in one mode, and add the answers and their wall time to its runs."""
    request, sampling = comparison.request, comparison.sampling
    gate = asyncio.Semaphore(request.concurrency)

    async def answer(index: int, prompt: Prompt) -> PromptResult:
        seed = sampling.seed
        if seed is not None:
            seed = run_seed(seed, run.mode.name, repeat, index)
        async with gate:
            return await runtime.answer(
                PromptRequest(
                    run.mode,
                    prompt,
                    replace(sampling, seed=seed, logprobs=False),
                    comparison.num_samples,
                    f"{comparison.request_id}-{run.mode.name}-{repeat}-{index}",
                    score=False,
                )
            )

    begun_s = perf_counter()
    results = await all_or_first_error(
        answer(i, prompt) for i, prompt in enumerate(comparison.prompts)
    )
    run.wall_s.append(perf_counter() - begun_s)
    run.results.append(results)


async def _score_all(runtime: Runtime, comparison: _Comparison) -> None:
    prompts = comparison.prompts
    async with runtime.in_flight.track(None, "", tuple(runtime.scorers.values())):
        for run in comparison.runs.values():
            run.rewards = await _score(runtime.reward, run, prompts, reuse=True)
            run.gold = await _score(runtime.gold, run, prompts, reuse=False)


async def _score(
    scorer: ServedScorer | None, run: ModeRuns, prompts: list[Prompt], *, reuse: bool
) -> Rewards:
    """The rewards of a mode's answers; ``reuse`` takes those that the mode computed to choose."""

    async def score(result: PromptResult, prompt: Prompt) -> float | None:
        chosen = result.outcome.selected
        if reuse and chosen.reward is not None:
            return chosen.reward
        if scorer is None:
            return None
        return await scorer.score(prompt, chosen.candidate.text)

    return [
        await all_or_first_error(
            score(result, prompt) for result, prompt in zip(results, prompts, strict=True)
        )
        for results in run.results
    ]


def _response(runtime: Runtime, comparison: _Comparison) -> CompareResponse:
    request, runs = comparison.request, list(comparison.runs.values())
    baseline = comparison.runs[comparison.baseline]
    return CompareResponse(
        request_id=comparison.request_id,
        baseline=comparison.baseline,
        sampling=sampling_used(comparison.sampling, comparison.num_samples),
        repeats=request.repeats,
        concurrency=request.concurrency,
        reward_model=scorer_ref("reward", runtime.reward),
        gold_model=scorer_ref("gold", runtime.gold),
        modes=[mode_report(runtime, run, baseline, comparison.sampling) for run in runs],
        head_to_head=[head_to_head(a, b) for i, a in enumerate(runs) for b in runs[i + 1 :]],
        prompts=[prompt_row(prompt.key, i, runs) for i, prompt in enumerate(comparison.prompts)],
    )
