"""What a sampling run makes of the lines that an earlier one left, and of a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")

from bestofn.errors import DataError, ExportError
from training import sample
from training.prompts import read_prompts
from training.records import trusted_record
from training.sample import check_content


def line(prompt: str) -> bytes:
    return json.dumps({"prompt": prompt, "responses": ["x"], "rewards": [1.5]}).encode() + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.jsonl.partial"


def whole_lines(path: Path) -> dict[str, int]:
    return sample._whole_lines(path, 4)


@pytest.mark.parametrize("torn", [line("c")[:-1], line("c")[:9], b"\0" * 100, b"\xff", b"{"])
def test_a_torn_last_line_is_cut_off(path: Path, torn: bytes) -> None:
    path.write_bytes(line("a") + line("b") + torn)
    assert whole_lines(path) == {"a": 1, "b": 2}
    assert path.read_bytes() == line("a") + line("b")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (line("b")[:20] + b"\n", "not valid JSON"),
        (line("b").replace(b"b", b"\xff", 1), "not valid JSON"),
        (b"\0" * 30 + b"\n", "not valid JSON"),
        (line("b").replace(b"1.5", b"NaN"), "not finite"),
        (line("b").replace(b"prompt", b"promqt"), 'no string "prompt"'),
        (line("a"), "repeats the prompt of line 1"),
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_cut(path: Path, bad: bytes, words: str) -> None:
    content = line("a") + bad + line("c")
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"partial:2.*{words}.*delete"):
        whole_lines(path)
    assert path.read_bytes() == content


def test_line_ends_of_another_system_are_no_damage(path: Path) -> None:
    path.write_bytes((line("a") + line("b")).replace(b"\n", b"\r\n"))
    assert whole_lines(path) == {"a": 1, "b": 2}


def test_a_full_disk_leaves_whole_lines_and_is_named_once(path: Path) -> None:
    """The line half written is cut off again, and closing the file does not write it after all."""
    path.write_bytes(line("a"))

    def half_full(part: memoryview) -> int:
        if len(part) < 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        os.write(real.fileno(), part[:20])
        return 20

    with path.open("ab", buffering=0) as real:
        handle = SimpleNamespace(write=half_full, seek=real.seek, fileno=real.fileno)
        with pytest.raises(ExportError, match=r"partial: No space left .*same command again"):
            sample._append(handle, path, line("b"))  # type: ignore[arg-type]
    assert path.read_bytes() == line("a")


def test_a_cache_that_is_not_as_it_was_written_is_named(tmp_path: Path) -> None:
    check_content(tmp_path / "cache.jsonl", {}, "a" * 64)
    check_content(tmp_path / "cache.jsonl", {"sha256": "a" * 64}, "a" * 64)
    with pytest.raises(DataError, match=r"cache\.jsonl: its content .* delete cache\.jsonl\.meta"):
        check_content(tmp_path / "cache.jsonl", {"sha256": "a" * 64}, "b" * 64)


def test_a_damaged_record_is_not_a_missing_one(tmp_path: Path) -> None:
    assert trusted_record(tmp_path / "x.json") is None
    (tmp_path / "x.json").write_text('{"a": 1')
    with pytest.raises(DataError, match=r"x\.json is damaged"):
        trusted_record(tmp_path / "x.json")


def test_prompts_are_lines_by_line_feeds_alone(tmp_path: Path) -> None:
    """JSON strings may hold characters at which ``str.splitlines`` breaks."""
    path = tmp_path / "prompts.jsonl"
    odd = "one\u2028two\x85three"
    path.write_text(json.dumps({"prompt": odd}, ensure_ascii=False) + "\r\nplain\r\n\r\n", "utf-8")
    assert [prompt.text for prompt in read_prompts(path)] == [odd, "plain"]


@pytest.mark.parametrize(("bad", "words"), [(b"\xff\xfe", "not UTF-8"), (b"\0\0", "NUL")])
def test_a_damaged_prompt_file_is_named_by_line(tmp_path: Path, bad: bytes, words: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"a\n" + bad + b"\n")
    with pytest.raises(DataError, match=rf"prompts\.txt:2 .*{words}"):
        read_prompts(path)
