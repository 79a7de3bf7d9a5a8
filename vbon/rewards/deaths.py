"""Finds the texts that end a reward worker's process, so that they affect no other text."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pickle
from collections import OrderedDict
from collections.abc import Sequence

from vbon.errors import RewardDeadError, RewardError, VbonError
from vbon.rewards.isolation import IsolatedReward
from vbon.rewards.protocol import RewardModel, Scorable
from vbon.rewards.python_callable import CallableReward
from vbon.rewards.registry import open_reward_model
from vbon.rewards.worker import RewardWorker

logger = logging.getLogger(__name__)

# Each costs a restart, so a batch with more of them fails.
MOST_DEADLY_IN_A_BATCH = 8
MOST_REMEMBERED = 1024

Scores = list[float | None]


class DeathIsolator:
    """A :class:`~vbon.rewards.protocol.RewardModel` in a worker process that a text may end.

    If the process ends or hangs while it scores a batch, it is started again and gets the texts one by one.
    A text that ends it a second time, alone, gets the score ``None`` if the model scores another text;
    otherwise the model is at fault, and the batch fails. Such texts are remembered by their hash and not
    scored again.

    Args:
        supervised: whether someone else starts a process again that ended between two batches.
    """

    def __init__(self, worker: RewardWorker, *, supervised: bool) -> None:
        self.name, self.revision = worker.name, worker.revision
        self._worker, self._supervised = worker, supervised
        self._known_good: Scorable | None = None
        self._deadly: OrderedDict[bytes, None] = OrderedDict()
        self._interrupted = False

    def load(self) -> None:
        """Start the process and load the model in it.

        Raises:
            CheckpointError: the model cannot be used.
            RewardDeadError: the process ended, or loading took too long.
        """
        self._worker.load()
        if self._worker.revision != self.revision:  # another model, whose texts at fault are others
            self._known_good = None
            self._deadly.clear()
        self.revision = self._worker.revision

    def score(self, items: Sequence[Scorable]) -> Scores:
        """The scores, with ``None`` for texts on which the process ends.

        Raises:
            RewardDeadError: the process ends whatever the texts, or is not running and is supervised.
            RewardError: the model itself failed.
        """
        if not self._deadly:
            return self._scores(items)
        deadly = [_key(item) in self._deadly for item in items]
        rest = [item for item, known in zip(items, deadly, strict=True) if not known]
        found = iter(self._scores(rest) if rest else [])
        return [None if known else next(found) for known in deadly]

    def interrupt(self) -> None:
        """Make a running call end at its next text; may be called from another thread."""
        self._interrupted = True

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _scores(self, items: Sequence[Scorable]) -> Scores:
        if not self._worker.alive and not self._supervised:
            self._restart()
        running = self._worker.alive
        try:
            scores = self._worker.score(items)
        except RewardDeadError as error:
            if not running:
                raise
            return self._singly(items, error)
        self._note(items, scores)
        return scores

    def _singly(self, items: Sequence[Scorable], error: RewardDeadError) -> Scores:
        """Score a batch that ended the process, text by text.

        Raises:
            RewardDeadError: no text could be scored, or too many ended the process.
        """
        logger.warning("%s; its %d texts are scored one by one", error, len(items))
        scores: Scores = []
        deadly: dict[bytes, RewardDeadError] = {}
        failed: RewardError = error
        for item in items:
            key = _key(item)
            if key in deadly:
                scores.append(None)
                continue
            if not self._worker.alive:
                self._restart()
            try:
                [score] = self._worker.score([item])
            except RewardDeadError as died:
                deadly[key], failed, score = died, died, None
                if len(deadly) > MOST_DEADLY_IN_A_BATCH:
                    raise
            except RewardError as other:  # the first text of a process, on which the model fails
                failed, score = other, None
            self._note([item], [score])
            scores.append(score)
        if self._known_good is None:
            raise failed
        for key, death in deadly.items():
            self._remember(key, death)
        if not self._worker.alive:
            with contextlib.suppress(VbonError):  # the next call, or the supervisor, tries again
                self._restart()
        return scores

    def _restart(self) -> None:
        """Start the process again, and see that it still scores the text that it scored before.

        Raises:
            RewardDeadError: it cannot be started, or ends at that text too.
        """
        if self._interrupted:
            raise RewardDeadError(f"the worker of reward model {self.name} is being stopped")
        try:
            self.load()
        except RewardDeadError:
            raise
        except VbonError as error:
            raise RewardDeadError(
                f"the worker of reward model {self.name} died and cannot be started again: {error}"
            ) from error
        if self._known_good is not None:
            self._worker.score([self._known_good])

    def _note(self, items: Sequence[Scorable], scores: Scores) -> None:
        if self._known_good is None:
            scored = zip(items, scores, strict=True)
            self._known_good = next((item for item, score in scored if score is not None), None)

    def _remember(self, key: bytes, died: RewardDeadError) -> None:
        self._deadly[key] = None
        if len(self._deadly) > MOST_REMEMBERED:
            self._deadly.popitem(last=False)
        logger.warning(
            "%s; it was scoring one text, which gets no reward and is not scored again", died
        )


def open_unsupervised(
    spec: str, *, trust_remote_code: bool = False, batch_size: int = 64
) -> RewardModel:
    """Open a reward model for a command, which nobody watches; it is not loaded yet.

    Code of users and of packages runs in a process of its own, without time limits and with its errors in
    full. A classifier shares the command's process and device.

    Raises:
        CheckpointError, InvalidInputError: as :func:`open_reward_model`.
    """
    model = open_reward_model(spec, trust_remote_code=trust_remote_code, batch_size=batch_size)
    if not isinstance(model, CallableReward | IsolatedReward):
        return model
    worker = RewardWorker(model, timeout_s=None, hides_user_errors=False)
    return DeathIsolator(worker, supervised=False)


def _key(item: Scorable) -> bytes:
    return hashlib.sha256(pickle.dumps(item)).digest()
