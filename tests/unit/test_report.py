"""The report on synthetic sweeps: complete, self-contained, and clear about missing figures."""

from __future__ import annotations

import csv
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import vbon.report_html
from training.configs import ReportConfig
from training.report.plots import method_styles
from training.report.write import write_report
from vbon.errors import DataError

pytestmark = pytest.mark.train

EVIL = "<script>alert('x')</script> $\\frac{$ | {{main}} [/red]"


def estimate(mean: float, half: float = 0.02) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": 64}


def row(
    method: str, n: int, kl: float, win: float, kind: str, *, gold: bool = True
) -> dict[str, Any]:
    exact = kind != "Rao-Blackwellised"
    return {
        "method": method, "n": n,
        "reward": estimate(8 * win - 4, 0.1),
        "gold": estimate(6 * win - 3, 0.1) if gold else None,
        "win_rate": estimate(win),
        "gold_win_rate": estimate(0.9 * win + 0.05) if gold else None,
        "kl_nats": estimate(kl, 0.0 if exact else 0.05),
        "kl_kind": kind,
        "kl_other": {"naive": estimate(kl)},
        "tokens": estimate(20.0), "unscored": 0,
    }  # fmt: skip


def cell(
    variant: str, value: int | float, seed: int, kl: float, win: float, *,
    parameter: str = "num_samples", gold: bool = True,
) -> dict[str, Any]:  # fmt: skip
    return {
        "cell": {"objective": "vbon", "variant": variant, "parameter": parameter, "value": value,
                 "seed": seed},
        "status": "ok", "message": None,
        "row": row(variant, 1, kl, win, "Rao-Blackwellised", gold=gold),
        "cost": {"samples_drawn": 1000, "cached_samples": 4096, "sequences_trained": 900,
                 "tokens_drawn": 20000, "training_seconds": 12.5, "sample_seconds": 3.0,
                 "steps": 20},
        "config": {"seed": seed, "learning_rate": 2e-5}, "git_revision": "abc123",
        "versions": {"torch": "2.13"}, "checkpoint": f"checkpoints/{variant[:4]}-{value}-{seed}",
        "best_of_tuned": None,
    }  # fmt: skip


def ended(status: str, message: str, *, seed: int = 0) -> dict[str, Any]:
    lost = cell("bond", 4, seed, 0.1, 0.6)
    return {**lost, "status": status, "message": message, "row": None, "cost": None,
            "checkpoint": None}  # fmt: skip


def write_sweep(
    directory: Path, cells: list[dict[str, Any]], *, title: str = "sandbox", gold: bool = True
) -> Path:
    rows = [row("reference", 1, 0.0, 0.5, "zero", gold=gold)]
    rows += [
        row("best-of-n", n, math.log(n) - (n - 1) / n, n / (n + 1), "upper bound", gold=gold)
        for n in (2, 4, 8, 16)
    ]
    directory.mkdir(parents=True)
    baseline = {
        "config": {"num_samples": 16}, "git_revision": "abc123", "versions": {"torch": "2.13"},
        "machine": {"processor": "x"}, "created": "2026-01-01T00:00:00+00:00", "title": title,
        "prompts": 64, "revisions": {"policy": "p1", "reward": "r1"}, "rows": rows,
    }  # fmt: skip
    (directory / "baseline.json").write_text(json.dumps(baseline))
    for number, record in enumerate(cells):
        folder = directory / "cells" / f"cell-{number:02d}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
    return directory


class Page(HTMLParser):
    """The element names, linked addresses, and text outside scripts and styles of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self._silent = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in {"src", "href", "srcset", "data"}]
        self._silent = tag in {"script", "style"}

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    return some_cells()


def some_cells() -> list[dict[str, Any]]:
    return [
        cell("vbon", 4, 0, 0.8, 0.78), cell("vbon", 4, 1, 0.9, 0.80),
        cell("vbon", 16, 0, 2.0, 0.90), cell("kl-rl", 0.1, 0, 1.0, 0.77, parameter="beta"),
        cell("kl-rl", 0.1, 1, 1.0, 0.82, parameter="beta"),
        ended("diverged", "KL above the limit"), ended("failed", "out of memory", seed=1),
    ]  # fmt: skip


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take most of a report's time, in tests of its other files."""
    monkeypatch.setattr("training.report.plots.draw_sweeps", lambda *_: [])


