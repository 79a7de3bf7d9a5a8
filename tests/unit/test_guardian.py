"""Guarded processes end when the process that started them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vbon.engine.vllm.guardian import Guardian

STARTER = """
import subprocess, sys, time
from vbon.engine.vllm.guardian import Guardian
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
guardian = Guardian([child.pid])
print(child.pid, flush=True)
time.sleep(600)
"""


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def dies(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_starter_is_killed_its_processes_end(blow: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        child = int(starter.stdout.readline())
        assert lives(child)
        starter.send_signal(blow)
    assert dies(child)


def test_after_an_orderly_end_they_are_let_be(sleeper: subprocess.Popen[bytes]) -> None:
    guardian = Guardian([sleeper.pid])
    guard = guardian._process.pid
    guardian.dismiss()
    guardian.dismiss()
    assert dies(guard)
    assert lives(sleeper.pid)


def ignores(pid: int, sent: signal.Signals) -> bool:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return bool(int(status["SigIgn"], 16) & 1 << (sent - 1))


def test_ctrl_c_does_not_end_the_guard(sleeper: subprocess.Popen[bytes]) -> None:
    guardian = Guardian([sleeper.pid])
    guard = guardian._process
    deadline = time.monotonic() + 60
    while not ignores(guard.pid, signal.SIGINT) and time.monotonic() < deadline:
        time.sleep(0.01)  # it does so once it has begun to run
    os.kill(guard.pid, signal.SIGINT)
    guardian.dismiss()
    assert guard.wait(60) == 0  # by itself, not by the signal
    assert lives(sleeper.pid)


def test_one_that_was_killed_is_known_to_be_gone(sleeper: subprocess.Popen[bytes]) -> None:
    guardian = Guardian([sleeper.pid])
    assert guardian.on_watch
    guardian._process.kill()
    guardian._process.wait()
    assert not guardian.on_watch
    guardian.dismiss()
    assert lives(sleeper.pid)
