"""The report of a load test, opened as a file in a real browser."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import expect

from service.loadtest.report.write import html_page
from service.loadtest.schema import LoadTestResult
from tests.browser.visits import Visitor, assert_accessible, assert_fits
from tests.unit.decided_runs import decided_run

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
