"""Files and directories are written completely or not at all."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from vbon.errors import ExportError
from vbon.storage.atomic import recover_directory, replacing_directory, write_json, write_text


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(ExportError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"reward": float("nan")})
    assert not (tmp_path / "x.json").exists()


def make(target: Path, text: str) -> None:
    with replacing_directory(target) as directory:
        (directory / "weights").write_text(text)


def test_replaces_the_directory_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target, "old")
    make(target, "new")
    assert (target / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: full")]
)
def test_a_full_disk_keeps_the_old_directory(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "model"
    make(target, "old")
    with pytest.raises(ExportError, match=r"previous .* is untouched"):  # noqa: SIM117, PT012
        with replacing_directory(target) as directory:
            (directory / "weights").write_text("half")
            raise error
    assert (target / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_other_errors_pass_through_and_keep_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target, "old")
    with pytest.raises(KeyError), replacing_directory(target):
        raise KeyError("bug")
    assert (target / "weights").read_text() == "old"


def test_a_failure_between_the_two_renames_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    make(target, "old")
    rename = Path.replace

    def fail_for_the_new(self: Path, other: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", fail_for_the_new)
    with pytest.raises(ExportError, match="untouched"):
        make(target, "new")
    assert (target / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_between_the_two_renames_is_recovered(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target, "old")
    target.rename(tmp_path / ".model.retired")
    recover_directory(target)
    assert (target / "weights").read_text() == "old"


def test_what_a_kill_left_is_cleared_once_the_new_one_is_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make(target, "new")
    for left in (".model.retired", ".model.partial"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "weights").write_text("old")
    recover_directory(target)
    assert (target / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link, real = tmp_path / "model", tmp_path / "disk" / "real"
    link.symlink_to(real)
    for text in ("first", "second", "third"):  # the first where nothing is yet
        make(link, text)
        assert link.is_symlink()
        assert (real / "weights").read_text() == text
    assert list((tmp_path / "disk").iterdir()) == [real]
    (real).rename(real.with_name(".real.retired"))  # a kill between two renames
    recover_directory(link)
    assert (link / "weights").read_text() == "third"


def test_a_link_that_earlier_versions_set_aside_is_no_obstacle(tmp_path: Path) -> None:
    target, real = tmp_path / "model", tmp_path / "real"
    make(real, "old")
    make(target, "new")
    (tmp_path / ".model.retired").symlink_to(real)
    make(target, "newer")
    assert (target / "weights").read_text() == "newer"
    assert (real / "weights").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "real"]


def test_a_refusal_names_the_file_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(ExportError, match=r"x\.json: No space left.*free some space.*same command"):
        write_json(tmp_path / "x.json", {})
    with pytest.raises(ExportError, match=r"model: .*No space left.*same command again"):
        make(tmp_path / "model", "new")


def test_written_json_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"a": 1}
