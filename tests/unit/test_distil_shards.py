"""Shards of collected answers: their format, bounds and deletions, and what a kill leaves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.collected import answer, everything, identity, kept
from vbon.distil import directory as directory_module
from vbon.distil.answer import CollectedAnswer, parse_line, to_line
from vbon.distil.directory import FREE_LINES, MAX_OPEN, Bounds, CollectedDirectory
from vbon.distil.open_shard import OpenShard
from vbon.distil.shard import SealedShard
from vbon.errors import DataError, ExportError
from vbon.storage import locks

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def answers(draw: st.DrawFn) -> CollectedAnswer:
    count = draw(st.integers(1, 4))

    def column(one: st.SearchStrategy[T]) -> tuple[T, ...]:
        return tuple(draw(st.lists(one, min_size=count, max_size=count)))

    ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)
    chat = draw(st.none() | st.just(({"role": "user", "content": draw(texts)},)))
    return answer(
        prompt=draw(texts),
        messages=chat,
        responses=column(texts),
        response_ids=column(ids),
        rewards=column(st.floats(allow_nan=False, allow_infinity=False)),
        finish_reasons=column(st.sampled_from(("stop", "length", "rejected"))),
        indices=tuple(range(count)),
        seed=draw(st.none() | st.integers(0, 2**63 - 1)),
    )


@settings(max_examples=20)
@given(answers())
def test_a_line_keeps_every_value_exactly(one: CollectedAnswer) -> None:
    line = to_line(one)
    assert line.count(b"\n") == 1
    assert parse_line(line, "here") == one


def test_a_bad_line_is_refused_without_quoting_it() -> None:
    line = to_line(answer(prompt="my secret"))
    for bad in (
        line[:-5],
        b"{}\n",
        b"[" * 9999,
        line.replace(b"[1.25,-0.1]", b"[1.25]"),
        line.replace(b"-0.1", b'"my secret"'),
    ):
        with pytest.raises(DataError, match="here is not a collected answer") as error:
            parse_line(bad, "here")
        assert "secret" not in str(error.value)


def test_answers_of_one_identity_share_a_sealed_shard(tmp_path: Path) -> None:
    with_others = CollectedDirectory(tmp_path / "new" / "dir")
    hot = identity(temperature=1.5)
    for i in range(3):
        assert with_others.append(identity(), answer(f"cold-{i}")) is None
        assert with_others.append(hot, answer(f"hot-{i}", key="k")) is None
    assert with_others.lines == 6
    with_others.close()
    shards = [SealedShard.read(path) for path in (tmp_path / "new" / "dir").glob("*.jsonl")]
    found = {
        one.identity.temperature: [a.request_id for a in one.checked_answers()] for one in shards
    }
    assert found == {1.0: ["cold-0", "cold-1", "cold-2"], 1.5: ["hot-0", "hot-1", "hot-2"]}
    (seal,) = [one.seal for one in shards if one.identity == hot]
    assert (seal.lines, seal.candidates, seal.keys) == (3, 6, {"k": 3})
    assert not list((tmp_path / "new" / "dir").glob("*.open"))


def test_every_cut_of_an_open_shard_keeps_its_whole_lines(tmp_path: Path) -> None:
    """A kill may stop a write after any byte."""
    shard = OpenShard.create(tmp_path, identity(), 0.0)
    ends = [shard.content.size]
    for i in range(2):
        shard.append(to_line(answer(f"r-{i}")), answer(f"r-{i}"))
        ends.append(shard.content.size)
    whole = shard.path.read_bytes()
    seal = shard.content.seal_line()
    shard.close()
    for cut in [*range(0, ends[1], 3), *range(ends[1] - 2, len(whole) + 1)]:
        shard.path.write_bytes(whole[:cut])
        if cut < ends[0]:
            with pytest.raises(DataError):
                OpenShard.recover(shard.path, 0.0)
            continue
        found, torn = OpenShard.recover(shard.path, 0.0)
        intact = sum(end <= cut for end in ends) - 1
        assert (found.content.lines, torn) == (intact, cut - ends[intact])
        assert shard.path.read_bytes() == whole[: ends[intact]]
        found.close()
    for cut in (1, 2, len(seal) // 2, len(seal) - 1, len(seal)):  # killed while it was sealed
        shard.path.write_bytes(whole + seal[:cut])
        found, torn = OpenShard.recover(shard.path, 0.0)
        assert found.content.lines == 2
        assert torn == (0 if cut == len(seal) else cut)
        assert [a.request_id for a in found.seal().checked_answers()] == ["r-0", "r-1"]


def test_a_start_says_what_it_cut_off_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shard = OpenShard.create(tmp_path, identity(), 900.0)
    shard.append(to_line(answer("first", time=900.0)), answer("first", time=900.0))
    with shard.path.open("ab") as file:
        file.write(b'{"prompt": "my secr')
    (tmp_path / "20260101T000000-ffffffff-00000000.open").write_bytes(b'{"vbon')
    (tmp_path / "x.jsonl.partial").write_bytes(b"half a rewriting")
    directory = CollectedDirectory(tmp_path, clock=Clock())
    assert directory.removed.cut_bytes == 19
    assert "incomplete line, which was cut off (19 bytes)" in caplog.text
    assert "secr" not in caplog.text
    directory.append(identity(), answer("second"))
    directory.close()
    assert [one.request_id for one in kept(tmp_path)] == ["first", "second"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl", ""}


WRITER = """
import sys
from pathlib import Path
from tests.unit.collected import answer, identity
from vbon.distil.directory import Bounds, CollectedDirectory

