"""The same prompts through several modes, side by side.

Fairness: every mode gets equal sampling and token limits; modes are interleaved, in rotated order,
in every repeat, so that drift hits all alike; each (mode, repeat, prompt) has its own seed, because
with a shared seed the baseline's answer would be one of best-of-N's candidates and could never win.
Scoring is inside the clock only where a mode needs it to answer: answers of single-sample modes,
and gold rewards of all, are scored after the clock has stopped.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from service.generation.plan import resolve_sampling
from service.generation.references import check_limit, policy_ref, scorer_ref
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.modes import Mode
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.runtime import Runtime
from service.schemas import (
    ComparedAnswer,
    CompareRequest,
    CompareResponse,
    HeadToHead,
    LatencySummary,
    ModeReport,
    PromptRow,
)
from service.schemas.sampling import sampling_used
from service.settings import REFERENCE
from vbon.concurrency import all_or_first_error
from vbon.engine import Sampling
from vbon.errors import BusyError, InvalidInputError
from vbon.maths.curves import pairwise_win_rate
from vbon.maths.intervals import MeanInterval
from vbon.maths.seeds import seed_of
from vbon.maths.statistics import bootstrap_mean, median_range
from vbon.prompts import Prompt


@dataclass(slots=True)
class _Runs:
    """What one mode did: ``[repeat][prompt]`` answers and rewards, and each repeat's wall time."""

    mode: Mode
    answers: list[list[PromptResult]] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    rewards: list[list[float | None]] = field(default_factory=list)
    gold: list[list[float | None]] = field(default_factory=list)


async def compare(runtime: Runtime, request: CompareRequest, request_id: str) -> CompareResponse:
    """Run the comparison.

    Raises:
        InvalidInputError: unknown mode or over a limit; whatever a single prompt can raise.
    """
    names = list(dict.fromkeys(request.modes or default_modes(runtime)))
    runs = {name: _Runs(runtime.mode(name, request.settings.get(name))) for name in names}
    for name in request.settings.keys() - runs.keys():
        raise InvalidInputError(
            f"settings for mode {name!r}, which is not compared", field="settings"
        )
    baseline = request.baseline or (REFERENCE if REFERENCE in runs else names[0])
    if baseline not in runs:
        runs[baseline] = _Runs(runtime.mode(baseline))
        names.append(baseline)
    sampling, num_samples = resolve_sampling(request, request.n, runtime)
    for run in runs.values():
        most = run.mode.strategy.most_candidates(num_samples)
        check_limit("max_n", most, runtime.settings.limits.max_n)
    check_limit("prompts", len(request.prompts), runtime.settings.limits.max_prompts)
    revisions = runtime.revisions
    for repeat in range(request.repeats):
        offset = repeat % len(names)
        for name in names[offset:] + names[:offset]:
            await _run_once(runtime, runs[name], request, sampling, num_samples, repeat, request_id)
    async with runtime.in_flight.track(None, "", tuple(runtime.scorers.values())):
        for run in runs.values():
            run.rewards = await _score(runtime.reward, run, request, selected=True)
            run.gold = await _score(runtime.gold, run, request, selected=False)
    if runtime.revisions != revisions:
        raise BusyError(
            "a model was reloaded during the comparison, so it compares nothing; ask again"
        )
    return CompareResponse(
        request_id=request_id,
        baseline=baseline,
        sampling=sampling_used(sampling, num_samples),
        repeats=request.repeats,
        concurrency=request.concurrency,
        reward_model=scorer_ref("reward", runtime.reward),
        gold_model=scorer_ref("gold", runtime.gold),
        modes=[_report(runtime, run, runs[baseline]) for run in runs.values()],
        head_to_head=[
            _head_to_head(runs[a], runs[b]) for i, a in enumerate(names) for b in names[i + 1 :]
        ],
        prompts=[_row(prompt, i, runs) for i, prompt in enumerate(request.prompts)],
    )


def default_modes(runtime: Runtime) -> list[str]:
    """One sample of each policy, and best-of-N where there is a reward model."""
    return [*runtime.policies, *(["bon"] if "bon" in runtime.modes else [])]


def run_seed(seed: int, *parts: object) -> int:
    """An independent seed for each part of a run."""
    return seed_of(repr((seed, *parts)))


async def _run_once(
    runtime: Runtime,
    run: _Runs,
    request: CompareRequest,
    sampling: Sampling,
    num_samples: int,
    repeat: int,
    request_id: str,
) -> None:
    gate = asyncio.Semaphore(request.concurrency)

    async def one(index: int, prompt: str) -> PromptResult:
        seed = sampling.seed
        if seed is not None:
            seed = run_seed(seed, run.mode.name, repeat, index)
        async with gate:
            return await runtime.answer(
                PromptRequest(
                    run.mode,
                    Prompt(text=prompt),
                    replace(sampling, seed=seed, logprobs=False),
                    num_samples,
                    f"{request_id}-{run.mode.name}-{repeat}-{index}",
                    score=False,
                )
            )

    begun = perf_counter()
    answers = await all_or_first_error(one(i, prompt) for i, prompt in enumerate(request.prompts))
    run.wall_s.append(perf_counter() - begun)
    run.answers.append(answers)


