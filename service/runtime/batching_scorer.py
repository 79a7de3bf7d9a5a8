"""A scorer that batches candidates across requests and scores them in one worker thread."""

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

from service.observability.throttled_log import ThrottledLog
from service.observability.withheld import without_text
from service.runtime.served_scorer import ServedScorer
from vbon.errors import RewardDeadError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import RewardModel, Scorable
from vbon.trace_context import NO_TRACE, trace_headers

logger = logging.getLogger(__name__)

# Model calls have time limits of their own, except calls into user-supplied Python, which cannot be
# interrupted. A process has 10 s (Docker) to 90 s (systemd) in all between SIGTERM and SIGKILL.
_CLOSE_S = 5.0


@runtime_checkable
class _Interruptible(Protocol):
    """A model whose running call can be interrupted."""

    def interrupt(self) -> None:
        """Make the running call fail; called from another thread."""


class MeteredScorer:
    """The scorer of one request; measures how long at least one of its candidates was being scored.

    Attributes:
        busy_s: seconds in which at least one score was awaited, batching and queueing included.
        used: whether a score was asked for.
    """

    def __init__(self, scorer: ServedScorer) -> None:
        self.name, self.revision = scorer.name, scorer.revision
        self.busy_s = 0.0
        self.used = False
        self._scorer = scorer
        self._pending = 0
        self._since = 0.0

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """The raw reward; as :meth:`ServedScorer.score`."""
        if self._pending == 0:
            self._since = perf_counter()
        self.used = True
        self._pending += 1
        try:
            return await self._scorer.score(prompt, completion)
        finally:
            self._pending -= 1
            if self._pending == 0:
                self.busy_s += perf_counter() - self._since


@dataclass(frozen=True, slots=True)
class _PendingScore:
    """A candidate that waits for its score, the future of that score, and the request's trace headers."""

    item: Scorable
    future: asyncio.Future[float | None]
    trace: Mapping[str, str]


class BatchingScorer:
    """Scores candidates in batches: those that arrive during one batch form the next.

    Nothing waits for a timer. Candidates whose request was cancelled are dropped before scoring.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        max_batch: int = 256,
        runs: Callable[[], bool] = lambda: True,
    ) -> None:
        """Wrap a model that is not loaded yet.

        Args:
            runs: returns whether the model's process is running.
        """
        self.name = model.name
        self._model = model
        self._runs = runs
        self._max_batch = max_batch
        self._waiting: list[_PendingScore] = []
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward")
        self._loop_task: asyncio.Task[None] | None = None
        self._throttled = ThrottledLog(logger)

    @property
    def revision(self) -> str:
        """The model's revision, which a restart may change: it loads what the model's path holds by then."""
        return self._model.revision

    @property
    def alive(self) -> bool:
        """True if the scorer has been started and its model's process is running."""
        return self._loop_task is not None and self._runs()

    @property
    def waiting(self) -> int:
        """The number of waiting candidates whose request has not been cancelled."""
        return sum(not waiting.future.done() for waiting in self._waiting)

    async def start(self) -> None:
        """Load the model and start serving; also restarts a model that has died.

        Raises:
            CheckpointError: the model cannot be used.
            RewardDeadError: the model's process ended while loading.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._load)
        if self._loop_task is None:
            # An empty context, so that this task does not log under the request that caused a reload.
            self._loop_task = asyncio.create_task(
                self._serve(), name="reward-scorer", context=Context()
            )

    def _load(self) -> None:
        """Load the model, in the worker thread; a model that its last call has restarted runs already."""
        if not self.alive:
            self._model.load()

    async def check(self) -> None:
        """Do nothing. A model that hangs is detected by the time limit of its next call."""

    async def stop(self) -> None:
        """Fail the waiting candidates and close the model; waits at most 5 s for its running call."""
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
            logger.warning(
                "%s did not end its running call within %g s; no longer waiting for it",
                self.name,
                _CLOSE_S,
            )

    async def warm_up(self) -> None:
        """Score one text, so that the first request does not wait for torch's lazy initialisation.

        Errors are ignored, because a remote scorer may start later than this service.
        """
        with contextlib.suppress(RewardError):
            await self.score(Prompt(text="warm"), " up")

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        """The raw reward, or ``None`` if the model cannot score this text.

        Raises:
            RewardError: scoring its batch failed.
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
            except Exception as error:  # a failed batch fails its requests, and the loop goes on
                self._log_failure(error, len(batch))
                self._fail(batch, error)
                continue
            for waiting, score in zip(batch, scores, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(score)

    def _log_failure(self, error: Exception, candidates: int) -> None:
        """Log why a batch failed; requests can make any number of batches fail."""
        if isinstance(error, RewardDeadError):
            self._throttled.warn(f"{error}; its candidates were not scored")
        elif isinstance(error, RewardError):
            self._throttled.warn(f"{self.name} failed on a batch of candidates: {error}")
        else:
            told = f"{self.name} failed on {candidates} candidates"
            self._throttled.unexpected(told, without_text(error))

    def _score_batch(self, batch: list[_PendingScore]) -> list[float | None]:
        """Score a batch, in the worker thread.

        A remote scorer receives the trace headers if the whole batch belongs to one request.
        """
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
        known = (
            error
            if isinstance(error, RewardError)
            else RewardError(f"scoring failed: {type(error).__name__}")
        )
        for waiting in batch:
            if not waiting.future.done():
                waiting.future.set_exception(known)