directory = CollectedDirectory(Path(sys.argv[1]), Bounds(max_bytes=2**23))
for i, _ in enumerate(sys.stdin):
    directory.append(identity(), answer(f"r-{i}", responses=(" good" * 4000, " bad")))
    print(i, flush=True)
"""


def test_a_killed_writer_loses_no_line_that_was_written(tmp_path: Path) -> None:
    """Killed three times with SIGKILL on its way, it leaves a directory that the next start repairs."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    told: list[int] = []
    for lines in (1, 40, 130):  # the last two are past the first seal
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=ROOT,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"go\n" * (lines + 5))
        process.stdin.flush()
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)  # somewhere in the next five lines
        last = process.stdout.read().split(b"\n")[:-1]
        told.append(int(last[-1]) if last else lines - 1)
        process.stdin.close()
        process.stdout.close()
        process.wait()
    directory = CollectedDirectory(tmp_path)
    directory.close()
    runs: list[int] = []
    for one in kept(tmp_path):
        number = int(one.request_id.removeprefix("r-"))
        if number == 0:
            runs.append(-1)
        runs[-1] += 1
        assert runs[-1] == number  # no line is missing between others, and none came twice
    # A line may have been written without having been reported.
    assert all(found - reported in (0, 1) for found, reported in zip(runs, told, strict=True))


def test_when_full_the_oldest_sealed_shard_goes(tmp_path: Path) -> None:
    clock = Clock()
    size = len(to_line(answer("r-000")))
    directory = CollectedDirectory(tmp_path, Bounds(max_bytes=40 * size + 4096), clock=clock)
    for i in range(200):
        clock.now_s += 1
        assert directory.append(identity(), answer(f"r-{i:03}", time=clock.now_s)) is None
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40 * size + 4096 + 64
    directory.close()
    left = [one.request_id for one in kept(tmp_path)]
    assert left == [f"r-{i:03}" for i in range(200 - len(left), 200)]
    assert len(left) >= 20
    assert directory.removed.lines == {"bytes": 200 - len(left)}


def test_an_answer_that_is_too_large_is_refused(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path, Bounds(max_bytes=8 * 1024))
    assert directory.append(identity(), answer(prompt="x" * 1024)) == "too_large"
    assert directory.append(identity(), answer(prompt="half \ud800")) == "unwritable"
    assert directory.append(identity(), answer()) is None
    assert directory.lines == 1


def test_no_answer_outlives_its_retention(tmp_path: Path) -> None:
    clock = Clock()
    bounds = Bounds(retention_s=100.0, shard_s=30.0)
    directory = CollectedDirectory(tmp_path, bounds, clock=clock)
    for i in range(50):
        directory.append(identity(), answer(f"r-{i}", time=clock.now_s))
        directory.tick()
        clock.now_s += 10
        ages = [clock.now_s - one.time for one in kept(tmp_path)]
        assert max(ages, default=0) <= 110
    assert directory.removed.shards["age"] > 5
    clock.now_s += 1000
    directory.tick()
    assert (directory.lines, directory.size) == (0, 0)
    assert not directory.keys


def test_an_old_shard_is_sealed_though_nothing_comes(tmp_path: Path) -> None:
    clock = Clock()
    directory = CollectedDirectory(tmp_path, Bounds(shard_s=60.0), clock=clock)
    directory.append(identity(), answer())
    clock.now_s += 59
    directory.tick()
    assert (len(directory.open), len(directory.sealed)) == (1, 0)
    clock.now_s += 1
    directory.tick()
    assert (len(directory.open), len(directory.sealed)) == (0, 1)


