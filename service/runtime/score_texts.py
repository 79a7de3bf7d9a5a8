"""Scores given texts as candidates are scored: in the same batches, behind the same admission."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from service.context.scored_by import one_reward_model
from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from vbon.concurrency import all_or_first_error
from vbon.errors import InvalidInputError, RewardDeadError
from vbon.prompts import Prompt

Which = Literal["reward", "gold"]
# Texts of one request that wait for their rewards at a time, so that candidates of other requests find
# places in every batch.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class ScoredTexts:
    """The rewards of one request's texts, and the time they took.

    Attributes:
        rewards: in the order of the texts; ``None`` for those that the model cannot score.
    """

    scorer: ServedScorer
    rewards: list[float | None]
    queue_ms: float
    total_ms: float


async def score_texts(
    runtime: Runtime,
    which: Which,
    pairs: Sequence[tuple[Prompt, str]],
    timeout_s: float | None,
    field: str = "completions",
) -> ScoredTexts:
    """Score the texts once they are admitted; each counts as a sequence of one token.

    Args:
        pairs: each text after its prompt.
        timeout_s: a time limit shorter than the server's.
        field: the request's field with the texts, for errors about their number.

    Raises:
        NotReadyError, OverloadedError, RequestTimeoutError, InvalidInputError, RewardError: every call
            either returns the rewards or raises exactly one of these.
    """
    arrived_s = perf_counter()
    scorer = _available(runtime, which)
    _check_number(runtime, len(pairs), field)
    limit_s, limit_name = runtime.settings.limits.time_limit(timeout_s)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def score(prompt: Prompt, text: str) -> float | None:
        async with gate:
            return await scorer.score(prompt, text)

    async with (
        runtime.in_flight.track(limit_s, limit_name, (scorer,)),
        runtime.admission.enter(len(pairs), max_tokens=1, field=field, unit="texts"),
    ):
        admitted_s = perf_counter()
        with one_reward_model():
            rewards = await all_or_first_error(score(*pair) for pair in pairs)
    total_s = perf_counter() - arrived_s
    runtime.metrics.scored(which, rewards, total_s)
    return ScoredTexts(scorer, rewards, (admitted_s - arrived_s) * 1e3, total_s * 1e3)


def _available(runtime: Runtime, which: Which) -> ServedScorer:
    runtime.check_loaded()
    scorer = runtime.scorers.get(which)
    if scorer is None:
        raise InvalidInputError(
            f"this server has no {which} model; start it with --{which}", field="model"
        )
    if not scorer.alive:
        raise RewardDeadError(f"the {which} model has died: {runtime.status()}")
    return scorer


def _check_number(runtime: Runtime, number: int, field: str) -> None:
    limits = runtime.settings.limits
    most = limits.max_prompts * limits.max_n
    if number > most:
        raise InvalidInputError(
            f"{field} has {number} texts; this server allows at most {most} "
            "(limits.max_prompts x limits.max_n)",
            field=field,
        )
