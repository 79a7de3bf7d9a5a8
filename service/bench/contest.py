"""Best-of-N by two programs over equal engines: speed, measured alternately, and quality of the answers.

Each side runs with the number of requests in flight at which it was fastest in one trial of each, because
programs differ in what fills an engine: one that waits for whole requests and scores them afterwards
needs more in flight. After the measurements, the selecting reward model and the gold reward model score all
final answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from service.bench.answers import Answers
from service.bench.figures import Figure, in_turns, ratios, with_unit
from service.bench.harness import Bench
from service.runtime.served_scorer import ServedScorer
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import bootstrap_mean
from vbon.prompts import Prompt

# Numbers of requests in flight to try, as shares of Bench.width.
WIDTHS = (0.5, 0.75, 1.0)


@dataclass
class Contender:
    """One side of a contest.

    Attributes:
        answer: answers prompts, with the given number of requests in flight.
        width: requests in flight; 0 until :func:`find_width` sets it.
        texts: answers of all measurements, each in the order of its prompts.
    """

    name: str
    answer: Callable[[Sequence[str], int], Awaitable[Answers]]
    width: int = 0
    texts: list[list[str]] = field(default_factory=list)


def service_contender(bench: Bench) -> Contender:
    """The service as a side: ``mode=bon`` over HTTP."""

    async def answer(prompts: Sequence[str], width: int) -> Answers:
        found = await bench.over_http("bon", len(prompts), width)
        return Answers(found.seconds, found.texts)

    return Contender("bon", answer)


async def contest(bench: Bench, first: Contender, second: Contender, goal: float) -> Figure:
    """Compare requests a second, as the first side's over the second's, and the sides' rewards."""
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
        f"{with_unit(a, 'requests/s')}, {first.width} in flight, against {with_unit(b, 'requests/s')}, "
        f"{second.width} in flight; {words}"
    )
    name = f"{first.name} / {second.name} at n={n}, requests/s"
    return Figure(name, ratios(a, b), goal, True, detail, quality)


def prompts_of(bench: Bench, requests: int | None = None) -> list[str]:
    """The prompts of one measurement, the same that :meth:`Bench.over_http` sends.

    Args:
        requests: how many; those of best-of-N by default.
    """
    return [prompt.key for prompt in bench.cycled(requests or bench.settings.bon_requests)]


async def find_width(bench: Bench, contender: Contender) -> None:
    """Set the requests in flight at which the side is fastest, after one untimed trial."""
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
    """Mean rewards of both sides and their difference, as text and as JSON.

    Intervals are over prompts. Answers that a reward model cannot score are left out.
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
    scorer: ServedScorer, prompts: Sequence[str], repeats: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Mean reward of each prompt over the answers of all repeats that could be scored.

    Prompts without such an answer are left out.
    """
    pairs = [pair for texts in repeats for pair in zip(prompts, texts, strict=True)]
    rewards = await asyncio.gather(
        *(scorer.score(Prompt(text=prompt), text) for prompt, text in pairs)
    )
    found: dict[str, list[float]] = {}
    for (prompt, _), reward in zip(pairs, rewards, strict=True):
        if reward is not None:
            found.setdefault(prompt, []).append(reward)
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}
