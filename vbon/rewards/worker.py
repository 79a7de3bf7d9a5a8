"""A reward model in a process of its own: one that crashes or hangs takes nothing else with it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from vbon.errors import CheckpointError, RewardDeadError, RewardError, VbonError
from vbon.rewards.protocol import RewardModel, Scorable

logger = logging.getLogger(__name__)

_STOP_S = 5.0
_BUFFERED = 32 * 1024  # bytes that the pipe takes at once, as it is empty between batches
_BROKEN = (EOFError, OSError, pickle.UnpicklingError)


class RewardWorker:
    """The :class:`~vbon.rewards.protocol.RewardModel` of another, run in a child process.

    ``load`` starts it, and starts it again once it has died; ``score`` and ``load`` are for one thread
    at a time. The child ends when this process does, however that ends.

    Args:
        model: not loaded, and fit to be pickled.
        timeout_s: a call that takes longer means that it hangs: the process is ended.
        load_timeout_s: the same of loading.
    """

    def __init__(
        self, model: RewardModel, *, timeout_s: float = 60.0, load_timeout_s: float = 600.0
    ) -> None:
        self.name, self.revision = model.name, model.revision
        self._model = model
        self._timeout_s, self._load_timeout_s = timeout_s, load_timeout_s
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._loaded = False

    @property
    def alive(self) -> bool:
        """Whether it has been loaded and its process runs; not while it is loaded again."""
        process = self._process  # other threads ask, while that of `score` may end and close it
        with contextlib.suppress(ValueError):
            return self._loaded and process is not None and process.is_alive()
        return False

    @property
    def pid(self) -> int | None:
        """Of its process."""
        process = self._process
        with contextlib.suppress(ValueError):
            return None if process is None else process.pid
        return None

    def load(self) -> None:
        """Start the process and load the model there.

        Raises:
            CheckpointError: the model cannot be used.
            RewardDeadError: the process ended, or took too long.
        """
        self._end()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # daemon: ended with this process where that ends in order; else the child reads the pipe's end.
        process = context.Process(
            target=_serve, args=(theirs, self._model), name=f"reward {self.name}", daemon=True
        )
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        try:
            self._answer(self._load_timeout_s, "loading")
        except VbonError:
            self._end()  # a process without a model is of no use
            raise
        self._loaded = True

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Score there.

        Raises:
            RewardDeadError: the process is gone, or was ended because it took too long.
            RewardError: what the model raised.
        """
        self._send(list(items))
        scores: list[float | None] = self._answer(self._timeout_s, f"scoring {len(items)} texts")
        return scores

    def close(self) -> None:
        """End the process."""
        self._end()

    def _send(self, items: list[Scorable]) -> None:
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            raise RewardDeadError(f"the worker of reward model {self.name} does not run")
        late = threading.Event()

        def end() -> None:
            late.set()
            with contextlib.suppress(ValueError):  # it has ended meanwhile, and is closed
                process.kill()

        data = pickle.dumps(items)
        watchdog = threading.Timer(self._timeout_s, end)
        watchdog.daemon = True
        if len(data) > _BUFFERED:  # the rest goes only as the child reads; a thread costs half a ms
            watchdog.start()
        try:
            pipe.send_bytes(data)
        except _BROKEN as error:
            why = "its process ended"
            if late.is_set():
                why = f"it took nothing in {self._timeout_s:g} s, so it was ended"
            raise self._dead(why) from error
        finally:
            watchdog.cancel()

    def _answer(self, timeout_s: float, doing: str) -> Any:
        pipe = self._pipe
        assert pipe is not None
        try:
            if not pipe.poll(timeout_s):
                raise self._dead(f"{doing} took more than {timeout_s:g} s, so it was ended")
            found = pipe.recv()
        except _BROKEN as error:
            raise self._dead(f"its process ended while {doing}") from error
        if isinstance(found, Exception):
            raise found
        return found

    def _dead(self, why: str) -> RewardDeadError:
        self._end()
        return RewardDeadError(f"the worker of reward model {self.name} died: {why}")

    def _end(self) -> None:
        self._loaded = False
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            # A model has nothing to put in order, and one that hangs would not hear a gentler word.
            process.kill()
            process.join(_STOP_S)
            # Whoever keeps the error keeps the frames it came through, and they the process: its two
            # descriptors would stay until the garbage collector comes by, which is seldom in the service.
            with contextlib.suppress(ValueError):  # it would not end, as one that waits for a disk
                process.close()


def _serve(pipe: Connection, model: RewardModel) -> None:
    """What the child runs: answers batches until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    answer: object
    try:
        model.load()
        answer = None
    except VbonError as error:
        answer = error
    except Exception as error:
        answer = CheckpointError(f"cannot load reward model {model.name}: {_told(error)}")
    with contextlib.suppress(*_BROKEN):
        pipe.send(answer)
        while True:
            pipe.send(_scored(model, pipe.recv()))


def _scored(model: RewardModel, items: list[Scorable]) -> object:
    try:
        return model.score(items)
    except RewardError as error:
        return error
    except Exception as error:
        return RewardError(f"scoring failed: {_told(error)}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
