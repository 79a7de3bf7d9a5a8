"""Shadows: best-of-N's candidates for prompts that a checkpoint has answered, drawn afterwards.

The share of the reference policy's candidates that an answer beats is an unbiased estimate of its win rate
over the reference. A shadow is drawn only while the engines have room, and stops as soon as a request waits.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Literal, get_args

from service.context.caller import Caller, current_caller
from service.distil.offered import samples_the_policy
from service.observability.throttled_log import ThrottledLog
from service.observability.withheld import without_text
from service.runtime.modes import Mode
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.routing import Routing
from service.runtime.runtime import Runtime
from service.settings import REFERENCE, ServiceSettings
from service.strategies.bon import Bon
from vbon.errors import OverloadedError, ShuttingDownError, VbonError

logger = logging.getLogger(__name__)

# The mode of shadows in metrics and in collected answers.
SHADOW = "shadow"
POLL_S = 0.05  # how long a request may wait before a shadow makes room for it
# Behind every request of an engine that schedules by priority.
_PRIORITY = 1_000_000

# Why an answer was not compared, with the words of docs/distil.md.
SkipReason = Literal[
    "busy", "at_once", "sampling", "no_reward", "stopped", "unscored", "reloaded", "failed"
]


@dataclass(frozen=True, slots=True)
class Shadowed:
    """The outcome of a comparison.

    Attributes:
        win_rate: share of the reference policy's candidates with a lower reward, ties counted half.
        tokens: number of tokens generated for it.
    """

    routing: Routing
    win_rate: float
    tokens: int


class Shadows:
    """Draws shadows in the background, a few at once.

    Attributes:
        skipped: answers chosen for a comparison that were not compared, by reason.
    """

    def __init__(
        self,
        runtime: Runtime,
        done: Callable[[Shadowed], object],
        *,
        random_number: Callable[[], float] = random.random,
    ) -> None:
        self._runtime, self._done, self._random = runtime, done, random_number
        self._settings: ServiceSettings = runtime.settings
        self.skipped: Counter[SkipReason] = Counter(dict.fromkeys(get_args(SkipReason), 0))
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttled = ThrottledLog(logger)

    async def stop(self) -> None:
        """Stop all shadows."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def offer(
        self, routing: Routing, request: PromptRequest, result: PromptResult, probability: float
    ) -> None:
        """Compare an answer with this probability, in the background; never waits and never raises."""
        if self._random() >= probability:
            return
        reason = self._refusal(result)
        if reason is not None:
            self.skipped[reason] += 1
            return
        # An empty context: it is not the caller's request, and its log is not that of the request.
        task = asyncio.create_task(
            self._run(routing, request, result, current_caller.get()),
            name="shadow",
            context=Context(),
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refusal(self, result: PromptResult) -> SkipReason | None:
        runtime = self._runtime
        if not samples_the_policy(result.sampling):
            return "sampling"
        if runtime.reward is None or not runtime.reward.alive:
            return "no_reward"
        if len(self._tasks) >= self._settings.distil.shadows:
            return "at_once"
        room = self._settings.distil.shadow_load * self._settings.limits.running_sequences
        if self._in_the_way or runtime.admission.running + self._settings.auto_n > room:
            return "busy"
        return None

    @property
    def _in_the_way(self) -> bool:
        """True if a request waits, or the service is about to stop."""
        return bool(self._runtime.admission.waiting) or self._runtime.in_flight.closing

    async def _run(
        self, routing: Routing, request: PromptRequest, result: PromptResult, caller: Caller
    ) -> None:
        """Compare an answer unless it gets in the way."""
        work = asyncio.create_task(self._compare(routing, request, result, caller))
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=POLL_S)
                if self._in_the_way and not work.done():
                    self.skipped["stopped"] += 1
                    return
            found = work.result()
        except (OverloadedError, ShuttingDownError):
            self.skipped["busy"] += 1
        except VbonError as error:
            self.skipped["failed"] += 1
            said = error.log_text or str(error)
            self._throttled.warn(f"an answer of mode auto was not compared: {said}")
        except Exception as error:  # whatever it is, the next shadow must be possible
            self.skipped["failed"] += 1
            told = "an answer of mode auto was not compared"
            self._throttled.unexpected(told, without_text(error))
        else:
            if isinstance(found, Shadowed):
                self._done(found)
            else:
                self.skipped[found] += 1
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _compare(
        self, routing: Routing, request: PromptRequest, result: PromptResult, caller: Caller
    ) -> Shadowed | SkipReason:
        runtime = self._runtime
        by_priority = runtime.policies[REFERENCE].info.by_priority
        shadow = PromptRequest(
            Mode(SHADOW, Bon(), REFERENCE),
            request.prompt,
            # With the request's seed, its answer and the first candidate would be drawn alike.
            replace(
                result.sampling,
                seed=None,
                logprobs=False,
                priority=_PRIORITY if by_priority else 0,
            ),
            self._settings.auto_n,
            f"{request.request_id}-shadow",
        )
        drawn = await runtime.answer(shadow)
        self._collect(replace(shadow, collected_as=request.collected_as), drawn, caller)
        scorer = drawn.scorer
        assert scorer is not None  # Bon needs one
        answer = await scorer.score(request.prompt, result.outcome.selected.candidate.text)
        if drawn.reward_revision != scorer.revision:
            return "reloaded"
        rewards = [one.reward for one in drawn.outcome.candidates]
        found = win_rate(answer, rewards)
        if found is None:
            return "unscored"
        return Shadowed(routing, found, drawn.outcome.generated_tokens)

    def _collect(self, request: PromptRequest, result: PromptResult, caller: Caller) -> None:
        """Keep the candidates for training if the answer itself might be kept."""
        if self._runtime.collect is None or request.collected_as is None:
            return
        before = current_caller.set(caller)
        try:
            self._runtime.collect(request, result)
        finally:
            current_caller.reset(before)


def win_rate(answer: float | None, rewards: Sequence[float | None]) -> float | None:
    """The share of rewards below the answer's, ties counted half; ``None`` if it cannot be told.

    Candidates without a finite reward are left out.
    """
    others = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
    if answer is None or not math.isfinite(answer) or not others:
        return None
    below = sum(reward < answer for reward in others)
    return (below + 0.5 * sum(reward == answer for reward in others)) / len(others)