undrawn = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a ``sweep`` and its report in ``out``."""
    folder = tmp_path_factory.mktemp("whole")
    sweep = write_sweep(folder / "sweep", some_cells())
    write_report(ReportConfig(sweeps=[sweep], out=folder / "out"))
    return folder


def test_report_is_one_whole_file_that_loads_nothing(whole: Path) -> None:
    names = {"frontier.png", "frontier.svg", "report.html", "report.json", "report.md",
             "records.json", "tables"}  # fmt: skip
    assert {path.name for path in (whole / "out").iterdir()} == names
    page = Page((whole / "out" / "report.html").read_text())
    assert [address for address in page.addresses if not address.startswith("#")] == []
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("figure") == 4
    assert page.tags.count("table") == page.tags.count("caption") > 0
    frame = (Path(vbon.report_html.__file__).parent / "templates" / "page.html").read_text()
    assert "default-src 'none'" in frame
    assert "https://" not in frame
    assert "http://" not in frame
    for words in ("KL above the limit", "out of memory", "5 measured, 1 diverged, 1 failed",
                  "4,096", "checkpoints/vbon-4-0"):  # fmt: skip
        assert words in page.text


@undrawn
def test_figures_in_json_are_those_derived_by_hand(tmp_path: Path, cells: list[Any]) -> None:
    write_report(
        ReportConfig(sweeps=[write_sweep(tmp_path / "sweep", cells)], out=tmp_path / "out")
    )
    tables = json.loads((tmp_path / "out" / "report.json").read_text())["sweeps"][0]["tables"]
    # Seed 0: kl-rl (1.0, .77) is dominated by vbon (.8, .78). Seed 1: nothing is dominated.
    by_method = {r["method"]: r for r in tables["pareto_win_rate"]}
    assert by_method["vbon"]["share"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "seeds": 2}
    assert by_method["kl-rl"]["share"] == {"mean": 0.5, "low": 0.0, "high": 1.0, "seeds": 2}
    target = tables["target_4"]["rows"]
    assert [r["method"] for r in target] == ["vbon"]
    assert target[0]["win_rate"]["mean"] == pytest.approx(0.79)
    assert target[0]["win_ratio"]["mean"] == pytest.approx(0.79 / 0.8)
    assert target[0]["kl_ratio"]["mean"] == pytest.approx(0.85 / (math.log(4) - 0.75))
    assert {row["method"]: row["samples_drawn"] for row in tables["cost"]["rows"]} == {
        "vbon": 1000, "kl-rl": 1000,
    }  # fmt: skip


@undrawn
def test_only_num_samples_makes_a_target(tmp_path: Path) -> None:
    cells = [cell("vbon", 4, 0, 0.8, 0.78), cell("dpo", 4, 0, 0.8, 0.78, parameter="beta")]
    write_report(
        ReportConfig(sweeps=[write_sweep(tmp_path / "sweep", cells)], out=tmp_path / "out")
    )
    tables = json.loads((tmp_path / "out" / "report.json").read_text())["sweeps"][0]["tables"]
    assert [r["method"] for r in tables["target_4"]["rows"]] == ["vbon"]


@undrawn
def test_summary_follows_the_tables(tmp_path: Path, cells: list[Any]) -> None:
    write_report(
        ReportConfig(sweeps=[write_sweep(tmp_path / "sweep", cells)], out=tmp_path / "out")
    )
    text = (tmp_path / "out" / "report.md").read_text()
    # One point of each method and seed. Seed 0: half of the draws have vbon's first point, which dominates
    # kl-rl's; seed 1: neither is dominated.
    assert "with equal grids and seeds: vbon with 100% [" in text
    assert "not distinguishable from it: kl-rl 75% [" in text
    assert (
        "Every method enters with 1 of its points per seed, chosen at random; seeds 0, 1." in text
    )
    assert "Closest to best-of-4's win rate of 0.800 among those trained towards it: vbon" in text
    assert "Closest to best-of-16's win rate of 0.941" in text


@undrawn
def test_a_single_seed_is_pointed_out(tmp_path: Path, cells: list[Any]) -> None:
    write_report(
        ReportConfig(sweeps=[write_sweep(tmp_path / "sweep", [cells[0]])], out=tmp_path / "out")
    )
    text = (tmp_path / "out" / "report.md").read_text()
    assert "over 1 seed. No interval covers the differences between seeds." in text


def test_texts_of_records_stay_text(tmp_path: Path) -> None:
    cells = [cell(EVIL, 4, 0, 0.8, 0.78), {**ended("failed", EVIL), "checkpoint": EVIL}]
    write_report(
        ReportConfig(
            sweeps=[write_sweep(tmp_path / "sweep", cells, title=EVIL)], out=tmp_path / "out"
        )
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page
    assert EVIL in Page(page).text
    assert Page(page).tags.count("h2") == 1
    # What a script reads is data to the parser, and has the texts as they are.
    (data,) = re.findall(r'<script type="application/json" id="chart-data">(.*?)</script>', page)
    assert not set("<>&") & set(data)
    series = json.loads(data)["plot-0-win_rate"]["series"]
    assert EVIL in series[-1]["name"]
    assert EVIL in series[-1]["points"][0]["about"]
    assert "<script>" not in (tmp_path / "out" / "report.md").read_text()
    assert "<script>" not in (tmp_path / "out" / "frontier.svg").read_text()


def test_without_gold_there_are_two_planes(tmp_path: Path) -> None:
    cells = [cell("vbon", 4, 0, 0.8, 0.78, gold=False)]
    write_report(
        ReportConfig(
            sweeps=[write_sweep(tmp_path / "sweep", cells, gold=False)], out=tmp_path / "out"
        )
    )
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert page.tags.count("figure") == 2
    assert "gold win rate" not in page.text


def test_a_cell_without_gold_is_left_out_of_the_gold_planes_only(tmp_path: Path) -> None:
    cells = [cell("vbon", 4, 0, 0.8, 0.78), cell("wind", 4, 0, 0.9, 0.79, gold=False)]
    write_report(
        ReportConfig(sweeps=[write_sweep(tmp_path / "sweep", cells)], out=tmp_path / "out")
    )
    tables = json.loads((tmp_path / "out" / "report.json").read_text())["sweeps"][0]["tables"]
    assert {row["method"] for row in tables["pareto_win_rate"]} == {"vbon", "wind"}
    assert {row["method"] for row in tables["pareto_gold"]} == {"vbon"}


def test_several_sweeps_share_one_page_and_one_script(tmp_path: Path, cells: list[Any]) -> None:
    sweeps = [write_sweep(tmp_path / name, cells, title="same") for name in ("one", "two")]
    write_report(ReportConfig(sweeps=sweeps, out=tmp_path / "out"))
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("class Chart {") == 1
    assert len(text) < 1e6
    page = Page(text)
    assert page.addresses == ["#sweep-0", "#sweep-1"]
    assert page.tags.count("figure") == 8
    ids = re.findall(r'<(?:section|div) id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) == 10


def test_only_failed_cells_give_a_page_that_says_so(tmp_path: Path) -> None:
    cells = [ended("failed", "out of memory"), ended("diverged", "KL above the limit")]
    write_report(
        ReportConfig(sweeps=[write_sweep(tmp_path / "sweep", cells)], out=tmp_path / "out")
    )
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert "No cell has figures, so the methods cannot be compared." in text
    assert "out of memory" in text
    assert "Most often" not in text


@undrawn
def test_cells_without_a_record_are_counted(tmp_path: Path, cells: list[Any]) -> None:
    sweep = write_sweep(tmp_path / "sweep", cells)
    (sweep / "cells" / "running").mkdir()
    (sweep / "cells" / ".cell.partial").mkdir()
    write_report(ReportConfig(sweeps=[sweep], out=tmp_path / "out"))
    assert "1 failed, 1 without a record yet" in (tmp_path / "out" / "report.md").read_text()


def test_same_records_give_the_same_files(tmp_path: Path, whole: Path) -> None:
    write_report(ReportConfig(sweeps=[whole / "sweep"], out=tmp_path / "again"))
    files = [path for path in (whole / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        same = tmp_path / "again" / path.relative_to(whole / "out")
        assert path.read_bytes() == same.read_bytes(), path.name


def with_prompts(record: dict[str, Any], shift: float) -> dict[str, Any]:
    """A record with figures of 16 prompts around its means."""
    around = [shift * (i - 7.5) / 7.5 for i in range(16)]
    kl, win = (record["row"][field]["mean"] for field in ("kl_nats", "win_rate"))
    figures = {"kl_nats": [kl + a for a in around], "win_rate": [win + a for a in around]}
    return {**record, "per_prompt": figures}


@undrawn
def test_targets_show_intervals_and_what_cannot_be_told_apart(tmp_path: Path) -> None:
    cells = [with_prompts(cell(m, 4, s, 0.8, w), 0.05 + s / 100)
             for m, w in (("vbon", 0.78), ("bon-sft", 0.781), ("bond", 0.6)) for s in (0, 1)]  # fmt: skip
    sweeps = [write_sweep(tmp_path / name, cells, title=name) for name in ("box 0", "box 1")]
    write_report(ReportConfig(sweeps=sweeps, out=tmp_path / "out", pool=True))
    text = (tmp_path / "out" / "report.md").read_text()
    parts = text.split("## All sandboxes")
    assert "All sandboxes" in Page((tmp_path / "out" / "report.html").read_text()).text
    for part in parts:
        assert re.search(r"\| vbon \| num_samples=4 \| [24] \| 0\.780 \[0\.7\d\d, 0\.\d+\]", part)
        line = re.search(
            r"\| vbon \| num_samples=4 \| [24] \| .*\| (yes|no) \|.*\| (yes|no) \|", part
        )
        assert line is not None
        assert line.groups() == ("no", "no")
        assert re.search(r"\| bond \| num_samples=4 \| .*\| yes \|.*\| yes \|", part)
        assert "Largest productive share of its KL: bon-sft" in part
        assert re.search(r"not distinguishable from it: vbon 0\.6\d \[0\.\d+, 0\.\d+\]\.", part)
    assert "sandboxes, training seeds, prompts" in parts[1]
    with pytest.raises(DataError, match="at least two sweeps"):
        write_report(ReportConfig(sweeps=sweeps[:1], out=tmp_path / "out", pool=True))


@undrawn
def test_tables_and_records_let_others_compute_the_report(tmp_path: Path, cells: list[Any]) -> None:
    sweep = write_sweep(tmp_path / "sweep", [with_prompts(cells[0], 0.05), *cells[1:]])
    write_report(ReportConfig(sweeps=[sweep], out=tmp_path / "out"))
    (found,) = json.loads((tmp_path / "out" / "records.json").read_text())["sweeps"]
    assert found["cells"]["cell-00"]["per_prompt"]["win_rate"][0] == pytest.approx(0.73)
    assert found["cells"]["cell-00"]["cost"]["samples_drawn"] == 1000
    assert [row["n"] for row in found["best_of_n"]] == [1, 2, 4, 8, 16]
    names = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert names >= {"sandbox-productive_share.csv", "sandbox-target_4.csv", "sandbox-cost.csv",
                     "sandbox-cells.csv"}  # fmt: skip
    assert "sandbox-settings.csv" not in names
    with (tmp_path / "out" / "tables" / "sandbox-target_4.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["method"], line["setting"]) == ("vbon", "num_samples=4")
    assert float(line["win_ratio.mean"]) == pytest.approx(0.79 / 0.8)
    assert float(line["kl.mean"]) == pytest.approx(0.85)


@undrawn
def test_budgets_count_cached_samples(tmp_path: Path, cells: list[Any]) -> None:
    none = {"cost": {**cells[3]["cost"], "cached_samples": 0, "optimizer_updates": 20}}
    sweep = write_sweep(tmp_path / "sweep", [cells[0], {**cells[3], **none}])
    write_report(ReportConfig(sweeps=[sweep], out=tmp_path / "out"))
    tables = json.loads((tmp_path / "out" / "report.json").read_text())["sweeps"][0]["tables"]
    assert {r["method"]: (r["samples_drawn"], r["cached_samples"], r["scored_texts"])
            for r in tables["cost"]["rows"]} == {
        "vbon": (1000, 4096, 5096), "kl-rl": (1000, 0, 1000),
    }  # fmt: skip


@undrawn
def test_a_search_is_shown_and_its_choices_lead(tmp_path: Path, cells: list[Any]) -> None:
    sweep = write_sweep(tmp_path / "sweep", [with_prompts(one, 0.05) for one in cells[:5]])
    tried = [
        {"method": m, "setting": s, "status": "ok", "kl_nats": estimate(kl), "win_rate": estimate(w)}
        for m, s, kl, w in (("vbon", "num_samples=4", 0.6, 0.75), ("vbon", "num_samples=16", 1.9, 0.88),
                            ("kl-rl", "beta=0.1", 0.9, 0.77), ("kl-rl", "beta=0.2", 0.3, 0.6))
    ]  # fmt: skip
    chosen = [{"method": m, "target": 4, "kl_budget": 0.636, "setting": s, "within_budget": w}
              for m, s, w in (("vbon", "num_samples=4", True), ("kl-rl", "beta=0.1", False))]  # fmt: skip
    record = {"validation": {"prompts": 64}, "search_seed": 1000, "tried": tried, "chosen": chosen}
    (sweep / "choices.json").write_text(json.dumps(record))
    write_report(ReportConfig(sweeps=[sweep], out=tmp_path / "out"))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Within the KL of best-of-4: Largest equivalent n: " in text
    assert "over 2 seeds.\n" in text
    assert re.search(r"\| 4 \| kl-rl \| beta=0\.1 \| 2 \|", text)
    assert re.search(r"\| kl-rl \| beta=0\.1 \| ok \| .* \| 4 \(over\) \|", text)
    assert re.search(r"\| vbon \| num_samples=16 \| ok \| .* \| - \|", text)
    assert re.search(r"\| method \| cells \|.*\| settings tried \|", text)


def test_no_two_methods_share_a_style() -> None:
    names = [f"method {i}" for i in range(98)]
    styles = method_styles(names)
    assert len({(s.colour, s.symbol, s.filled) for s in styles.values()}) == 98
    assert len({(s.colour, s.marker, s.filled) for s in styles.values()}) == 98
    assert len({(s.colour, s.glyph) for s in styles.values()}) == 98


def test_no_sweep_and_empty_sweeps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sweep directory"):
        write_report(ReportConfig(sweeps=[], out=tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty contains no baseline\.json"):
        write_report(ReportConfig(sweeps=[tmp_path / "empty"], out=tmp_path / "out"))
    with pytest.raises(DataError, match="no cell of the sweep has ended"):
        write_report(
            ReportConfig(sweeps=[write_sweep(tmp_path / "sweep", [])], out=tmp_path / "out")
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: "{", "Invalid JSON"),
        (lambda record: json.dumps({**record, "row": None}), 'needs a "row"'),
        (lambda record: json.dumps({**record, "status": "done"}), "status: "),
        (lambda record: json.dumps(record).replace("0.78,", "NaN,"), r"row\.win_rate\.mean: "),
        (lambda record: json.dumps(record).replace('"seed": 0', '"seed": "x"'), r"cell\.seed: "),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, change: Any, says: str) -> None:
    record = cell("vbon", 4, 0, 0.8, 0.78)
    sweep = write_sweep(tmp_path / "sweep", [record])
    (sweep / "cells" / "cell-00" / "record.json").write_text(change(record))
    with pytest.raises(DataError, match=f"cell-00/record\\.json.*{says}"):
        write_report(ReportConfig(sweeps=[sweep], out=tmp_path / "out"))


def test_a_baseline_without_a_curve_is_refused(tmp_path: Path, cells: list[Any]) -> None:
    sweep = write_sweep(tmp_path / "sweep", cells)
    record = json.loads((sweep / "baseline.json").read_text())
    (sweep / "baseline.json").write_text(json.dumps({**record, "rows": record["rows"][:1]}))
    with pytest.raises(DataError, match=r"baseline\.json.*best-of-n"):
        write_report(ReportConfig(sweeps=[sweep], out=tmp_path / "out"))
