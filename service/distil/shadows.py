"""Shadows: the other side's answers to prompts of mode ``auto``, drawn after the answer to compare both.

The share of the reference policy's candidates that a checkpoint's answer beats is an unbiased estimate of its
win rate over the reference. For an answer of the checkpoint, N candidates of the reference are drawn. That
happens only while the engines have room, and stops as soon as a request waits. For an answer of best-of-N,
whose candidates exist, one sample of the checkpoint is enough, which is as little as a request can ask for.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from service.context.caller import Caller, current_caller
from service.distil.evidence_shares import EvidenceShares, Excess
from service.observability.throttled_log import ThrottledLog
from service.observability.withheld import without_text
from service.runtime.modes import Mode
from service.runtime.prompt import PromptRequest, PromptResult
from service.runtime.routing import Arm
from service.runtime.runtime import Runtime
from service.settings import REFERENCE, ServiceSettings
from service.strategies import Single
from service.strategies.bon import Bon
from vbon.engine import Sampling
from vbon.errors import (
    EngineDeadError,
    EngineError,
    NotReadyError,
    OverloadedError,
    RequestTimeoutError,
    ShuttingDownError,
    VbonError,
)

logger = logging.getLogger(__name__)

# The mode of shadows in metrics and in collected answers.
SHADOW = "shadow"
POLL_S = 0.05  # how long a request may wait before a shadow makes room for it
# Behind every request of an engine that schedules by priority.
_PRIORITY = 1_000_000

# Why an answer was not compared, with the words of docs/distil.md.
SkipReason = (
    Literal[
        "busy",
        "at_once",
        "sampling",
        "no_reward",
        "stopped",
        "unscored",
        "reloaded",
        "failed",
        "fewer_samples",
        "own_limit",
    ]
    | Excess
)


def skip_reasons() -> list[SkipReason]:
    """All reasons for which answers are not compared."""
    return [reason for part in get_args(SkipReason) for reason in get_args(part)]


@dataclass(frozen=True, slots=True)
class Shadowed:
    """The outcome of a comparison.

    Attributes:
        arm: the one that had answered.
        win_rate: as :func:`judged_win_rate`.
        tokens: number of tokens generated for it.
        failed: whether the checkpoint gave no answer, for which it gets a win rate of 0.
        flat: all rewards were equal, the answer's too.
    """

    arm: Arm
    checkpoint: str
    win_rate: float
    tokens: int
    failed: bool = False
    flat: bool = False


@dataclass(frozen=True, slots=True)
class Compared:
    """The checkpoint of a comparison, its test in progress, and whose prompt it is.

    Attributes:
        conversation: a text that all requests of the conversation share.
    """

    checkpoint: str
    test: Hashable
    conversation: str


class Shadows:
    """Draws shadows in the background, a few at once.

    Attributes:
        skipped: answers chosen for a comparison that were not compared, by reason.
        flat: number of comparisons in which all rewards were equal.
        begun: number of times that the tests of a checkpoint have begun.
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
        self.skipped: Counter[SkipReason] = Counter(dict.fromkeys(skip_reasons(), 0))
        self.flat = 0
        self.begun: Counter[str] = Counter()
        # With the id under which the answer may be collected.
        self._tasks: dict[asyncio.Task[bool], str | None] = {}
        distil = self._settings.distil
        self._shares = EvidenceShares(distil.evidence_per_conversation, distil.evidence_per_key)
        self._throttled = ThrottledLog(logger)

    async def stop(self) -> None:
        """Stop all shadows."""
        await self._end(list(self._tasks))

    async def forget(self, request_ids: Collection[str]) -> None:
        """Stop the shadows of these requests, whose answers are being deleted."""
        found = [task for task, name in self._tasks.items() if name in request_ids]
        self.skipped["stopped"] += len(found)
        await self._end(found)

    async def _end(self, tasks: Sequence[asyncio.Task[bool]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def offer(
        self,
        compared: Compared,
        arm: Arm,
        request: PromptRequest,
        result: PromptResult,
        probability: float,
    ) -> None:
        """Compare a checkpoint's answer with this probability; never waits and never raises."""
        if self._random() < probability and self._may(result.sampling) and self._has_room():
            work = self._compare(compared.checkpoint, arm, request, result, current_caller.get())
            self._start(compared, work, request, yields=True)

    def offer_mirrored(
        self,
        compared: Compared,
        policy: str,
        request: PromptRequest,
        result: PromptResult,
        probability: float,
    ) -> None:
        """Compare an answer of best-of-N with a sample of a checkpoint, as :meth:`offer` does.

        It costs one sequence, so it also happens under load; else nothing would be known of a checkpoint
        where best-of-N fills the engines.

        Args:
            policy: the name under which the checkpoint is served.
        """
        if self._random() >= probability:
            return
        if result.policy.revision != self._runtime.policies[REFERENCE].info.revision:
            self.skipped["reloaded"] += 1
        elif len(result.outcome.candidates) < self._settings.auto_n:
            self.skipped["fewer_samples"] += 1  # they do not tell what best-of-N gives up to ties
        elif self._may(result.sampling):
            work = self._compare_mirrored(compared.checkpoint, policy, request, result)
            self._start(compared, work, request, yields=False)

    def offer_failed(
        self, compared: Compared, arm: Arm, request: PromptRequest, probability: float
    ) -> None:
        """Count a checkpoint's failure to answer as a win rate of 0, as often as answers are compared.

        It draws nothing. But where an answer would not be compared, such as under load or without a reward
        model, failures are not counted either, or a checkpoint would have too large a share of them.
        """
        chosen = self._random() < probability and self._may(request.sampling)
        if chosen and self._has_room() and self._has_share(compared):
            self._done(Shadowed(arm, compared.checkpoint, 0.0, 0, failed=True))

    def _has_share(self, compared: Compared) -> bool:
        """True if the comparison leaves its conversation and key in their bounds; else counts it."""
        key = current_caller.get().name
        excess = self._shares.take(compared.checkpoint, compared.test, compared.conversation, key)
        if excess is not None:
            self.skipped[excess] += 1
        return excess is None

    def _start(
        self,
        compared: Compared,
        work: Coroutine[Any, Any, Shadowed | SkipReason],
        request: PromptRequest,
        *,
        yields: bool,
    ) -> None:
        if not self._has_share(compared):
            work.close()
            return
        key = current_caller.get().name
        # An empty context: it is not the caller's request, and its log is not that of the request.
        task = asyncio.create_task(self._run(work, yields), name="shadow", context=Context())
        self._tasks[task] = request.collected_as

        def ended(task: asyncio.Task[bool]) -> None:
            del self._tasks[task]
            work.close()  # it may have been stopped before it began
            if task.cancelled() or not task.result():
                self._shares.give_back(
                    compared.checkpoint, compared.test, compared.conversation, key
                )

        task.add_done_callback(ended)

    def _may(self, sampling: Sampling) -> bool:
        """True if a comparison can tell something, and is not one too many; else counts why not."""
        reason = self._refusal(sampling)
        if reason is not None:
            self.skipped[reason] += 1
        return reason is None

    def _has_room(self) -> bool:
        room = self._settings.distil.shadow_load * self._settings.limits.running_sequences
        fits = self._runtime.admission.running + self._settings.auto_n <= room
        if self._in_the_way or not fits:
            self.skipped["busy"] += 1
            return False
        return True

    def _refusal(self, sampling: Sampling) -> SkipReason | None:
        runtime = self._runtime
        if sampling.temperature == 0:  # N equal candidates
            return "sampling"
        if runtime.reward is None or not runtime.reward.alive:
            return "no_reward"
        if len(self._tasks) >= self._settings.distil.shadows:
            return "at_once"
        return None

    @property
    def _models(self) -> tuple[str, str | None]:
        """Revisions of the reference policy and the reward model in use."""
        reward = self._runtime.reward
        revision = self._runtime.policies[REFERENCE].info.revision
        return revision, None if reward is None else reward.revision

    @property
    def _in_the_way(self) -> bool:
        """True if a request waits or would be refused, or the service is about to stop."""
        admission = self._runtime.admission
        return bool(admission.waiting) or admission.full or self._runtime.in_flight.closing

    async def _run(
        self, comparison: Coroutine[Any, Any, Shadowed | SkipReason], yields: bool
    ) -> bool:
        """Compare an answer unless it gets in the way; True if that has told something."""
        models = self._models
        work = asyncio.create_task(comparison)
        closing = self._runtime.in_flight
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=POLL_S)
                if (self._in_the_way if yields else closing.closing) and not work.done():
                    self.skipped["stopped"] += 1
                    return False
            found = work.result()
        except (OverloadedError, ShuttingDownError):
            self.skipped["busy"] += 1
        except NotReadyError:  # the checkpoint has just left
            self.skipped["stopped"] += 1
        except VbonError as error:
            self.skipped["failed"] += 1
            said = error.log_text or str(error)
            self._throttled.warn(f"an answer of mode auto was not compared: {said}")
        except Exception as error:  # whatever it is, the next shadow must be possible
            self.skipped["failed"] += 1
            told = "an answer of mode auto was not compared"
            self._throttled.unexpected(told, without_text(error))
        else:
            if isinstance(found, Shadowed) and models != self._models:
                found = "reloaded"  # the tests are those of other models now
            if isinstance(found, Shadowed):
                self.flat += found.flat
                self._done(found)
                return True
            self.skipped[found] += 1
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return False

    async def _compare(
        self,
        checkpoint: str,
        arm: Arm,
        request: PromptRequest,
        result: PromptResult,
        caller: Caller,
    ) -> Shadowed | SkipReason:
        shadow = self._request(Mode(SHADOW, Bon(), REFERENCE), request, result)
        drawn = await self._runtime.answer(shadow)
        self._collect(replace(shadow, collected_as=request.collected_as), drawn, caller)
        scorer = drawn.scorer
        assert scorer is not None  # Bon needs one
        answer = await scorer.score(request.prompt, result.outcome.selected.candidate.text)
        if drawn.reward_revision != scorer.revision or _mixed(result, drawn):
            return "reloaded"
        rewards = [one.reward for one in drawn.outcome.candidates]
        found = judged_win_rate(answer, rewards)
        if found is None:
            return "unscored"
        tokens = drawn.outcome.generated_tokens
        return Shadowed(arm, checkpoint, found, tokens, flat=_flat(answer, rewards))

    async def _compare_mirrored(
        self, checkpoint: str, policy: str, request: PromptRequest, result: PromptResult
    ) -> Shadowed | SkipReason:
        shadow = self._request(Mode(SHADOW, Single(), policy), request, result)
        try:
            drawn = await self._runtime.answer(shadow)
        except (EngineError, RequestTimeoutError) as error:
            if not is_its_failure(error):
                raise
            return Shadowed("bon", checkpoint, 0.0, 0, failed=True)
        models = {result.reward_revision, drawn.reward_revision}
        if drawn.scorer is None or models != {drawn.scorer.revision} or _mixed(result, drawn):
            return "reloaded"
        # A request may ask for more candidates, but ties among N of them are what the tests allow for.
        rewards = [one.reward for one in result.outcome.candidates[: self._settings.auto_n]]
        answer = drawn.outcome.selected.reward
        found = judged_win_rate(answer, rewards)
        if found is None:
            return "unscored"
        tokens = drawn.outcome.generated_tokens
        return Shadowed("bon", checkpoint, found, tokens, flat=_flat(answer, rewards))

    def _request(self, mode: Mode, request: PromptRequest, result: PromptResult) -> PromptRequest:
        """The request of a shadow, sampled as the answer was."""
        by_priority = self._runtime.policies[REFERENCE].info.by_priority
        return PromptRequest(
            mode,
            request.prompt,
            # With the request's seed, both sides would be drawn alike.
            replace(
                result.sampling,
                seed=None,
                logprobs=False,
                priority=_PRIORITY if by_priority else 0,
            ),
            self._settings.auto_n,
            f"{request.request_id}-shadow",
        )

    def _collect(self, request: PromptRequest, result: PromptResult, caller: Caller) -> None:
        """Keep the candidates for training if the answer itself might be kept."""
        if self._runtime.collect is None or request.collected_as is None:
            return
        before = current_caller.set(caller)
        try:
            self._runtime.collect(request, result)
        finally:
            current_caller.reset(before)


def is_its_failure(error: EngineError | RequestTimeoutError) -> bool:
    """True if an error counts against the checkpoint that was to answer.

    The server's time limit counts if its engine was decoding then, rather than the request waiting or being
    scored. A limit of the request's own does not: any client could set one that no checkpoint meets. The
    death of its engine does not: it ends all requests at once, and may have any reason.
    """
    if isinstance(error, RequestTimeoutError):
        return error.decoding and not error.own_limit
    return not isinstance(error, EngineDeadError)


def _mixed(*results: PromptResult) -> bool:
    """True if the weights of a policy changed in place while it answered."""
    return any(result.earlier_revisions for result in results)


def judged_win_rate(answer: float | None, rewards: Sequence[float | None]) -> float | None:
    """The win rate of an answer for the tests, whose threshold is that of best-of-N without ties.

    Where several candidates share the highest reward, best-of-N itself wins less than N/(N+1). What it gives
    up to such ties is added, so that a checkpoint is not rolled back for what best-of-N cannot do either. The
    sum is between 0 and 1.5: it may exceed 1 for an answer that beats tied candidates. Cut off at 1, the mean
    would be too low where high rewards are rare, and best-of-N itself would be rolled back.
    An answer without a reward has 0 if a candidate has one: best-of-N would not return it, and a checkpoint
    whose answers cannot be scored must not escape the tests.
    """
    if not any(reward is not None and math.isfinite(reward) for reward in rewards):
        return None
    found = win_rate(answer, rewards)
    return 0.0 if found is None else found + _lost_to_ties(rewards)


def _flat(answer: float | None, rewards: Sequence[float | None]) -> bool:
    """True if all rewards are equal, so that nothing was compared; missing ones are left out."""
    return {answer} == {one for one in rewards if one is not None and math.isfinite(one)}


def _lost_to_ties(rewards: Sequence[float | None]) -> float:
    """The win rate that best-of-N gives up to ties among these candidates.

    The best of the others against each candidate, ties half, estimates the win rate of the best of N - 1. It
    is 1 - 1/N without ties, and 1 - k/(2N) if k share the highest reward.
    """
    others = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
    n, best = len(others), others.count(max(others))
    return 0.0 if best < 2 else (best / 2 - 1) / n + 1 / (n * (n + 1))


def win_rate(answer: float | None, rewards: Sequence[float | None]) -> float | None:
    """The share of rewards below the answer's, ties counted half; ``None`` if it cannot be told.

    Candidates without a finite reward are left out.
    """
    others = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
    if answer is None or not math.isfinite(answer) or not others:
        return None
    below = sum(reward < answer for reward in others)
    return (below + 0.5 * sum(reward == answer for reward in others)) / len(others)
