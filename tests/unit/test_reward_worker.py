"""A reward model in a child process that works, dies or hangs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.tools.scorers import INDISCREET
from tests.unit.obedient_reward import Chatty, Dying, Obedient
from vbon.child_output import ensure_standard_files
from vbon.concurrency import ended_process
from vbon.errors import CheckpointError, RewardDeadError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import Scorable
from vbon.rewards.registry import open_reward_model
from vbon.rewards.worker import RewardWorker

PROMPT = Prompt(text="p")


@contextmanager
def working(timeout_s: float = 60.0) -> Iterator[RewardWorker]:
    worker = RewardWorker(Obedient(), timeout_s=timeout_s)
    worker.load()
    try:
        yield worker
    finally:
        worker.close()


def say(*words: str) -> list[Scorable]:
    return [Scorable(PROMPT, word) for word in words]


def test_scores_come_from_another_process_in_order() -> None:
    with working() as worker:
        pid = float(worker.pid or 0)
        assert pid != os.getpid()
        assert worker.score(say("a", "none", "b")) == [pid, None, pid]
        assert (worker.name, worker.revision) == ("obedient", "1")
    assert not worker.alive


def test_an_error_of_the_model_is_its_own_and_the_worker_goes_on() -> None:
    with working() as worker:
        with pytest.raises(RewardError, match="no score today"):
            worker.score(say("fail"))
        with pytest.raises(RewardError, match="ZeroDivisionError") as crashed:
            worker.score(say("crash"))
        assert "oops" not in str(crashed.value)
        assert worker.score(say("a")) == [float(worker.pid or 0)]


@pytest.mark.parametrize("logged", [False, True])
def test_what_code_of_users_says_reaches_no_caller_and_the_log_only_if_asked(
    logged: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    model = open_reward_model("python:tests.faults.tools.scorers:indiscreet")
    worker = RewardWorker(model, logs_user_errors=logged)
    worker.load()
    secret = Prompt(text="another's secret")
    try:
        assert worker.score([Scorable(secret, "good")]) == [1.0]
        assert worker.score([Scorable(secret, "huge")]) == [None]
        for kind in INDISCREET:
            # Where one text of a batch is at fault, it has no score; where the model is, all are told.
            told = ""
            try:
                assert worker.score([Scorable(secret, kind)]) == [None]
            except RewardError as error:
                told = str(error)
                assert worker.alive
            assert "secret" not in told
            assert told or kind in ("raises", "chained", "later", "exits")
    finally:
        worker.close()
    said = "".join(capfd.readouterr())
    assert ("secret" in said) == logged
    assert not logged or "ValueError: cannot score another's secret" in said


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("die", "ended with exit status 9 while scoring 1"),
        ("killed", "was ended by signal SIGKILL .*memory runs out.* while scoring 1"),
        ("hang", "more than 0.5 s"),
    ],
)
def test_one_that_dies_or_hangs_is_dead_until_it_is_loaded_again(word: str, why: str) -> None:
    with working(timeout_s=0.5) as worker:
        first = worker.pid
        with pytest.raises(RewardDeadError, match=why):
            worker.score(say(word))
        assert not worker.alive
        assert not psutil.pid_exists(first or 0)
        with pytest.raises(RewardDeadError, match="is not running"):
            worker.score(say("a"))
        worker.load()
        assert worker.alive
        assert worker.score(say("a")) == [float(worker.pid or 0)]
        assert worker.pid != first


def test_a_death_leaves_no_descriptor_to_the_garbage_collector() -> None:
    told: list[RewardDeadError] = []  # each with the frames that it came through
    with working() as worker:
        before = psutil.Process().num_fds()
        for _ in range(3):
            victim = psutil.Process(worker.pid)
            victim.kill()
            # What is sent before that is still taken.
            while victim.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
            with pytest.raises(RewardDeadError) as caught:
                worker.score(say("a"))
            told.append(caught.value)
            assert not worker.alive
            assert worker.pid is None
            worker.load()
        assert psutil.Process().num_fds() == before


def test_a_death_while_nothing_is_asked_is_seen() -> None:
    with working() as worker:
        os.kill(worker.pid or 0, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while worker.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not worker.alive
        with pytest.raises(RewardDeadError):
            worker.score(say("a"))


def test_one_that_hangs_while_nothing_is_asked_is_found_by_a_batch_that_fills_the_pipe() -> None:
    with working(timeout_s=0.5) as worker, ThreadPoolExecutor(1) as pool:
        hung = psutil.Process(worker.pid)
        hung.suspend()
        try:
            with pytest.raises(
                RewardDeadError, match=r"accepted no data for 0\.5 s and was killed"
            ):
                pool.submit(worker.score, say("long" * 1_000_000)).result(timeout=60)
            assert not worker.alive
            assert not hung.is_running()
        finally:
            worker.close()  # or the thread would never be done
        worker.load()
        assert worker.score(say("a")) == [float(worker.pid or 0)]


def test_one_that_loads_is_not_alive_the_first_time_nor_again(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    worker = RewardWorker(Obedient(gate=str(gate)))
    before = None
    with ThreadPoolExecutor(1) as pool:
        try:
            for _ in range(2):
                loading = pool.submit(worker.load)
                deadline = time.monotonic() + 60
                while worker.pid in (None, before) and time.monotonic() < deadline:
                    time.sleep(0.01)
                assert psutil.pid_exists(worker.pid or 0)
                assert not worker.alive
                gate.touch()
                loading.result(timeout=60)
                assert worker.alive
                gate.unlink()
                before = worker.pid
                os.kill(before or 0, signal.SIGKILL)
        finally:
            gate.touch()
    worker.close()


def test_a_model_that_cannot_be_loaded_says_why() -> None:
    worker = RewardWorker(Obedient(loads=False))
    with pytest.raises(CheckpointError, match="no weights here"):
        worker.load()
    assert not worker.alive


@pytest.mark.parametrize(
    ("by", "why"),
    [
        (0, "its process ended with exit status 3 while loading"),
        (
            signal.SIGKILL,
            r"its process was ended by signal SIGKILL \(the system sends it when memory",
        ),
        (signal.SIGABRT, "its process was ended by signal SIGABRT while loading"),
    ],
)
def test_one_that_ends_while_it_loads_says_how(by: int, why: str) -> None:
    """With the exit status, since nothing else tells a lack of memory from a crash."""
    worker = RewardWorker(Dying(by=by))
    with pytest.raises(RewardDeadError, match=f"the worker of reward model obedient died: {why}"):
        worker.load()
    assert worker.pid is None


def test_one_that_is_stopped_while_it_loads_says_so(tmp_path: Path) -> None:
    worker = RewardWorker(Obedient(gate=str(tmp_path / "never")))
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(worker.load)
        while worker._pipe is None:
            time.sleep(0.01)
        worker.close()
        with pytest.raises(RewardDeadError, match="it was stopped while loading"):
            loading.result(timeout=60)


def test_every_end_has_its_words() -> None:
    assert ended_process(None) == "its process closed the connection"
    assert ended_process(0) == "its process ended with exit status 0"
    assert ended_process(-60) == "its process was ended by signal 60"


def test_a_restart_serves_what_the_path_holds_then_under_its_revision(tmp_path: Path) -> None:
    """Both functions have the same size, and are written within a second."""
    file = tmp_path / "reward.py"
    seen = []
    file.write_text("def f(prompts, completions): return [1.0] * len(completions)")
    worker = RewardWorker(open_reward_model(f"python:{file}:f"))
    for value in ("1.0", "2.0"):
        file.write_text(f"def f(prompts, completions): return [{value}] * len(completions)")
        os.utime(file, (1.0, 1.0))
        worker.load()
        fresh = open_reward_model(f"python:{file}:f").revision
        seen.append((worker.score([Scorable(PROMPT, "x")]), worker.revision == fresh))
    worker.close()
    assert seen == [([1.0], True), ([2.0], True)]


@pytest.mark.parametrize("place", ["/dev/full", None])
def test_output_that_cannot_be_written_stops_no_start(place: str | None) -> None:
    saved = [os.dup(fd) for fd in (1, 2)]
    try:
        for fd in (1, 2):
            if place is None:
                os.close(fd)
            else:
                full = os.open(place, os.O_WRONLY)
                os.dup2(full, fd)
                os.close(full)
        ensure_standard_files()  # as the service does at its start
        worker = RewardWorker(Chatty())
        for _ in range(2):
            worker.load()
        alive = worker.alive
        worker.close()
    finally:
        for kept, fd in zip(saved, (1, 2), strict=True):
            os.dup2(kept, fd)
            os.close(kept)
    assert alive
