"""Strategies, objectives and folders have rows in the documentation, and the rows are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.strategies import STRATEGIES
from training.objectives import DEFAULT_GRID, OBJECTIVES, objective_type

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page: str, names_column: str) -> dict[str, dict[str, str]]:
    """The rows of a page's table by the name in the first column; each cell by its column's title."""
    found: dict[str, dict[str, str]] = {}
    titles: list[str] = []
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if not line.startswith("| "):
            titles = []
            continue
        cells = [cell.strip() for cell in line.replace(r"\|", "\0").strip("|").split("|")]
        if not titles:
            titles = cells
        elif titles[0] == names_column and not cells[0].startswith("---"):
            found[cells[0].strip("`")] = dict(zip(titles, cells, strict=True))
    return found


STRATEGY_ROWS = rows("strategies.md", "mode")
OBJECTIVE_ROWS = rows("objectives.md", "command")


@pytest.mark.parametrize(
    ("page", "documented", "registered"),
    [
        ("docs/strategies.md", STRATEGY_ROWS, STRATEGIES.built_in),
        ("docs/objectives.md", OBJECTIVE_ROWS, OBJECTIVES.built_in),
    ],
)
def test_every_name_has_its_row(
    page: str, documented: dict[str, object], registered: tuple[str, ...]
) -> None:
    missing = [name for name in registered if name not in documented]
    assert not missing, f"the table of {page} has no row for {', '.join(missing)}"
    stale = [name for name in documented if name not in registered]
    assert not stale, f"the table of {page} has rows for {', '.join(stale)}, which do not exist"


@pytest.mark.parametrize("mode", STRATEGIES.built_in)
def test_a_strategy_s_row_has_all_its_settings(mode: str) -> None:
    row = STRATEGY_ROWS.get(mode, {}).get("settings (default)", "")
    if "the same" not in row and "as `" not in row:
        missing = [name for name in STRATEGIES[mode].model_fields if f"`{name}`" not in row]
        assert not missing, f"docs/strategies.md: the row of {mode} lacks {', '.join(missing)}"


@pytest.mark.parametrize("name", OBJECTIVES.built_in)
def test_an_objective_s_row_says_what_it_takes_and_assumes(name: str) -> None:
    row, objective = OBJECTIVE_ROWS.get(name, {}), objective_type(name)
    for setting, flag in (("num_samples", "`--num-samples`"), ("beta", "`--beta`")):
        assert (flag in row.get("strength", "")) == (setting in objective.model_fields), (
            f"docs/objectives.md: the row of {name} says {row.get('strength')!r} of its strength, but its "
            f"settings are {', '.join(objective.model_fields)}"
        )
    expected = "warns" if objective.strict_order else "handles"
    assert row.get("ties") == expected, (
        f"docs/objectives.md: the row of {name} should say {expected!r} of ties, as strict_order does"
    )


def test_the_default_sweep_varies_a_setting_of_every_objective() -> None:
    varied = dict(entry.split(": ") for entry in DEFAULT_GRID)
    assert tuple(varied) == OBJECTIVES.built_in
    for name, values in varied.items():
        assert values.split("=")[0] in objective_type(name).model_fields, name


@pytest.mark.parametrize("package", ["service", "training", "vbon"])
def test_the_architecture_page_names_every_folder_and_module(package: str) -> None:
    named = {
        name
        for cells in rows("architecture.md", f"{package}/")
        for name in re.findall(r"[a-z_]+(?:/|\.py)", cells)
    }
    folder = DOCS.parent / package
    found = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    found |= {path.name for path in folder.glob("[a-z]*.py")}
    assert named == found, f"docs/architecture.md: the table of {package}/ and its content differ"
