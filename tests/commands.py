"""Runs ``python -m training`` to be broken: each command a process of its own, forked with all imported.

What such a process does is what the command does, from its ``main`` on; only the seconds of imports
are spared. Faults are callables that it calls first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkstemp
from typing import Any, NoReturn

from pydantic import BaseModel

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.commands_preloaded"])
LIMIT_S = 300.0
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}

Fault = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a command.

    Attributes:
        code: its exit status, negative for a signal.
        said: standard output and error together.
    """

    code: int
    said: str
    seconds: float

    @property
    def clear_error(self) -> str | None:
        """The one-line error of a command that ended with one and without a traceback, else None."""
        last = next((line for line in reversed(self.said.splitlines()) if line.strip()), "")
        clear = self.code == 1 and last.startswith("error: ") and "Traceback" not in self.said
        return last.removeprefix("error: ") if clear else None


@dataclass(frozen=True, slots=True)
class Running:
    """A command that runs."""

    process: Any
    log: Path
    begun: float

    def kill(self) -> None:
        """kill -9, of it and of what it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it leads no group yet
            self.process.kill()

    def wait(self, seconds: float = LIMIT_S) -> Ended | None:
        """The end of the command, or ``None`` if it has not ended by then."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            return None
        took = time.perf_counter() - self.begun
        return Ended(self.process.exitcode, self.log.read_text(errors="replace"), took)


@contextmanager
def running(folder: Path, arguments: Sequence[str], *faults: Fault) -> Iterator[Running]:
    """Start a command; it is gone afterwards."""
    handle, log = mkstemp(".log", "command-", folder)
    os.close(handle)
    process = CONTEXT.Process(target=_run, args=(list(arguments), log, faults))
    process.start()
    try:
        yield Running(process, Path(log), time.perf_counter())
    finally:
        if process.exitcode is None:
            process.kill()
        process.join()


def run(folder: Path, arguments: Sequence[str], *faults: Fault) -> Ended:
    """Run a command to its end.

    Raises:
        TimeoutError: it hangs; with what it has said.
    """
    with running(folder, arguments, *faults) as command:
        ended = command.wait()
        if ended is None:
            raise TimeoutError(f"{arguments} hangs:\n{command.log.read_text(errors='replace')}")
        return ended


def flags(config: BaseModel) -> list[str]:
    """Settings as a command line has them."""
    made = []
    for name, value in config.model_dump(mode="json", exclude_defaults=True).items():
        for one in value if isinstance(value, list) else [value]:
            option = f"--{name.replace('_', '-')}"
            made += [option] if one is True else [option, "none" if one is None else str(one)]
    return made


@dataclass(frozen=True)
class KillAtWrite:
    """kill -9 of itself just before it changes a file or directory for the so-manieth time.

    Attributes:
        folder: changes below it count.
        at: the first is 1; 0 never.
        journal: every change is noted there, a line each.
        kinds: audit events that count.
    """

    folder: Path
    at: int = 0
    journal: Path | None = None
    kinds: frozenset[str] = frozenset({"open", *WRITES})

    def __call__(self) -> None:
        seen, folder = 0, str(self.folder)
        note = None if self.journal is None else os.open(self.journal, os.O_WRONLY | os.O_CREAT)

        def watch(event: str, args: tuple[Any, ...]) -> None:
            nonlocal seen
            if event not in self.kinds:
                return
            if event == "open":
                changes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            else:
                changes = True
            # Of a tree that is removed, names come without their directory.
            below = changes and (folder in os.fsdecode(args[0]) if _is_path(args[0]) else False)
            if not below and not (event in {"os.remove", "os.rmdir"} and args[-1] != -1):
                return
            seen += 1
            if note is not None:
                os.write(note, f"{event} {args[0]}\n".encode())
            if seen == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)


def _is_path(value: object) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


def _run(arguments: list[str], log: str, faults: tuple[Fault, ...]) -> None:
    os.setsid()
    _redirect(Path(log))
    for fault in faults:
        fault()
    _command(arguments)


def command_here(arguments: Sequence[str], log: Path) -> NoReturn:
    """Become the command: for a process that was forked for it. Its output goes to ``log``."""
    code: Any = 1
    try:
        _redirect(log)
        _command(arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code or 0)


def _redirect(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(handle, stream)


def _command(arguments: Sequence[str]) -> None:
    import torch

    from training.__main__ import cli

    torch.set_num_threads(1)
    cli(args=list(arguments), prog_name="python -m training")
