"""Load tests that this server runs against itself, one at a time, each in a process of its own.

In the server's own process, the load generator would share the event loop that it measures. The process talks
to the server over its socket like any client, with the key of the caller who started it, so admission and
the key's limits apply to it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from service.context.caller import Caller
from service.hosted_loadtests.files import (
    WorkingFiles,
    delete_oldest,
    last_line,
    last_line_of_file,
    read_json,
    write_inputs,
)
from service.schemas.loadtests import State
from service.settings import REMOTE_API_KEY
from service.store.async_store import AsyncStore
from vbon.concurrency import ended_process
from vbon.errors import (
    BusyError,
    ExportError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    StoreError,
)
from vbon.prompts import Prompt

logger = logging.getLogger(__name__)

ROOM_S = 180.0  # time beside the blocks: to start, calibrate, score and report
# Time for a stopped run to write its report; less if the server ends too.
_STOP_S, _CLOSE_S = 30.0, 8.0
_RENDER_S = 60.0
# A result is worth more patience than an answer: a locked store is tried again.
_STORE_S, _STORE_AGAIN_S = 30.0, 1.0
_MAX_KEPT = 8  # runs of this process whose files are kept
_COMMAND = (sys.executable, "-m", "service.loadtest")


@dataclass
class Run:
    """One load test of this process.

    Attributes:
        owner: name of the key that started it; empty if the server requires no keys.
        planned_s: duration of all blocks; ``None`` if they end after a number of requests.
        directory: holds the files that the child process writes.
    """

    id: str
    owner: str
    directory: Path
    tags: tuple[str, ...]
    planned_s: float | None
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: State = "running"
    message: str | None = None
    process: asyncio.subprocess.Process | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    watching: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        """True while it measures or writes its results."""
        return self.state in ("running", "stopping")

    def progress(self) -> dict[str, Any]:
        """The progress that the child process has written, or an empty dictionary."""
        return read_json(self.directory / "progress.json") or {}

    def result_text(self) -> str | None:
        """The result so far as JSON text, or ``None``."""
        with contextlib.suppress(OSError):
            return (self.directory / "result.json").read_text(encoding="utf-8")
        return None


class LoadTestRuns:
    """Starts, watches and stops load tests, and puts their results into the store."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._files = WorkingFiles()
        self._runs: dict[str, Run] = {}
        self._rendering = asyncio.Lock()
        self._closing = asyncio.Event()

    @property
    def current(self) -> Run | None:
        """The load test that runs or ran last, or ``None``."""
        return next(reversed(self._runs.values()), None)

    def find(self, run_id: str) -> Run | None:
        """The load test of this process with this id, or ``None``."""
        return self._runs.get(run_id)

    async def start(
        self,
        settings: Mapping[str, Any],
        prompts: Sequence[Prompt] | None,
        *,
        caller: Caller,
        token: str | None,
        tags: Sequence[str],
        planned_s: float | None,
        limit_s: float,
    ) -> Run:
        """Start a load test.

        Args:
            settings: values of :class:`service.loadtest.config.LoadTestSettings` by name.
            token: API key that the load test sends.
            limit_s: time after which the load test is stopped.

        Raises:
            OverloadedError: another load test is running.
            ExportError: its files cannot be written.
        """
        last = self.current
        if last is not None and last.active:
            raise OverloadedError(
                f"load test {last.id} is running, and only one can run at a time, because two would measure "
                f"each other; wait for it, or stop it with DELETE /loadtests/{last.id}",
                retry_after_s=max(5.0, last.planned_s or 0.0),
            )
        run_id = uuid.uuid4().hex[:12]
        try:
            directory = self._files.directory(run_id)
        except OSError as error:
            raise ExportError(f"could not start a load test: {error.strerror}") from error
        run = Run(run_id, caller.name, directory, tuple(tags), planned_s)
        self._runs[run_id] = run  # before the first await, so that no second one can start
        try:
            config = await asyncio.to_thread(write_inputs, directory, run_id, settings, prompts)
            run.process = await self._spawn(run, config, token)
        except BaseException as error:
            run.state, run.message = "failed", "the process could not be started"
            if isinstance(error, OSError):
                raise ExportError(f"could not start a load test: {error.strerror}") from error
            raise
        run.watching = asyncio.create_task(self._watch(run, limit_s), name=f"loadtest-{run_id}")
        self._forget_old()
        return run

    def stop(self, run: Run, caller: Caller) -> None:
        """Ask a load test to end and to report what it has measured; returns at once.

        Raises:
            ForbiddenError: another key started it.
        """
        if not caller.is_admin and caller.name != run.owner:
            raise ForbiddenError(
                f"load test {run.id} was started with another key; only that key or an admin's can stop it"
            )
        _ask_to_end(run)

    def forget(self, run_id: str) -> None:
        """Delete the files of a load test that has ended; does nothing if this process did not run it.

        Raises:
            BusyError: it is still running.
        """
        run = self._runs.get(run_id)
        if run is None:
            return
        if run.active:
            raise BusyError(
                f"load test {run_id} is running, so it cannot be deleted; stop it first with DELETE "
                f"/loadtests/{run_id}"
            )
        del self._runs[run_id]
        shutil.rmtree(run.directory, ignore_errors=True)

    async def close(self) -> None:
        """End all load tests, give them some seconds to report, and delete all files."""
        self._closing.set()
        running = [run for run in self._runs.values() if run.watching is not None]
        for run in running:
            _ask_to_end(run, "the server was stopped")
        waited = [run.watching for run in running if run.watching is not None]
        if waited:
            await asyncio.wait(waited, timeout=_CLOSE_S)
        for run in running:
            if run.process is not None and run.process.returncode is None:
                run.process.kill()
        await asyncio.gather(*waited, return_exceptions=True)
        await asyncio.to_thread(self._files.delete)

    async def report(self, run_id: str, result: str) -> bytes:
        """The HTML report: the one that the run wrote, otherwise one rendered by a child process.

        Rendering reads all samples of the run, which would take the server's memory and time.

        Raises:
            ExportError: the report cannot be rendered or written.
        """
        try:
            return await self._report(run_id, result)
        except OSError as error:
            raise ExportError(f"the report could not be made: {error.strerror}") from error

    async def _report(self, run_id: str, result: str) -> bytes:
        own = self._runs.get(run_id)
        if own is not None and (own.directory / "report.html").is_file():
            return await asyncio.to_thread((own.directory / "report.html").read_bytes)
        directory = self._files.directory("reports")
        # A stored run may be continued under the same id, so the file name depends on the result too.
        page = directory / f"{run_id}-{hashlib.sha256(result.encode()).hexdigest()[:16]}.html"
        async with self._rendering:
            if not page.is_file():
                await asyncio.to_thread(delete_oldest, directory, "*.html", _MAX_KEPT - 1)
                source = page.with_suffix(".json")
                await asyncio.to_thread(source.write_text, result, encoding="utf-8")
                try:
                    await self._render(source, page)
                finally:
                    source.unlink(missing_ok=True)
        return await asyncio.to_thread(page.read_bytes)

    async def _render(self, source: Path, page: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            *[*_COMMAND, "show", str(source), "--html", str(page)],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(None),
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_RENDER_S):
                _, said = await process.communicate()
        except TimeoutError:
            said = f"it took longer than {_RENDER_S:g} s".encode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        code = process.returncode
        if code:
            why = ended_process(code) if code < 0 and not said else last_line(said)
            raise ExportError(f"the report could not be made: {why}")

    async def _spawn(self, run: Run, config: Path, token: str | None) -> asyncio.subprocess.Process:
        with (run.directory / "stderr").open("wb") as stderr:
            return await asyncio.create_subprocess_exec(
                *[*_COMMAND, "run", "--config", str(config)],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                env=_environment(token),
                start_new_session=True,
            )

    async def _watch(self, run: Run, limit_s: float) -> None:
        """Wait until the process ends, stop it when asked or after ``limit_s``, and keep its result."""
        process = run.process
        assert process is not None
        assert process.stdin is not None
        ended, asked = asyncio.create_task(process.wait()), asyncio.create_task(run.stop.wait())
        await asyncio.wait([ended, asked], timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not ended.done():
            _ask_to_end(run, f"it took longer than {limit_s:g} s")
            process.stdin.close()  # stops a supervised load test, as Ctrl-C would
            await asyncio.wait([ended], timeout=_STOP_S)
        if not ended.done():
            process.kill()
        code = await ended
        process.stdin.close()
        try:
            await self._conclude(run, code)
        finally:
            if run.active:  # an unexpected error must not block the next load test
                run.state = "failed"

    async def _conclude(self, run: Run, code: int) -> None:
        text = await asyncio.to_thread(run.result_text)
        stopped = run.state == "stopping"
        if code != 0 and not stopped:
            run.message = await asyncio.to_thread(last_line_of_file, run.directory / "stderr")
            if (
                code < 0
            ):  # a signal leaves no last words, and what was written before is not its reason
                run.message = ended_process(code)
            logger.warning("load test %s failed (status %d): %s", run.id, code, run.message)
        elif stopped and text is None:
            run.message = "; ".join(
                filter(None, [run.message, "nothing had been measured by then"])
            )
        if text is not None and self._store.where is not None:
            await self._keep(run, text)
        run.state = "finished" if code == 0 else "stopped" if stopped else "failed"

    async def _keep(self, run: Run, text: str) -> None:
        from service.store import add_run

        result = await asyncio.to_thread(json.loads, text)
        until_s = monotonic() + _STORE_S
        while True:
            try:
                await self._store.use(lambda opened: add_run(opened, result, run.tags))
                return
            except StoreError as error:  # the files of the run are still here
                if self._closing.is_set() or monotonic() > until_s:
                    run.message = f"the result could not be stored: {error}"
                    logger.warning("load test %s: %s", run.id, error.log_text or run.message)
                    return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _STORE_AGAIN_S)

    def _forget_old(self) -> None:
        for run in list(self._runs.values())[:-_MAX_KEPT]:
            del self._runs[run.id]
            shutil.rmtree(run.directory, ignore_errors=True)


def _environment(token: str | None) -> dict[str, str]:
    """This process's environment without the settings of the service.

    The key is passed here, because everyone can read the arguments of a process.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VBON_")}
    kept["OMP_NUM_THREADS"] = "1"
    return kept | ({} if token is None else {REMOTE_API_KEY: token})


def _ask_to_end(run: Run, why: str | None = None) -> None:
    if run.state == "running":
        run.state, run.message = "stopping", why
        run.stop.set()


def not_here(run_id: str) -> NotFoundError:
    """The error for a load test that neither this process nor the store has."""
    return NotFoundError(f"load test {run_id!r} does not exist on this server")
