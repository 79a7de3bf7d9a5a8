"""Best-of-N by different programs over like engines: speed in turns, then the quality of what came.

Each side has the number of requests in flight at which it was fastest in one trial of each, since
what fills an engine differs: who waits for whole requests and scores after them needs more. All final
answers are scored by the selecting reward model and by the gold one after the clock has stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from service.bench.answers import Answers
from service.bench.harness import Bench, Figure, in_turns, ratios, shown
from service.runtime.batching_scorer import BatchingScorer
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import bootstrap_mean
from vbon.prompts import Prompt

WIDTHS = (0.5, 0.75, 1.0)  # of the requests with which rows of one mode saturate the engine


@dataclass
class Contender:
    """One side.

    Attributes:
        answer: answers prompts, with so many in flight.
        width: requests in flight; found by :func:`find_width`.
        texts: answers of all measurements, each in the order of its prompts.
    """

    name: str
    answer: Callable[[Sequence[str], int], Awaitable[Answers]]
    width: int = 0
    texts: list[list[str]] = field(default_factory=list)


def ours(bench: Bench) -> Contender:
    """``mode=bon`` of the service over HTTP."""

    async def answer(prompts: Sequence[str], width: int) -> Answers:
        found = await bench.over_http("bon", len(prompts), width)
        return Answers(found.seconds, found.texts)

    return Contender("bon", answer)


async def contest(bench: Bench, first: Contender, second: Contender, goal: float) -> Figure:
    """Requests a second of the first over the second's, and both sides' rewards."""
    prompts = prompts_of(bench)
    for contender in (first, second):
        contender.texts.clear()
        if not contender.width:
            await find_width(bench, contender)

    async def side(contender: Contender) -> float:
        found = await contender.answer(prompts, contender.width)
        contender.texts.append(found.texts)
        return found.requests_per_second

    a, b = await in_turns(bench.settings.pairs, lambda: side(first), lambda: side(second))
    words, quality = await compare_quality(bench, prompts, first, second)
    n = bench.settings.n
    detail = (
        f"{shown(a, 'requests/s')}, {first.width} in flight, against {shown(b, 'requests/s')}, "
        f"{second.width} in flight; {words}"
    )
    name = f"{first.name} / {second.name} at n={n}, requests/s"
    return Figure(name, ratios(a, b), goal, True, detail, quality)


def prompts_of(bench: Bench) -> list[str]:
    """The texts of one measurement, the ones :meth:`Bench.over_http` sends."""
    return [prompt.key for prompt in bench.cycled(bench.settings.bon_requests)]


async def find_width(bench: Bench, contender: Contender) -> None:
    """Set the requests in flight at which the contender is fastest, after one untimed trial."""
    full = bench.width(bench.settings.n)
    prompts = prompts_of(bench)
    await contender.answer(prompts, full)
    speeds = {}
    for share in WIDTHS:
        width = round(share * full)
        speeds[width] = (await contender.answer(prompts, width)).requests_per_second
    contender.width = max(speeds, key=lambda width: speeds[width])


async def compare_quality(
    bench: Bench, prompts: Sequence[str], first: Contender, second: Contender
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Mean rewards of both sides and their difference, in words and for JSON.

    Intervals are over prompts; answers that a model cannot score are left out.
    """
    words, figures = [], {}
    scorers = {"reward": bench.runtime.reward, "gold reward": bench.runtime.gold}
    for name, scorer in scorers.items():
        if scorer is None:
            continue
        means = [await mean_rewards(scorer, prompts, side.texts) for side in (first, second)]
        both = sorted(means[0].keys() & means[1].keys())
        a, b = ([side[prompt] for prompt in both] for side in means)
        sides = [bootstrap_mean(values) for values in (a, b)]
        gap: MeanInterval = bootstrap_mean(np.subtract(a, b))
        words.append(f"{name} {sides[0].mean:.2f} against {sides[1].mean:.2f}, by {gap}")
        figures[name] = {
            "first": asdict(sides[0]),
            "second": asdict(sides[1]),
            "difference": asdict(gap),
        }
    return "; ".join(words), figures


async def mean_rewards(
    scorer: BatchingScorer, prompts: Sequence[str], repeats: Sequence[Sequence[str]]
) -> dict[str, float]:
    """By prompt, over its scorable answers of all repeats; without those that have none."""
    pairs = [pair for texts in repeats for pair in zip(prompts, texts, strict=True)]
    rewards = await asyncio.gather(
        *(scorer.score(Prompt(text=prompt), text) for prompt, text in pairs)
    )
    found: dict[str, list[float]] = {}
    for (prompt, _), reward in zip(pairs, rewards, strict=True):
        if reward is not None:
            found.setdefault(prompt, []).append(reward)
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}
