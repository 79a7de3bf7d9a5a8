"""Batches scoring across requests, in one worker thread, off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, runtime_checkable

from vbon.errors import RewardDeadError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import RewardModel, Scorable
from vbon.trace_context import NO_TRACE, trace_headers

logger = logging.getLogger(__name__)

# Model calls have limits of their own, all but those of other people's Python, which nothing can end; a
# supervisor gives the whole process 10 s (Docker) to 90 s (systemd) from SIGTERM to SIGKILL.
_CLOSE_S = 5.0


@runtime_checkable
class _Interruptible(Protocol):
    """A model whose call under way can be broken off."""

    def interrupt(self) -> None:
        """Break it off, from another thread; it fails."""


class MeteredScorer:
    """A scorer for one request, which adds up how long any of its candidates was being scored.

    Attributes:
        busy_s: seconds in which at least one score was awaited, batching and queueing included.
    """

    def __init__(self, scorer: BatchingScorer) -> None:
        self.name, self.revision = scorer.name, scorer.revision
        self.busy_s = 0.0
        self._scorer = scorer
        self._pending = 0
        self._since = 0.0

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """As the scorer does."""
        if self._pending == 0:
            self._since = perf_counter()
        self._pending += 1
        try:
            return await self._scorer.score(prompt, completion)
        finally:
            self._pending -= 1
            if self._pending == 0:
                self.busy_s += perf_counter() - self._since


@dataclass(frozen=True, slots=True)
class _PendingScore:
    """A candidate, its reward to come, and the trace it belongs to."""

    item: Scorable
    future: asyncio.Future[float | None]
    trace: Mapping[str, str]


class BatchingScorer:
    """Whatever arrives while one batch is being scored makes up the next; nothing waits for a timer.

    Candidates whose request has gone are dropped before they are scored.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        max_batch: int = 256,
        runs: Callable[[], bool] = lambda: True,
    ) -> None:
        """A scorer around a model that is not loaded; ``runs`` tells whether the model's process does."""
        self.name, self.revision = model.name, model.revision
        self._model = model
        self._runs = runs
        self._max_batch = max_batch
        self._waiting: list[_PendingScore] = []
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether it has been started and its model still runs."""
        return self._loop_task is not None and self._runs()

    @property
    def waiting(self) -> int:
        """Candidates that wait for a score and whose request is still there."""
        return sum(not waiting.future.done() for waiting in self._waiting)

    async def start(self) -> None:
        """Load the model and begin to serve; the same once the model has died.

        Raises:
            CheckpointError: the model cannot be used.
            RewardDeadError: its process ended while it was loading.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._model.load)
        if self._loop_task is None:
            # In a context of its own: it outlives a reload, and is none of that request's log.
            self._loop_task = asyncio.create_task(
                self._serve(), name="reward-scorer", context=Context()
            )

    async def check(self) -> None:
        """Nothing: a model that hangs is found by the call that it does not answer."""

    async def stop(self) -> None:
        """Fail what waits and free the model; one that does not end its call is left to the process's end."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._fail(self._waiting, RewardError("the service is shutting down"))
        self._waiting.clear()
        if isinstance(self._model, _Interruptible):
            self._model.interrupt()
        closing = asyncio.get_running_loop().run_in_executor(self._worker, self._model.close)
        await asyncio.wait({closing}, timeout=_CLOSE_S)
        self._worker.shutdown(wait=False)
        if closing.done():
            closing.result()
        else:
            logger.warning("%s does not end its call; not waiting for it any longer", self.name)

    async def warm_up(self) -> None:
        """Score once, so that the first request does not pay for what torch does lazily.

        What it says is not looked at: a remote scorer may come up after this service.
        """
        with contextlib.suppress(RewardError):
            await self.score(Prompt(text="warm"), " up")

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """One raw reward; ``None`` if the model has none for this text.

        Raises:
            RewardError: if the batch it was in failed.
        """
        future: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(
            _PendingScore(Scorable(prompt, completion), future, trace_headers.get())
        )
        self._arrived.set()
        return await future

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._take_batch()
            if not batch:
                continue
            try:
                scores = await loop.run_in_executor(self._worker, self._score_batch, batch)
                if len(scores) != len(batch):
                    raise RewardError(
                        f"{self.name} returned {len(scores)} scores for {len(batch)} candidates"
                    )
            except asyncio.CancelledError:
                self._fail(batch, RewardError("the service is shutting down"))
                raise
            except Exception as error:  # a failed batch must fail its requests, not this loop
                if isinstance(error, RewardDeadError):
                    logger.error("%s; %d candidates are not scored", error, len(batch))
                else:
                    logger.exception("%s failed on %d candidates", self.name, len(batch))
                self._fail(batch, error)
                continue
            for waiting, score in zip(batch, scores, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(score)

    def _score_batch(self, batch: list[_PendingScore]) -> list[float | None]:
        """In the worker's thread. A scorer elsewhere is told the trace if all of the batch is of the same."""
        trace = batch[0].trace
        same = all(waiting.trace is trace for waiting in batch)
        trace_headers.set(trace if same else NO_TRACE)
        return self._model.score([waiting.item for waiting in batch])

    def _take_batch(self) -> list[_PendingScore]:
        wanted = [waiting for waiting in self._waiting if not waiting.future.done()]
        batch, self._waiting = wanted[: self._max_batch], wanted[self._max_batch :]
        if not self._waiting:
            self._arrived.clear()
        return batch

    @staticmethod
    def _fail(batch: list[_PendingScore], error: Exception) -> None:
        known = error if isinstance(error, RewardError) else RewardError(f"scoring failed: {error}")
        for waiting in batch:
            if not waiting.future.done():
                waiting.future.set_exception(known)
