"""The groups of tests that share engines, and the faults that need no group."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.worker_groups import APART, SLOW_FILES, group_of, place_in_order

TESTS = Path(__file__).resolve().parents[1]
FAULT = "tests/faults/test_faults.py::test_the_promise_holds"


@pytest.mark.parametrize("name", APART)
def test_a_fault_apart_uses_no_service_of_the_stage(name: str) -> None:
    """Else another process of the tests would start that service once more."""
    source = (TESTS / "faults" / f"{name.strip('[]')}.py").read_text(encoding="utf-8")
    assert "serving(" in source
    assert not re.search(r"\bstage\.(service|second_service)\(", source)
    assert not re.search(
        r"^from tests\.faults\.(?!service|stage|steady_load|tally|tools)", source, re.M
    )
    assert group_of(FAULT + name) is None


def test_shared_engines_come_first_and_slow_files_before_others() -> None:
    order = [
        FAULT + "[soak]",
        FAULT + APART[0],
        f"tests/unit/{SLOW_FILES[0]}::test_x",
        f"tests/unit/{SLOW_FILES[1]}::test_x",
        FAULT + "[training_killed]",
    ]
    mixed = order[::-1]
    assert sorted(mixed, key=place_in_order) == order


@pytest.mark.parametrize("name", SLOW_FILES)
def test_every_slow_file_is_there(name: str) -> None:
    assert (TESTS / "unit" / name).is_file()
