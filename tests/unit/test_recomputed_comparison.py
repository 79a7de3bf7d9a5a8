"""The tables of docs/comparison, computed again from its records by other code; and that code can fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.recompute_comparison import DIRECTORY, differences, page_lines


def test_another_program_finds_the_same_figures() -> None:
    found = dict(differences(DIRECTORY))
    assert len(found) >= 10
    assert {table: list(what) for table, what in found.items() if what} == {}


def test_the_page_shows_the_figures_of_the_table() -> None:
    page = DIRECTORY.with_suffix(".md").read_text().splitlines()
    lines = page_lines(DIRECTORY)
    assert len(lines) >= 10
    assert [line for line in lines if line not in page] == []


@pytest.mark.parametrize(
    ("field", "table"),
    [("win_rate", "productive_share"), ("kl_nats", "target_4"), ("win_rate", "pareto_win_rate")],
)
def test_a_changed_record_is_found(tmp_path: Path, field: str, table: str) -> None:
    copy = tmp_path / "comparison"
    shutil.copytree(DIRECTORY, copy)
    records = json.loads((copy / "records.json").read_text())
    (copy / "records.json").write_text(json.dumps({"sweeps": records["sweeps"]}))
    assert not any(what for _, what in differences(copy))
    for number, cell in enumerate(records["sweeps"][0]["cells"].values()):
        factor = (0.97, 0.75)[number % 2]
        cell["per_prompt"][field] = [value * factor for value in cell["per_prompt"][field]]
    (copy / "records.json").write_text(json.dumps(records))
    found = dict(differences(copy))
    assert any(table in name and what for name, what in found.items())
