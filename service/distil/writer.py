"""The thread that writes collected answers; requests only put them into its queue."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar, get_args

from service.distil.offered import DropReason, Identities, OfferedAnswer, collected_answer
from service.distil.redaction import Redaction, redacted
from service.observability.throttled_log import ThrottledLog
from service.observability.withheld import without_text
from vbon.distil.answer import CollectedAnswer, Identity
from vbon.distil.directory import CollectedDirectory
from vbon.errors import DataError, ShuttingDownError

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.1  # how long an answer waits before the thread looks at the queue
TICK_S = 1.0  # between two looks at age and disk
LOG_EVERY_S = 60.0
# Tokens that may wait, since a queue of few long answers would hold much memory too.
MOST_TOKENS = 8_000_000
BATCH = 64  # answers that are prepared before they are written
_CLOSE_S = 20.0


@dataclass(frozen=True, slots=True)
class _Ready:
    """An answer in the form of a shard, and how many of its candidates were left out."""

    identity: Identity
    answer: CollectedAnswer
    left_out: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of the directory's content; replaced as a whole, so that another thread can read them."""

    lines: int = 0
    size: int = 0
    open: int = 0
    sealed: int = 0


class Writer:
    """Writes answers in a thread of its own, and does everything else that touches the directory.

    Putting an answer into the queue takes no lock and wakes nobody: the thread looks every :data:`POLL_S`.
    It never ends because of an answer, of a full disk or of the redaction.

    Attributes:
        dropped: answers that were not kept, by reason. The event loop counts ``queue_full`` and what it
            excludes; the thread counts the rest.
        lines: answers written; ``candidates``: their candidates.
        left_out: candidates of these answers without a reward or tokens.
        totals: what the directory held when the thread looked last.
    """

    def __init__(
        self, directory: CollectedDirectory, redaction: Redaction | None, *, most: int
    ) -> None:
        self.directory, self._redaction, self._most = directory, redaction, most
        self.dropped: Counter[str] = Counter(dict.fromkeys(drop_reasons(), 0))
        self.lines = self.candidates = self.left_out = 0
        self.totals = Totals()
        self._queue: deque[OfferedAnswer] = deque()
        # Each is written by one thread only, so that no lock is needed.
        self._tokens_put = self._tokens_taken = 0
        self._asked: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Event()
        self._stopping = self._ended = False
        self._identities = Identities()
        self._throttled = ThrottledLog(logger, every_s=LOG_EVERY_S)
        self._thread = threading.Thread(target=self._run, name="distil-writer", daemon=True)
        self._note_totals()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """The number of answers that wait to be written."""
        return len(self._queue)

    def put(self, offered: OfferedAnswer) -> None:
        """Queue an answer, or drop it if too much is waiting; called by the event loop, never waits."""
        tokens = offered.result.outcome.generated_tokens
        waiting = self._tokens_put - self._tokens_taken
        if len(self._queue) >= self._most or waiting + tokens > MOST_TOKENS:
            self.dropped["queue_full"] += 1
            return
        self._tokens_put += tokens
        self._queue.append(offered)

    async def ask(self, question: Callable[[], T]) -> T:
        """Run a function in the thread, after the answers that wait now.

        Raises:
            ShuttingDownError: the thread has ended or is about to.
        """
        future: Future[T] = Future()
        self._asked.append((question, future))
        self._wake.set()
        if self._ended:
            self._refuse_questions()
        return await asyncio.wrap_future(future)

    async def stop(self) -> None:
        """Write what waits, seal the shards and end the thread; waits at most 20 s for the disk."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _CLOSE_S)
            if self._thread.is_alive():
                logger.warning(
                    "collected answers were not all written within %g s; no longer waiting",
                    _CLOSE_S,
                )
        else:
            self._ended = True
            self._refuse_questions()
            self.directory.close()

    def _run(self) -> None:
        ticked_s = monotonic()
        while not self._stopping:
            self._wake.wait(POLL_S)
            self._wake.clear()
            self._write_waiting()
            while self._asked:
                question = self._asked.popleft()
                self._write_waiting()  # answers that came before the question
                self._answer(*question)
            if monotonic() - ticked_s >= TICK_S:
                self._guarded(self.directory.tick)
                ticked_s = monotonic()
            self._note_totals()
        self._write_waiting()
        self._guarded(self.directory.close)
        self._note_totals()
        # Set before the last look, so that whoever asks later refuses its own question.
        self._ended = True
        self._refuse_questions()

    def _write_waiting(self) -> None:
        """Write what waits now, many answers at once.

        Each write lets go of Python's lock, so that many of them would stop the event loop again and again.
        """
        left = len(self._queue)
        while left:
            batch = min(left, BATCH)
            left -= batch
            ready: dict[str, list[_Ready]] = {}  # by the digest of the identity
            for _ in range(batch):
                offered = self._queue.popleft()
                self._tokens_taken += offered.result.outcome.generated_tokens
                try:
                    found = self._ready(offered)
                except Exception as error:  # the thread must outlive whatever one answer does to it
                    self._fail(error)
                    continue
                if isinstance(found, _Ready):
                    ready.setdefault(found.identity.digest, []).append(found)
                else:
                    self.dropped[found] += 1
            for same in ready.values():
                self._append(same)

    def _ready(self, offered: OfferedAnswer) -> _Ready | DropReason:
        """An answer as a shard has it, or the reason why it is not kept."""
        answer = collected_answer(offered, self.directory.key_hash(offered.key))
        if not isinstance(answer, CollectedAnswer):
            return answer
        if self._redaction is not None:
            try:
                changed = redacted(self._redaction, answer)
            except DataError as error:
                self._throttled.warn(f"an answer was not collected: {error}")
                return "redaction_failed"
            except Exception as error:  # the user's function may raise anything
                self._throttled.unexpected(
                    "an answer was not collected, because distil.redact failed", without_text(error)
                )
                return "redaction_failed"
            if changed is None:
                return "redacted"
            answer = changed
        left_out = len(offered.result.outcome.candidates) - len(answer.rewards)
        return _Ready(self._identities.of(offered.result), answer, left_out)

    def _append(self, ready: Sequence[_Ready]) -> None:
        """Keep answers of one identity."""
        try:
            outcomes = self.directory.append_all(ready[0].identity, [one.answer for one in ready])
        except Exception as error:  # see above
            self._fail(error, len(ready))
            return
        for one, outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, OSError):
                self.dropped["disk"] += 1
                self._throttled.warn(_disk_trouble(self.directory, outcome))
            elif outcome is not None:
                self.dropped[outcome] += 1
            else:
                self.lines += 1
                self.candidates += len(one.answer.rewards)
                self.left_out += one.left_out

    def _fail(self, error: Exception, answers: int = 1) -> None:
        self.dropped["failed"] += answers
        self._throttled.unexpected("an answer was not collected", without_text(error))

    def _answer(self, question: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(question())
        except Exception as error:  # whoever asked gets it
            future.set_exception(error)

    def _refuse_questions(self) -> None:
        while True:
            try:
                _, future = self._asked.popleft()
            except IndexError:
                return
            if future.set_running_or_notify_cancel():
                future.set_exception(ShuttingDownError("the service is shutting down"))

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            self._throttled.warn(_disk_trouble(self.directory, error))
        except Exception as error:  # see above
            self._throttled.unexpected("collected answers need attention", without_text(error))

    def _note_totals(self) -> None:
        directory = self.directory
        self.totals = Totals(
            directory.lines, directory.size, len(directory.open), len(directory.sealed)
        )


def drop_reasons() -> list[str]:
    """All reasons for which answers are not kept."""
    return [reason for part in get_args(DropReason) for reason in get_args(part)]


def _disk_trouble(directory: CollectedDirectory, error: OSError) -> str:
    return (
        f"answers are not collected: cannot write in {directory.path}: {error.strerror or error}; free some "
        "space there, or permit writing"
    )
