"""One writer per output."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vbon.errors import ExportError
from vbon.storage import locks
from vbon.storage.locks import sole_writer

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys, time; from pathlib import Path; from vbon.storage.locks import sole_writer\n"
    "with sole_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_writer_is_told_who_writes(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    words = rf"out is being written by another process \(pid {holder.pid}\); wait for it"
    with pytest.raises(ExportError, match=words), sole_writer(tmp_path / "out"):
        pass
    with sole_writer(tmp_path / "other"):
        pass


def test_a_killed_writer_lets_go_and_nothing_is_left(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.kill()
    with sole_writer(tmp_path / "out"):
        assert list(tmp_path.iterdir()) == [tmp_path / ".out.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_taken_on_a_file_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that ends removes the lock file that the next one has just opened."""
    flock, removed = fcntl.flock, []

    def removed_at_first(handle: int, operation: int) -> None:
        if not removed:
            removed.append(handle)
            (tmp_path / ".out.lock").unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_at_first)
    with sole_writer(tmp_path / "out"):
        assert removed
        assert (tmp_path / ".out.lock").read_text() == f"pid {os.getpid()}\n"


def test_where_the_file_system_knows_no_locks_nothing_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with sole_writer(tmp_path / "out"):
        pass


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.open", full)
    with pytest.raises(ExportError, match="No space left"), sole_writer(tmp_path / "out"):
        pass


@pytest.mark.parametrize("name", ["link", "here/../link", "out/."])
def test_all_names_of_an_output_share_its_lock(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    words = "is being written by another process"
    with pytest.raises(ExportError, match=words), sole_writer(tmp_path / name):
        pass


def test_the_current_directory_can_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with sole_writer(Path(".")):
        assert (tmp_path / ".out.lock").exists()


def test_where_nothing_may_be_written_nothing_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refused)
    with sole_writer(tmp_path / "out"):
        pass
