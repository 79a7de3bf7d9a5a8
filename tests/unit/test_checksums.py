"""Checksums and seals: whether a file is still the one that was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from vbon.storage.checksums import checksums_of, find_damage, is_sealed, sealed, sha256_of


def test_sums_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 200_000)  # several blocks
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b").write_bytes(b"")
    (tmp_path / "README.md").write_text("for people to edit")
    expected = {"bytes": 200_000, "sha256": hashlib.sha256(b"x" * 200_000).hexdigest()}
    assert sha256_of(tmp_path / "a") == expected["sha256"]
    assert checksums_of(tmp_path) == {"a": expected}
    assert checksums_of(tmp_path, recursive=True)["below/b"]["bytes"] == 0


def test_the_file_that_is_not_as_written_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(b"whole " + name.encode())
    sums = checksums_of(tmp_path)
    assert find_damage(tmp_path, sums) is None
    (tmp_path / "b").write_bytes(b"whole c")
    assert str(find_damage(tmp_path, sums)).startswith(f"{tmp_path / 'b'}: its content is not")
    (tmp_path / "b").write_bytes(b"whole")
    assert "b is truncated or damaged: 5 bytes, 7 were written" in str(find_damage(tmp_path, sums))
    (tmp_path / "a").unlink()
    assert "a is missing" in str(find_damage(tmp_path, sums))


@given(st.dictionaries(st.text(), st.integers() | st.text()), st.data())
def test_no_flipped_bit_of_a_sealed_record_passes(record: dict, data: st.DataObject) -> None:
    """An intact record is sealed; with one bit flipped it is invalid JSON, not sealed, or equal."""
    text = json.dumps(sealed(record)).encode()
    assert is_sealed(json.loads(text))
    at = data.draw(st.integers(0, 8 * len(text) - 1))
    flipped = bytearray(text)
    flipped[at // 8] ^= 1 << at % 8
    try:
        read = json.loads(bytes(flipped))
    except ValueError:
        return
    assert not isinstance(read, dict) or not is_sealed(read) or read == json.loads(text)
