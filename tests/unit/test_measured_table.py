"""Tables of measured settings: reading, writing, staleness, and the Pareto front."""

from __future__ import annotations

import itertools
import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from tests.unit.measured import around, row, table
from vbon.errors import DataError, ExportError
from vbon.maths.pareto import dominates, front
from vbon.measured import hardware
from vbon.measured.pareto import pareto
from vbon.measured.table import (
    MeasuredSetting,
    read_table,
    write_table,
)


def test_a_written_table_is_read_as_it_was(tmp_path: Path) -> None:
    one = table(
        row(), row("soft-bon", 8, settings={"reward_temperature": 0.5}, top_p=0.9, win_rate=around(0.8)),
        row("vbon", 1, policy="vbon", temperature=0.0, gold=around(-2.0), reward=None, failed=3, unscored=2),
    )  # fmt: skip
    write_table(tmp_path / "table.json", one)
    assert read_table(tmp_path / "table.json") == one


def broken(change: str) -> Any:
    """A valid table in its JSON form, with one part broken."""
    data = table().model_dump(mode="json")
    first = data["rows"][0]
    match change:
        case "version":
            data |= {"version": 2, "shape": "new"}
        case "list":
            return [data]
        case "key":
            first["rewards"] = 1
        case "interval":
            first["reward"]["low"] = 1.5
        case "negative":
            first["generated_tokens"] = {"mean": 1, "low": -1, "high": 2, "count": 3}
        case "nan":
            first["latency_mean_s"]["mean"] = float("nan")
        case "policy":
            data["policies"] = {"vbon": "fake"}
        case "twice":
            data["rows"] *= 2
        case "concurrency":
            data["concurrency"] = None
        case "empty":
            data["rows"] = []
        case "zone":
            data["made_at"] = "2026-11-01T00:00:00"
    return data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("version", "the table has version 2, and this program reads version 1; measure it again"),
        ("list", "Input should be a valid dictionary"),
        ("key", "rows.0.rewards: Extra inputs"),
        ("interval", "the interval [1.5, 1.1] excludes its mean 1.0"),
        ("negative", "the interval begins at -1.0"),
        ("nan", "rows.0.latency_mean_s.mean: Input should be a finite number"),
        ("policy", "row 0 uses policy 'ref', whose revision is missing"),
        ("twice", "row 1 repeats the setting 'bon n=4'"),
        ("concurrency", "row 0 has a latency, so the table must say at which concurrency"),
        ("empty", "rows: List should have at least 1 item"),
        ("zone", "made_at: Input should have timezone info"),
    ],
)
def test_a_broken_table_is_refused_with_the_reason(tmp_path: Path, change: str, said: str) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(broken(change)))
    with pytest.raises(DataError) as refused:
        read_table(file)
    assert said in str(refused.value)
    assert str(file) in str(refused.value)


def test_files_that_are_not_tables_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    for content in (b"", b"{", b"\xff\xfe\x00", b"[" * 100_000):
        file.write_bytes(content)
        with pytest.raises(DataError, match="is not a table of measured settings"):
            read_table(file)
    with pytest.raises(DataError, match="cannot read"):
        read_table(tmp_path / "absent.json")
    with pytest.raises(ExportError):
        write_table(file / "below-a-file.json", table())


def test_a_table_is_stale_where_anything_it_depends_on_has_changed() -> None:
    one = table(hardware="2 cores", policies={"ref": "r1", "vbon": "v1"}, reward_revision="w1")
    served = {"ref": "r1", "vbon": "v1", "other": "o1"}
    assert one.stale_reasons(served, "w1", "2 cores") == []
    assert one.stale_reasons(served, "w2", "2 cores") == [
        "The table was measured with revision w1 of the reward model, and this service has revision w2 of "
        "the reward model."
    ]
    assert one.stale_reasons(served, None, "2 cores")[0].endswith(
        "this service has no reward model."
    )
    assert one.stale_reasons(served, "w1", "an H200") == [
        "The table was measured on '2 cores', and this service runs on 'an H200'."
    ]
    assert one.stale_policies({"ref": "r2"}) == {
        "ref": "Policy 'ref' was measured at revision r1, and revision r2 is served.",
        "vbon": "Policy 'vbon' of the table is not served.",
    }
    # Reasons are independent of each other: every combination says exactly its own.
    for policy, reward, machine in itertools.product(("r1", "r2"), ("w1", "w2"), ("2 cores", "4")):
        found = one.stale_reasons({"ref": policy, "vbon": "v1"}, reward, machine)
        assert len(found) == (policy != "r1") + (reward != "w1") + (machine != "2 cores")


def test_labels_tell_settings_apart() -> None:
    assert row().label == "bon n=4"
    assert row(policy="vbon", n=2).label == "bon@vbon n=2"
    assert row("vbon", 1, policy="vbon", temperature=0.5, top_p=0.9, top_k=40).label == (
        "vbon temperature=0.5 top_p=0.9 top_k=40"
    )
    assert row(max_tokens=48).key != row(max_tokens=64).key
    assert row("adaptive-bon", 8, settings={"max_n": 8}).label == "adaptive-bon n=8 max_n=8"


def test_the_front_is_what_no_place_dominates() -> None:
    places = [(float(p), float(g)) for p, g in itertools.product(range(3), repeat=2)]
    for chosen in itertools.product(places, repeat=4):
        expected = {i for i, own in enumerate(chosen) if not any(dominates(o, own) for o in chosen)}
        found = front(chosen)
        assert sorted(found) == sorted(expected)
        assert [chosen[i][0] for i in found] == sorted(chosen[i][0] for i in found)


def test_rows_without_a_figure_are_not_on_the_front() -> None:
    cheap, dear, worse, unknown = (
        row(n=1),
        row(n=8, reward=around(2.0)),
        row(n=2),
        row(n=3, reward=None),
    )

    def gain(one: MeasuredSetting) -> float | None:
        found = one.gain("reward")
        return None if found is None else found.mean

    found = pareto([dear, worse, unknown, cheap], gain, lambda one: one.generated_tokens.mean)
    assert found == [cheap, dear]


@pytest.mark.parametrize(
    ("visible", "program", "expected"),
    [
        (None, "echo NVIDIA H200; echo NVIDIA H200", "2 x NVIDIA H200, "),
        ("1", 'test "$3" = --id=1 && echo NVIDIA H200', "1 x NVIDIA H200, "),
        ("", "echo NVIDIA H200", "CPU"),
        (None, "exit 9", "CPU"),
        (None, None, "CPU"),
    ],
)
def test_hardware_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    program: str | None,
    expected: str,
) -> None:
    if program is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: EPYC 9\nmodel name\t: EPYC 9\n"
    )
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if program else str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cores = f"{len(os.sched_getaffinity(0))} core"
    told = hardware.describe_hardware.__wrapped__()
    if expected == "CPU":
        assert told.startswith(cores)
        assert told.endswith(f", {platform.machine()} EPYC 9")
    else:
        assert told.startswith(expected + cores)
