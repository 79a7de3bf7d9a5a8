"""The collector: takes answers from the runtime, and reports, seals and deletes what is kept of them."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.context.caller import current_caller
from service.distil.loop_progress import ReportedProgress
from service.distil.offered import OfferedAnswer
from service.distil.redaction import open_redaction
from service.distil.writer import Writer
from service.observability.throttled_log import ThrottledLog
from service.observability.withheld import without_text
from service.runtime.prompt import PromptRequest, PromptResult
from service.settings import REFERENCE, DistilSettings
from vbon.distil.directory import Bounds, CollectedDirectory
from vbon.distil.summary import DirectorySummary, summarise
from vbon.errors import StoreError

logger = logging.getLogger(__name__)

_DAY_S = 86_400.0
# Answers of /v1 have ids with these beginnings, which are not part of the request's id.
_ID_PREFIXES = ("cmpl-", "chatcmpl-")


@dataclass(frozen=True, slots=True)
class Deletion:
    """The outcome of a deletion: how many answers were removed from the shards."""

    request_id: str
    lines: int


class Collector:
    """Keeps answers of modes that sample the reference policy, with all their candidates.

    Attributes:
        progress: of the loop that trains on them.

    Raises:
        ExportError: the directory cannot be used, or another process uses it.
        InvalidInputError: the redaction cannot be imported.
    """

    def __init__(
        self, settings: DistilSettings, *, random_number: Callable[[], float] = random.random
    ) -> None:
        assert settings.dir is not None  # callers make a collector only for a directory
        self._settings, self._random = settings, random_number
        self._throttled = ThrottledLog(logger)
        self.progress = ReportedProgress()
        self._excluded = frozenset(settings.exclude_keys)
        redaction = None if settings.redact is None else open_redaction(settings.redact)
        self.writer = Writer(open_directory(settings), redaction, most=settings.queue)

    def start(self) -> None:
        """Begin to write."""
        self.writer.start()

    async def stop(self) -> None:
        """Write what waits, and seal it."""
        await self.writer.stop()

    def offer(self, request: PromptRequest, result: PromptResult) -> None:
        """Queue an answer if it is one to keep; called in the request's task, never waits and never raises.

        Answers of other policies and without rewards are none to keep, and are not counted as dropped.
        """
        mode = request.mode
        if mode.policy != REFERENCE or result.scorer is None or not request.wants_rewards:
            return
        try:
            independent = mode.strategy.independent(request.drawn)
        except Exception as error:  # a plug-in's strategy may raise anything
            told = f"answers of mode {mode.name} are not collected"
            self._throttled.unexpected(told, without_text(error))
            return
        if independent is None:
            return
        dropped, key = self.writer.dropped, current_caller.get().name
        if key in self._excluded:
            dropped["key_excluded"] += 1
        elif self._random() >= self._settings.sampling_rate:
            dropped["not_sampled"] += 1
        elif result.reward_revision != result.scorer.revision or result.earlier_revisions:
            dropped["reloaded"] += 1
        else:
            now_s = self.writer.directory.now_s()
            self.writer.put(OfferedAnswer(request, result, key, independent, now_s))

    async def delete(self, request_id: str) -> Deletion:
        """Remove every answer to a request, also those that wait to be written.

        Args:
            request_id: the id that the answer shows, on any route.

        Raises:
            StoreError: a shard cannot be rewritten.
        """
        ids = collected_ids(request_id)
        directory = self.writer.directory
        with _disk_errors("not every answer to this request was removed"):
            return Deletion(request_id, await self.writer.ask(lambda: directory.delete(ids)))

    async def seal(self) -> None:
        """Seal all shards, so that `vbon distil cache` can use every answer that has been collected.

        Raises:
            StoreError: the disk is full.
        """
        with _disk_errors("not every shard was sealed"):
            await self.writer.ask(self.writer.directory.seal_all)

    async def summary(self) -> DirectorySummary:
        """Counts of the answers that are kept, by identity."""
        directory = self.writer.directory
        return await self.writer.ask(lambda: summarise(directory.contents()))


def collected_ids(request_id: str) -> set[str]:
    """The ids under which the answers to a request may be kept, by the id that one of them shows."""
    return {request_id, *(request_id.removeprefix(prefix) for prefix in _ID_PREFIXES)}


@contextmanager
def _disk_errors(outcome: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        said = error.strerror or error
        raise StoreError(
            f"{outcome}: {said}; free some space in the directory of collected answers, or permit writing, "
            "and send the request again"
        ) from error


def open_directory(settings: DistilSettings) -> CollectedDirectory:
    """The directory of these settings, locked and repaired."""
    assert settings.dir is not None
    days = settings.retention_days
    return CollectedDirectory(
        Path(settings.dir).expanduser(),
        Bounds(
            max_bytes=settings.max_bytes,
            retention_s=None if days is None else days * _DAY_S,
            shard_s=settings.seal_after_s,
            max_key_share=settings.max_key_share,
        ),
    )
