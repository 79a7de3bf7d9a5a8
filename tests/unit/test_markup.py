"""A parser finds the same elements in a page, whatever the texts of its run are."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from pydantic import ValidationError

from service.loadtest.report.write import html_page
from service.loadtest.schema import LoadTestResult
from tests.unit.test_loadtest import CLOCKED
from tests.unit.test_loadtest_results import whole_run
from tests.unit.test_report import cell, ended, write_sweep
from tests.unit.virtual_clock import run_virtually
from training.configs import ReportConfig
from training.report.write import write_report

ATTACKS = (
    "<script>alert(1)</script>",
    "</title></style></script><svg onload=alert(1)>",
    "\"><img src=x onerror=alert(1)>",
    "'><iframe srcdoc='<script>alert(1)</script>'>",
    "<!--<script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;<b>",
    "{{main}}<base href=//evil.example>",
    "\u2028</SCRIPT ><math><mtext><style><img src onerror=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>%{hovertext}<br>",
)  # fmt: skip


# All at once, since a page takes seconds to write; what one opens would hide others only behind it.
ALL = (" ".join(ATTACKS), " ".join(reversed(ATTACKS)))


class Elements(HTMLParser):
    """Start tags with the names of their attributes, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, *(name for name, _ in attrs)))


def with_texts(value: Any, text: str) -> Any:
    """A JSON value with every string replaced, but no key."""
    if isinstance(value, dict):
        return {key: with_texts(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_texts(inner, text) for inner in value]
    return text if isinstance(value, str) else value


def attacked(result: LoadTestResult, text: str) -> LoadTestResult:
    """The result with all texts replaced, except those that its schema restricts."""
    plain = result.model_dump(mode="json")
    for name, value in list(plain.items()):
        items = value if isinstance(value, list) else [value]
        for number, item in enumerate(items):
            parts = item if isinstance(item, dict) else {"": item}
            for key, part in parts.items():
                changed = dict(parts) | {key: with_texts(part, text)}
                new = changed if isinstance(item, dict) else changed[""]
                tried = [*items[:number], new, *items[number + 1 :]]
                try:
                    LoadTestResult.model_validate(
                        plain | {name: tried if isinstance(value, list) else tried[0]}
                    )
                except ValidationError:
                    continue
                parts, items = changed, tried
        plain[name] = items if isinstance(value, list) else items[0]
    return LoadTestResult.model_validate(plain)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> LoadTestResult:
    return run_virtually(whole_run(tmp_path_factory.mktemp("run")), *CLOCKED)


@pytest.mark.parametrize("attack", ALL)
def test_texts_of_a_load_test_make_no_elements(result: LoadTestResult, attack: str) -> None:
    harmless = html_page(attacked(result, "x" * 9))
    page = html_page(attacked(result, attack))
    assert Elements(page).found == Elements(harmless).found
    assert str(escape(attack)) in page  # it is there, as text


def test_the_attack_reaches_most_texts(result: LoadTestResult) -> None:
    changed = attacked(result, ATTACKS[0]).model_dump_json()
    assert changed.count("<script>") > 30


@pytest.mark.parametrize("attack", ALL)
def test_texts_of_a_training_report_make_no_elements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    monkeypatch.setattr("training.report.plots.draw_sweeps", lambda *_: [])  # only the page is read

    def page(text: str) -> str:
        folder = tmp_path / ("attacked" if "<" in text else "plain")
        cells = [cell(text, 4, 0, 0.8, 0.78), {**ended("failed", text), "checkpoint": text}]
        sweeps = [write_sweep(folder / "sweep", cells, title=text)]
        write_report(ReportConfig(sweeps=sweeps, out=folder / "out"))
        return (folder / "out" / "report.html").read_text(encoding="utf-8")

    assert Elements(page(attack)).found == Elements(page("x" * 7)).found