def test_only_so_many_shards_are_open_or_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests choose max_tokens, so any number of identities may come."""
    monkeypatch.setattr(directory_module, "MAX_SHARDS", 20)
    directory = CollectedDirectory(tmp_path)
    for i in range(1, 60):
        directory.append(identity(max_new_tokens=i), answer())
        assert len(list(tmp_path.glob("*.open"))) <= MAX_OPEN
    assert len(list(tmp_path.glob("*.jsonl"))) == 20
    newest = max(one.identity.max_new_tokens for one in directory.open.values())
    assert newest == 59


def test_one_key_holds_at_most_its_share(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path, Bounds(max_key_share=0.5))
    greedy = [directory.append(identity(), answer(key="greedy")) for _ in range(300)]
    assert greedy.count(None) == FREE_LINES + 1
    assert set(greedy) == {None, "key_share"}
    for _ in range(1000):
        for key in ("greedy", "greedy", "greedy", "other"):
            directory.append(identity(), answer(key=key))
    assert directory.keys["other"] == 1000  # nothing of the others is refused
    assert directory.keys["greedy"] / directory.lines == pytest.approx(0.5, abs=0.001)


def test_key_hashes_differ_between_directories_and_stay(tmp_path: Path) -> None:
    first = CollectedDirectory(tmp_path / "a")
    assert first.key_hash("") == ""
    found = first.key_hash("alice")
    assert found not in {
        first.key_hash("bob"),
        CollectedDirectory(tmp_path / "b").key_hash("alice"),
    }
    first.close()
    again = CollectedDirectory(tmp_path / "a")
    assert again.key_hash("alice") == found
    assert b"alice" not in everything(tmp_path)


def test_deletion_leaves_no_byte_and_no_gap(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path, Bounds())
    for name in ("sealed", "open"):
        for i in range(3):
            words = (f" words of {name} {i}", " same")
            directory.append(identity(), answer(f"{name}-{i}", responses=words, key=f"k{i}"))
        if name == "sealed":
            directory.seal_all()
    assert directory.delete(["unknown", "sealed"]) == 0
    assert directory.delete(["sealed-1", "open-1"]) == 2
    content = everything(tmp_path)
    assert b"words of sealed 1" not in content
    assert b"words of open 1" not in content
    assert (directory.lines, dict(directory.keys)) == (4, {"k0": 2, "k2": 2})
    directory.append(identity(), answer("after"))  # the rewritten open shard goes on
    directory.close()
    ids = ["sealed-0", "sealed-2", "open-0", "open-2", "after"]
    assert sorted(one.request_id for one in kept(tmp_path)) == sorted(ids)
    assert directory.removed.deleted == 2


def test_a_shard_of_which_nothing_is_left_goes(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path)
    directory.append(identity(), answer("a"))
    directory.seal_all()
    directory.append(identity(), answer("a"))
    assert directory.delete(["a"]) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {"salt", ".collected.lock"}
    assert (directory.lines, directory.size) == (0, 0)


def test_deletion_finds_answers_in_a_damaged_shard(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path)
    for name in ("a", "b", "c"):
        directory.append(identity(), answer(name, prompt=f"prompt of {name}"))
    directory.close()
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"prompt of b", b"prompt of \xff"))
    again = CollectedDirectory(tmp_path)
    assert again.delete(["c"]) == 1
    assert b"prompt of c" not in everything(tmp_path)
    assert [one.request_id for one in kept(tmp_path)] == ["a"]  # b cannot be read, so it went too


@pytest.mark.parametrize("ids", [["a"], ["a", "b"]])
def test_an_unreadable_shard_retires_after_a_deletion(tmp_path: Path, ids: list[str]) -> None:
    """A tick that failed at it would seal and flush nothing any more."""
    directory = CollectedDirectory(tmp_path)
    for name in ("a", "b"):
        directory.append(identity(), answer(name))
    directory.close()
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(b"x" + path.read_bytes())
    clock = Clock(path.stat().st_mtime)
    again = CollectedDirectory(tmp_path, Bounds(retention_s=60.0), clock=clock)
    assert again.delete(ids) == len(ids)
    clock.now_s += 3600
    for _ in range(2):
        again.tick()
    assert not list(tmp_path.glob("*.jsonl"))


def _full_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make the disk full from a write on, of which it still takes a part; return what frees it."""
    real, count = os.write, 0

    def write(descriptor: int, content: bytes) -> int:
        nonlocal count
        count += 1
        if count == writes + 1:
            return real(descriptor, content[: len(content) // 2])
        if count > writes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content)

    monkeypatch.setattr(os, "write", write)
    return lambda: monkeypatch.setattr(os, "write", real)


def test_a_full_disk_costs_only_the_lines_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = CollectedDirectory(tmp_path)
    directory.append(identity(), answer("before"))
    free = _full_after(0, monkeypatch)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            directory.append(identity(), answer("lost"))
    with pytest.raises(OSError, match="No space"):
        directory.seal_all()
    with pytest.raises(OSError, match="No space"):
        directory.append(identity(temperature=0.5), answer("a new shard"))
    assert directory.lines == 1
    free()
    directory.append(identity(), answer("after"))
    directory.close()
    assert [one.request_id for one in kept(tmp_path)] == ["before", "after"]


def test_many_answers_at_once_are_kept_as_one_after_another(tmp_path: Path) -> None:
    """Shards, refusals and shares of keys are the same, whatever the batches are."""
    bounds = Bounds(max_bytes=2**20, max_key_share=0.5)
    answers = [
        answer(
            f"r-{i:03}",
            key="greedy" if i % 4 else f"k{i}",
            prompt="half \ud800" if i == 7 else "x" * (2**17 if i == 11 else 400 * (i % 9)),
            time=1000.0 + i,
        )
        for i in range(300)
    ]
    found = []
    for size in (1, 7, 300):
        folder, clock = tmp_path / str(size), Clock()
        directory = CollectedDirectory(folder, bounds, clock=clock)
        outcomes = []
        for start in range(0, 300, size):
            outcomes += directory.append_all(identity(), answers[start : start + size])
        left = dict(directory.keys)
        directory.close()
        shards = sorted(map(SealedShard.read, folder.glob("*.jsonl")), key=SealedShard.age)
        ids = [[one.request_id for one in shard.checked_answers()] for shard in shards]
        found.append((outcomes, left, ids))
    assert {"unwritable", "too_large", "key_share", None} == set(found[0][0])
    assert len(found[0][2]) > 1  # more than one shard
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_of_many_answers_at_once_a_full_disk_costs_only_those_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = CollectedDirectory(tmp_path)
    directory.append(identity(), answer("before"))
    answers = [answer(f"r-{i}", key="ann") for i in range(5)]
    real, room = os.write, 2 * len(to_line(answers[0]))

    def write(descriptor: int, content: bytes) -> int:
        nonlocal room
        written = content[:room]
        if not written:
            raise OSError(errno.ENOSPC, "No space left on device")
        room -= len(written)
        return real(descriptor, written)

    truncate = os.ftruncate

    def ftruncate(descriptor: int, size: int) -> None:
        nonlocal room
        room += os.fstat(descriptor).st_size - size
        truncate(descriptor, size)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        patched.setattr(os, "ftruncate", ftruncate)
        outcomes = directory.append_all(identity(), answers)
    assert outcomes[:2] == [None, None]
    assert [isinstance(one, OSError) for one in outcomes] == [False, False, True, True, True]
    assert directory.keys == {"": 1, "ann": 2}
    assert directory.append_all(identity(), answers[2:]) == [None, None, None]
    directory.close()
    assert [one.request_id for one in kept(tmp_path)] == ["before", *(f"r-{i}" for i in range(5))]


def test_a_second_writer_and_unusable_places_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
    first = CollectedDirectory(tmp_path / "dir")
    with pytest.raises(ExportError, match=f"pid {os.getpid()}.*choose another directory"):
        CollectedDirectory(tmp_path / "dir")
    first.close()
    CollectedDirectory(tmp_path / "dir").close()
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file; give the path of a directory"):
        CollectedDirectory(tmp_path / "file")
    with pytest.raises(ExportError, match=r"could not write .*Not a directory"):
        CollectedDirectory(tmp_path / "file" / "below")


def test_a_changed_shard_is_noticed(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path)
    directory.append(identity(), answer("a"))
    directory.close()
    (path,) = tmp_path.glob("*.jsonl")
    shard = SealedShard.read(path)
    path.write_bytes(path.read_bytes().replace(b"1.25", b"9.25"))
    with pytest.raises(DataError, match="not what was sealed"):
        list(shard.checked_answers())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="no valid seal"):
        SealedShard.read(path)


def test_a_seal_with_very_many_keys_can_be_read(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path)
    one = answer()
    for i in range(3000):
        directory.append(identity(), replace(one, key=f"{i:016x}"))
    size = directory.size
    directory.close()
    (path,) = tmp_path.glob("*.jsonl")
    assert len(SealedShard.read(path).seal.keys) == 3000
    assert path.stat().st_size <= size