async def _score(
    scorer: BatchingScorer | None, run: _Runs, request: CompareRequest, *, selected: bool
) -> list[list[float | None]]:
    """Rewards of the answers; with ``selected``, those that reranking computed are kept."""

    async def one(answer: PromptResult, prompt: str) -> float | None:
        chosen = answer.outcome.selected
        if selected and chosen.reward is not None:
            return chosen.reward
        if scorer is None:
            return None
        return await scorer.score(Prompt(text=prompt), chosen.candidate.text)

    return [
        await all_or_first_error(
            one(answer, prompt) for answer, prompt in zip(answers, request.prompts, strict=True)
        )
        for answers in run.answers
    ]


def _by_prompt(rewards: list[list[float | None]]) -> list[list[float]]:
    """``[prompt][answer]`` of what could be scored."""
    return [
        [reward for reward in column if reward is not None] for column in zip(*rewards, strict=True)
    ]


def _interval(values: list[float]) -> MeanInterval | None:
    return bootstrap_mean(values) if values else None


def _mean_reward(rewards: list[list[float | None]]) -> MeanInterval | None:
    return _interval([float(np.mean(values)) for values in _by_prompt(rewards) if values])


def _win_rate(
    challengers: list[list[float | None]], references: list[list[float | None]]
) -> MeanInterval | None:
    pairs = zip(_by_prompt(challengers), _by_prompt(references), strict=True)
    return _interval([pairwise_win_rate(np.array(a), np.array(b)) for a, b in pairs if a and b])


def _tokens(run: _Runs, *, returned: bool) -> list[int]:
    """Per repeat."""
    return [
        sum(
            answer.outcome.returned_tokens if returned else answer.outcome.generated_tokens
            for answer in answers
        )
        for answers in run.answers
    ]


def _rates(run: _Runs, amounts: list[int]) -> list[float]:
    return [amount / wall for amount, wall in zip(amounts, run.wall_s, strict=True)]


def _report(runtime: Runtime, run: _Runs, base: _Runs) -> ModeReport:
    latencies = np.array([answer.total_ms for answers in run.answers for answer in answers])
    base_means = [np.mean([a.total_ms for a in answers]) for answers in base.answers]
    own_means = [np.mean([a.total_ms for a in answers]) for answers in run.answers]
    generated, returned = _tokens(run, returned=False), _tokens(run, returned=True)
    counts = [len(answers) for answers in run.answers]
    same = run is base
    return ModeReport(
        mode=run.mode.name,
        policy=policy_ref(runtime, run.mode),
        n=run.answers[0][0].num_samples,
        strategy=run.answers[0][0].mode.strategy.model_dump(mode="json"),
        reward=_mean_reward(run.rewards),
        gold_reward=_mean_reward(run.gold),
        unscored_answers=sum(reward is None for row in run.rewards for reward in row),
        win_rate=None if same else _win_rate(run.rewards, base.rewards),
        gold_win_rate=None if same else _win_rate(run.gold, base.gold),
        e2e_ms=LatencySummary(
            mean=float(latencies.mean()),
            p50=float(np.quantile(latencies, 0.5)),
            p95=float(np.quantile(latencies, 0.95)),
        ),
        requests_per_s=median_range(_rates(run, counts)),
        generated_tokens_per_s=median_range(_rates(run, generated)),
        returned_tokens_per_s=median_range(_rates(run, returned)),
        generated_tokens=sum(generated),
        returned_tokens=sum(returned),
        ratio_requests_per_s=median_range(
            [theirs / ours for ours, theirs in zip(run.wall_s, base.wall_s, strict=True)]
        ),
        ratio_e2e=median_range([float(a / b) for a, b in zip(own_means, base_means, strict=True)]),
        ratio_generated_tokens=sum(generated) / max(1, sum(_tokens(base, returned=False))),
    )


def _head_to_head(first: _Runs, second: _Runs) -> HeadToHead:
    wins = losses = ties = 0
    for ours, theirs in zip(_by_prompt(first.rewards), _by_prompt(second.rewards), strict=True):
        difference = np.sign(np.subtract.outer(ours, theirs))
        wins += int((difference > 0).sum())
        losses += int((difference < 0).sum())
        ties += int((difference == 0).sum())
    return HeadToHead(
        mode=first.mode.name, against=second.mode.name, wins=wins, losses=losses, ties=ties
    )


def _row(prompt: str, index: int, runs: dict[str, _Runs]) -> PromptRow:
    return PromptRow(
        prompt=prompt,
        answers={
            name: ComparedAnswer(
                text=run.answers[0][index].outcome.selected.candidate.text,
                reward=run.rewards[0][index],
                gold_reward=run.gold[0][index],
            )
            for name, run in runs.items()
        },
    )
