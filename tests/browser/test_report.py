"""The reports of a load test and of sweeps, opened as files in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import expect

from service.loadtest.report.write import html_page
from service.loadtest.schema import LoadTestResult
from tests.browser.visits import Visitor, assert_accessible, assert_fits
from tests.unit.decided_runs import decided_run
from tests.unit.test_report import cell, write_sweep
from training.configs import ReportConfig
from training.report.write import write_report

SETTINGS = {"currency": "EUR", "price_per_hour": 2.0, "baseline": "ref", "quality_prompts": 12}
HOSTILE = "</script><img src=x onerror=\"document.title='gone'\">"


def report(directory: Path, **changes: object) -> str:
    run = decided_run()
    run["settings"] = SETTINGS
    run["quality"][0]["rewards"] = [1.0, 2.0, 3.0]
    result = LoadTestResult.model_validate(run | changes)
    file = directory / "report.html"
    file.write_text(html_page(result), encoding="utf-8")
    return file.as_uri()


async def test_the_verdict_stands_first_and_follows_what_is_put_in(
    visitor: Visitor, tmp_path: Path
) -> None:
    page = await visitor.open(report(tmp_path))
    box = page.get_by_role("region", name="Verdict", exact=True)
    await expect(box).to_contain_text("Fine-tuning (vbon) pays after about 12,000 answers")
    below = await box.evaluate("node => node.getBoundingClientRect().bottom")
    assert below < 900  # on the first screen
    await page.get_by_label("Answers to serve, exactly").fill("100")
    await page.keyboard.press("Tab")
    await expect(box).to_contain_text("Keep bon (N=16) for 100 answers")
    charts = page.get_by_role("region", name="Charts")
    latency = charts.get_by_role("img", name="Throughput and latency: E2E p95, ms over")
    await expect(latency.locator('[data-variant="vbon"]')).to_have_count(1)
    await page.get_by_role("group", name="Shown in the charts").get_by_label("vbon").uncheck()
    await expect(latency.locator('[data-variant="vbon"]')).to_have_count(0)
    await expect(latency.locator('[data-variant="bon (N=16)"]')).to_have_count(1)
    await assert_accessible(page)


async def test_texts_of_a_run_stay_texts_and_a_phone_in_the_dark_shows_all(
    visitor: Visitor, tmp_path: Path
) -> None:
    url = report(tmp_path, warnings=[HOSTILE], decision=[HOSTILE])
    page = await visitor.open(url, width=360, height=740, dark=True)
    await expect(page.locator(".headline")).to_contain_text("Fine-tuning")
    await expect(page.get_by_role("note", name="Decision")).to_contain_text(HOSTILE)
    assert await page.title() == "N times inference, or one fine-tune?"
    await assert_fits(page)
    await assert_accessible(page)


async def test_a_run_that_compares_nothing_has_its_words_and_charts(
    visitor: Visitor, tmp_path: Path
) -> None:
    page = await visitor.open(report(tmp_path, break_even=[]))
    await expect(page.get_by_role("note", name="Decision")).to_contain_text("Fine-tune.")
    await expect(page.get_by_role("region", name="Charts").get_by_role("img").first).to_be_visible()
    await assert_accessible(page)


async def test_the_report_on_sweeps_hides_a_method_everywhere_and_keeps_texts_texts(
    visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.report.plots.draw_sweeps", lambda *_: [])  # only the page is read
    cells = [cell(HOSTILE, 4, 0, 0.8, 0.78), cell("kl-rl", 4, 0, 1.0, 0.77)]
    sweep = write_sweep(tmp_path / "sweep", cells)
    write_report(ReportConfig(sweeps=[sweep], out=tmp_path / "out"))
    file = tmp_path / "out" / "report.html"
    assert file.stat().st_size < 1e6
    page = await visitor.open(file.as_uri(), width=360, height=740, dark=True)
    chart = page.get_by_role("img", name="KL and win rate:")
    await expect(chart.locator("path.point.dim")).to_have_count(1)  # kl-rl's, which vbon dominates
    await chart.focus()
    tip = page.locator(".xy-tip:visible")
    for first in ("best-of-16", "best-of-8", "kl-rl", HOSTILE):  # from right to left
        await page.keyboard.press("ArrowLeft")
        await expect(tip.locator("p").first).to_contain_text(first)
    await assert_fits(page)
    await assert_accessible(page)
    await page.get_by_role("group", name="Show").get_by_label("kl-rl").uncheck()
    for plane in ("win rate", "gold win rate", "reward", "gold reward"):
        chart = page.get_by_role("img", name=f"KL and {plane}:")
        await expect(chart.locator("[data-variant]")).to_have_count(3)  # curve, band, one method
        await expect(chart.locator('[data-variant="kl-rl"]')).to_have_count(0)
    assert await page.title() == "Ways to distil best-of-N"
