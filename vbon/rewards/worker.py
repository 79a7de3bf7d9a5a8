"""Runs a reward model in a child process, so that a crash or hang affects nothing else."""

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

from vbon.child_output import relayed_output
from vbon.concurrency import ended_process
from vbon.errors import CheckpointError, RewardDeadError, RewardError, VbonError
from vbon.rewards.protocol import RewardModel, Scorable
from vbon.rewards.user_errors import describe, hide_texts

logger = logging.getLogger(__name__)

_STOP_S = 5.0
_EXIT_S = 1.0  # a process that has closed its pipe is about to end
_PIPE_BUFFER_BYTES = 32 * 1024  # the pipe accepts this much at once, as it is empty between batches
_PIPE_ERRORS = (EOFError, OSError, pickle.UnpicklingError)


class RewardWorker:
    """A :class:`~vbon.rewards.protocol.RewardModel` that runs another one in a child process.

    ``load`` starts the process, and restarts it after it died. Only one thread at a time may call ``score``
    and ``load``. The child ends when this process ends, for whatever reason.

    Args:
        model: the reward model to run; not yet loaded, and picklable.
        timeout_s: limit of one ``score`` call; when it is exceeded, the process is killed. ``None`` is no
            limit.
        load_timeout_s: the same limit for loading.
        hides_user_errors: leave the texts of exceptions that the model's code raises, which may contain
            prompts, out of errors.
        logs_user_errors: log those that are left out.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        timeout_s: float | None = 60.0,
        load_timeout_s: float = 600.0,
        hides_user_errors: bool = True,
        logs_user_errors: bool = False,
    ) -> None:
        self.name, self.revision = model.name, model.revision
        self._model = model
        self._hides, self._logs_hidden = hides_user_errors, logs_user_errors
        self._timeout_s, self._load_timeout_s = timeout_s, load_timeout_s
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._loaded = False

    @property
    def alive(self) -> bool:
        """True if the model is loaded and its process runs; false during a restart."""
        process = self._process  # read once: the scoring thread may end and close it meanwhile
        with contextlib.suppress(ValueError):
            return self._loaded and process is not None and process.is_alive()
        return False

    @property
    def pid(self) -> int | None:
        """The worker's process id, or ``None`` if it is not running."""
        process = self._process
        with contextlib.suppress(ValueError):
            return None if process is None else process.pid
        return None

    def load(self) -> None:
        """Start the process and load the model in it.

        Raises:
            CheckpointError: the model cannot be used.
            RewardDeadError: the process ended, or loading took too long.
        """
        self._end()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # A daemon is ended when this process exits normally. Otherwise the child sees the pipe close.
        process = context.Process(
            target=_serve,
            args=(theirs, self._model, self._hides, self._logs_hidden),
            name=f"reward {self.name}",
            daemon=True,
        )
        with relayed_output():
            process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        try:
            # A restart loads what the model's path holds by then.
            self.revision = self._receive(self._load_timeout_s, "loading")
        except VbonError:
            self._end()  # a process without a model is useless
            raise
        self._loaded = True

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        """Score the items in the child process.

        Raises:
            RewardDeadError: the process ended, or was killed because it took too long.
            RewardError: the model itself failed.
        """
        self._send(list(items))
        texts = "1 text" if len(items) == 1 else f"{len(items)} texts"
        scores: list[float | None] = self._receive(self._timeout_s, f"scoring {texts}")
        return scores

    def close(self) -> None:
        """End the process."""
        self._end()

    def _send(self, items: list[Scorable]) -> None:
        process, pipe = self._process, self._pipe
        if process is None or pipe is None:
            raise RewardDeadError(f"the worker of reward model {self.name} is not running")
        late = threading.Event()

        def end() -> None:
            late.set()
            with contextlib.suppress(ValueError):  # the process has already ended and been closed
                process.kill()

        data = pickle.dumps(items)
        limit_s = self._timeout_s
        watchdog = threading.Timer(limit_s or 0.0, end)
        watchdog.daemon = True
        # Data beyond the buffer is sent only as the child reads it, so a hanging child would block the
        # send. The timer's thread costs half a millisecond, so smaller batches do without it.
        if limit_s is not None and len(data) > _PIPE_BUFFER_BYTES:
            watchdog.start()
        try:
            pipe.send_bytes(data)
        except _PIPE_ERRORS as error:
            why = self._ending()
            if late.is_set():
                why = f"it accepted no data for {limit_s:g} s and was killed"
            raise self._dead(why) from error
        finally:
            watchdog.cancel()

    def _receive(self, timeout_s: float | None, doing: str) -> Any:
        pipe = self._pipe
        assert pipe is not None
        try:
            if not pipe.poll(timeout_s):
                raise self._dead(f"{doing} took more than {timeout_s:g} s, so it was killed")
            found = pipe.recv()
        except _PIPE_ERRORS as error:
            raise self._dead(f"{self._ending()} while {doing}") from error
        if isinstance(found, Exception):
            raise found
        return found

    def _ending(self) -> str:
        """The end, in words, of the process whose end of the pipe is closed."""
        process = self._process
        if process is None:
            return "it was stopped"
        with contextlib.suppress(ValueError):  # closed meanwhile
            process.join(_EXIT_S)
            return ended_process(process.exitcode)
        return "it was stopped"

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
            # Killed at once: a model has nothing to clean up, and a hanging one would ignore SIGTERM.
            process.kill()
            process.join(_STOP_S)
            # Closed explicitly: a stored error keeps its frames alive, and through them this process
            # object with two descriptors, until the garbage collector runs, which is rare in the service.
            # ValueError: it has not ended yet, for example because it waits for a disk.
            with contextlib.suppress(ValueError):
                process.close()


def _serve(pipe: Connection, model: RewardModel, hides: bool, logs_hidden: bool) -> None:
    """Run the child process: load the model, then score batches until the pipe closes."""
    if hides:
        hide_texts(logs_them=logs_hidden)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    outcome: object
    try:
        model.load()
        outcome = model.revision
    except VbonError as error:
        outcome = error
    except Exception as error:
        why = f"{type(error).__name__}: {error}"  # no prompt has been seen so far
        outcome = CheckpointError(f"cannot load reward model {model.name}: {why}")
    with contextlib.suppress(*_PIPE_ERRORS):
        pipe.send(outcome)
        while True:
            pipe.send(_scored(model, pipe.recv()))


def _scored(model: RewardModel, items: list[Scorable]) -> object:
    try:
        return model.score(items)
    except RewardError as error:
        return error
    except BaseException as error:  # sys.exit(prompt) would print it
        return RewardError(f"scoring failed: {describe(error)}")
