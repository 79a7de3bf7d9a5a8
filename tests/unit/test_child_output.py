"""Output of child processes: what can be written arrives, and the rest stops nobody."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Starts a child that prints much to both streams, and prints itself once all of that has been copied.
PROGRAM = """
import atexit, os, subprocess, sys

def last_words():
    try:
        print("own", flush=True)
    except OSError:
        pass
    os._exit(status)

atexit.register(last_words)  # functions run in reverse order, so this one after the relays' own
from vbon.child_output import ensure_standard_files, relayed_output
ensure_standard_files()
child = "import sys; print(str(0) * 100_000, flush=True); "
child += "print(str(1) * 100_000, file=sys.stderr, flush=True)"
with relayed_output():
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", child])
status = process.wait()
"""


def run(redirection: str) -> subprocess.CompletedProcess[bytes]:
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, PROGRAM]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)


def test_all_output_arrives_where_ours_goes() -> None:
    done = run("")
    assert done.returncode == 0
    assert done.stdout == b"0" * 100_000 + b"\nown\n"
    assert done.stderr == b"1" * 100_000 + b"\n"


@pytest.mark.parametrize(
    "redirection", [">/dev/full 2>/dev/full", "2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full"]
)
def test_a_child_ends_well_whatever_our_output_is(redirection: str) -> None:
    assert run(redirection).returncode == 0


def test_a_child_without_the_pipe_fails() -> None:
    """The premise of the tests above."""
    child = "print('x', flush=True)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", child], stdout=full, stderr=full)
    assert done.returncode != 0


def test_overlapping_blocks_leave_the_streams_as_they_were() -> None:
    from vbon.child_output import relayed_output

    before = [os.fstat(fd) for fd in (1, 2)]
    inside, go_on = threading.Barrier(3), threading.Event()

    def block() -> None:
        with relayed_output():
            inside.wait()
            go_on.wait(30)

    others = [threading.Thread(target=block) for _ in range(2)]
    for other in others:
        other.start()
    inside.wait()
    assert not os.path.samestat(os.fstat(1), before[0])
    go_on.set()
    for other in others:
        other.join()
    assert all(os.path.samestat(os.fstat(fd), was) for fd, was in zip((1, 2), before, strict=True))


def test_blocks_one_after_another_use_the_same_pipes(capfd: pytest.CaptureFixture[str]) -> None:
    """While a child of the first still runs, as engines do when another one is restarted."""
    from vbon.child_output import relayed_output

    def relays() -> set[threading.Thread]:  # each with the two files that it copies from and to
        return {one for one in threading.enumerate() if one.name.startswith("output-")}

    def child() -> subprocess.Popen[bytes]:
        with relayed_output():
            return subprocess.Popen(["cat"], stdin=subprocess.PIPE)

    first = child()
    held = relays()
    later = [child() for _ in range(3)]
    assert held
    assert relays() <= held
    for number, process in enumerate(later):
        process.communicate(f"later {number}\n".encode())
    first.communicate(b"first\n")
    said = ""
    while said.count("\n") < 4:
        said += capfd.readouterr().out
    assert sorted(said.split("\n")) == ["", "first", "later 0", "later 1", "later 2"]
