"""The view Runs in a real browser: a load test from the form to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route, expect

from service.auth.keys import new_key, write_keys
from service.loadtest.config import LoadTestSettings
from service.runtime.runtime import Runtime
from service.store import add_run, open_store
from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.fakes import make_runtime
from vbon.engine.fake import FakeEngine

MARKUP = "<img src=x onerror=\"document.title='gone'\"><script>document.title='gone'</script>"
TAG = "<b onclick=alert(1)>before</b>"
LONG_MS = 90_000  # a client starts, measures for some seconds and draws a report, on a busy machine


def slow_runtime(**settings: Any) -> Runtime:
    engines = {name: FakeEngine(name, seconds_per_token=0.002) for name in ("ref", "vbon")}
    return make_runtime(engines=engines, **{"store": "none", **settings})


async def fill(page: Page, rounds: int = 1, seconds: float = 0.3) -> None:
    """A short load test of one load level."""
    await expect(page.get_by_role("checkbox", name="vbon")).to_be_checked()
    await page.get_by_label("N of bon").fill("2, 4")
    await page.get_by_label("Requests in flight").fill("2")
    await page.get_by_label("Rounds").fill(str(rounds))
    await page.get_by_label("Seconds a block").fill(str(seconds))
    await page.get_by_label("Max tokens").fill("8")


def state(page: Page, words: str) -> Any:
    return page.get_by_role("region", name="The load test").get_by_text(words, exact=True)


async def test_a_load_test_grows_ends_and_opens_its_report_in_which_nothing_is_markup(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with hosted(slow_runtime(store=str(tmp_path / "s.db"))) as url:
        page = await visitor.open(f"{url}/#runs")
        await expect(page.get_by_text("Nothing is measured yet.")).to_be_visible()
        await expect(page.get_by_text("None yet.")).to_be_visible()
        await expect(
            page.get_by_text(
                "45 blocks (3 variants, 3 load levels, 5 rounds): half a minute to choose"
            )
        ).to_be_visible()
        await assert_accessible(page)
        await fill(page)
        await page.get_by_text("More settings").click()
        await page.get_by_label("Prompts", exact=True).fill(f"{MARKUP}\nthe film was")
        await page.get_by_label("Tags").fill(TAG)
        await expect(
            page.get_by_text("4 blocks (4 variants, 1 load level, 1 round)")
        ).to_be_visible()
        await page.get_by_label("Tags").press("Enter")
        await expect(state(page, "running")).to_be_visible()
        await expect(page.get_by_role("button", name="Start")).to_be_disabled()
        await expect(page.get_by_role("heading", name="So far")).to_be_visible(timeout=LONG_MS)
        await expect(state(page, "finished")).to_be_visible(timeout=LONG_MS)
        await expect(page.get_by_role("heading", name="What it says")).to_be_visible()
        await expect(
            page.get_by_role("img", name="Throughput against latency: ref at 2")
        ).to_be_visible()
        await expect(page.get_by_role("img", name="Reward against cost: ref")).to_be_visible()
        speed = page.get_by_role("table", name="Speed of each mode at each load")
        await expect(speed.get_by_role("rowheader")).to_have_text(
            ["ref", "vbon", "bon (N=2)", "bon (N=4)"]
        )
        worth = page.get_by_role("table", name="What each mode's answers are worth and cost")
        for figures in (speed, worth):
            await expect(
                figures.get_by_role("columnheader", name="cut off", exact=True)
            ).to_be_visible()
        past = page.get_by_role("region", name="Past runs").get_by_role("listitem")
        await expect(past).to_have_count(1)
        await expect(past).to_contain_text(TAG)
        await assert_accessible(page)
        async with page.expect_popup() as opened:
            await page.get_by_role("link", name="Open the report").click()
        report = await opened.value
        await expect(report.get_by_role("note", name="Decision")).to_be_visible()
        await expect(report.get_by_text(MARKUP).first).to_be_visible()
        assert await report.evaluate("window.origin") == "null"
        assert await report.title() != "gone"
        await (
            report.close()
        )  # a page behind another is drawn once a second, and each click waits for it
        assert await page.title() == "Runs · vbon"
        await page.get_by_role("button", name="Start").click()
        await expect(state(page, "running")).to_be_visible()
        await expect(past).to_have_count(2, timeout=LONG_MS)
        compare = page.get_by_role("button", name="Compare two")
        await expect(compare).to_be_disabled()
        for box in await page.get_by_role("checkbox", name="Compare run").all():
            await box.check()
        await compare.click()
        compared = page.locator(".compared")
        await expect(compared).to_contain_text("Too few rounds to tell a change from chance")
        await expect(compared).to_contain_text("Both measured the same models.")
        figures = page.get_by_role("region", name="in figures")
        await expect(figures.get_by_role("row", name="bon (N=4) mean reward")).to_be_visible()
        await past.first.get_by_role("button", name="Rename").click()
        await page.get_by_label("Name", exact=True).fill(TAG)
        await past.first.get_by_label("Tags").fill("after, quick")
        await assert_accessible(page)
        await page.get_by_label("Name", exact=True).press("Enter")
        await expect(past.first.locator("strong")).to_have_text(TAG)
        await expect(past.first.locator(".badge")).to_have_text(["after", "quick"])
        await page.get_by_label("Rounds").fill("9")
        await past.first.get_by_role("button", name="Again").click()
        await expect(
            page.get_by_text("4 blocks (4 variants, 1 load level, 1 round)")
        ).to_be_visible()
        await expect(page.get_by_text("Its prompts came from")).to_be_visible()
        await past.first.get_by_role("button", name="Delete").click()
        await page.keyboard.press("Escape")
        await expect(past.first.get_by_role("button", name="Delete")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Delete it").click()
        await expect(past).to_have_count(1)
        await expect(past).to_contain_text(TAG)
        await expect(page.get_by_role("region", name="The load test")).to_be_hidden()
        await assert_accessible(page)


async def test_again_asks_for_all_that_the_run_had_and_for_nothing_else(
    visitor: Visitor, tmp_path: Path
) -> None:
    settings = LoadTestSettings(
        modes=["ref", "vbon"], concurrency=[2], rounds=7, duration_s=3, warmup_s=0.5, max_tokens=9,
        slo=["e2e:500", "ttft:90"], stream=False, seed=11, temperature=0.5, quality_samples=2,
    ).model_dump(mode="json")  # fmt: skip
    stored = {
        "id": "0123456789ab", "created": "2026-01-01T10:00:00+00:00", "schema_version": "1.0",
        "decision": ["yes"], "server": {"url": "http://host"}, "settings": settings,
    }  # fmt: skip
    store = open_store(str(tmp_path / "s.db"))
    add_run(store, stored, ["a, b"])
    store.close()
    visitor.allow("status of 429")
    sent: list[dict[str, Any]] = []

    async def refuse(route: Route) -> None:
        if route.request.method == "POST":
            sent.append(route.request.post_data_json)
            error = {"type": "overloaded", "message": "busy"}
            await route.fulfill(status=429, json={"error": error})
        else:
            await route.continue_()

    async with hosted(slow_runtime(store=str(tmp_path / "s.db"))) as url:
        page = await visitor.open(f"{url}/#runs")
        await page.route("**/loadtests", refuse)
        await fill(page)
        await page.get_by_text("More settings").click()
        await page.get_by_label("Prompts", exact=True).fill("of an earlier idea")
        await page.get_by_role("button", name="Again").click()
        await page.get_by_role("button", name="Start").click()
        await expect(page.get_by_text("busy")).to_be_visible()
        await page.get_by_role("button", name="Rename").click()
        await page.get_by_label("Name", exact=True).fill("first")
        await page.get_by_role("button", name="Save").click()
        await expect(page.locator(".runs strong")).to_have_text("first")
        await expect(page.locator(".runs .badge")).to_have_text(["a, b"])  # still one tag
        await expect(page.get_by_role("button", name="Rename first")).to_be_focused()
        await page.get_by_role("button", name="Delete first").click()
        await page.get_by_role("button", name="Delete it").click()
        await expect(page.get_by_role("heading", name="Past runs")).to_be_focused()
    assert sent[0] == {
        "modes": ["ref", "vbon"], "n": [16], "concurrency": [2], "rate": [], "rounds": 7, "duration_s": 3,
        "warmup_s": 0.5, "max_tokens": 9, "slo_ms": {"e2e": 500, "ttft": 90}, "stream": False,
        "seed": 11, "temperature": 0.5, "quality_samples": 2, "quality_prompts": 64,
        "baseline": "ref", "price_per_hour": 1, "currency": "USD", "tags": [],
    }  # fmt: skip


async def test_one_started_elsewhere_is_shown_can_be_stopped_and_keeps_what_it_measured(
    visitor: Visitor,
) -> None:
    async with hosted(slow_runtime()) as url:
        first = await visitor.open(f"{url}/#runs")
        await fill(first, rounds=20, seconds=0.5)
        await first.get_by_role("button", name="Start").click()
        page = await visitor.open(f"{url}/#runs", width=360, height=740, dark=True)
        await expect(page.get_by_role("heading", name="So far")).to_be_visible(timeout=LONG_MS)
        await expect(page.get_by_text("engine vbon:")).to_be_visible()
        await expect(page.get_by_role("img", name="Answers a second during")).to_be_visible()
        await page.get_by_role("link", name="Play", exact=True).click()
        await page.get_by_role("link", name="Runs", exact=True).click()
        await page.get_by_role("button", name="Stop and keep what is measured").click()
        await expect(state(page, "stopped early")).to_be_visible(timeout=LONG_MS)
        await expect(page.get_by_role("heading", name="What it says")).to_be_visible()
        await page.get_by_text("Warnings").click()
        await expect(page.get_by_text("The run was interrupted: ")).to_be_visible()
        await expect(page.get_by_role("button", name="Start")).to_be_enabled()
        await assert_fits(page)
        await assert_accessible(page)
        await expect(state(first, "stopped early")).to_be_visible()


async def test_a_refusal_is_told_at_its_field(visitor: Visitor) -> None:
    visitor.allow("status of 422")
    async with hosted(slow_runtime(limits={"loadtest_max_in_flight": 4})) as url:
        page = await visitor.open(f"{url}/#runs")
        await fill(page)
        in_flight = page.get_by_label("Requests in flight")
        await in_flight.fill("2, 8")
        await page.get_by_role("button", name="Start").click()
        told = page.get_by_role("group", name="What went wrong")
        await expect(told).to_contain_text("concurrency is 8; this server allows at most 4")
        await expect(in_flight).to_be_focused()
        await expect(in_flight).to_have_attribute("aria-invalid", "true")
        await expect(page.get_by_role("button", name="Start")).to_be_enabled()
        await page.get_by_label("Seconds a block").fill("60")
        await page.get_by_label("Rounds").fill("20")
        await expect(page.get_by_text("this server allows 600 s")).to_be_visible()


async def test_one_that_fails_says_why(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.routes.loadtests.own_url", lambda _: "http://127.0.0.1:9")
    async with hosted(slow_runtime()) as url:
        page = await visitor.open(f"{url}/#runs")
        await fill(page)
        await page.get_by_role("button", name="Start").click()
        await expect(page.get_by_role("alert").filter(has_text="not reachable")).to_be_visible(
            timeout=LONG_MS
        )
        await expect(state(page, "failed")).to_be_visible()
        await expect(page.get_by_text("Nothing is measured yet.")).to_be_visible()


async def test_a_server_that_takes_none_says_so(visitor: Visitor) -> None:
    async with hosted(slow_runtime(limits={"loadtest_max_s": 0})) as url:
        page = await visitor.open(f"{url}/#runs")
        await expect(page.get_by_text("This server takes no load tests")).to_be_visible()
        await expect(page.get_by_role("button", name="Start")).to_be_disabled()
        await expect(page.get_by_text("This server keeps no runs")).to_be_visible()


async def test_with_a_key_the_load_and_the_report_have_it_too(
    visitor: Visitor, tmp_path: Path
) -> None:
    visitor.allow("status of 401")
    key, token = new_key("ann")
    write_keys(tmp_path / "keys.jsonl", [key])
    runtime = slow_runtime(auth={"keys_file": str(tmp_path / "keys.jsonl")})
    async with hosted(runtime) as url:
        page = await visitor.open(f"{url}/#runs")
        await page.get_by_label("Key", exact=True).fill(token)
        await page.get_by_role("button", name="Use it").click()
        await fill(page)
        await page.get_by_role("button", name="Start").click()
        await expect(state(page, "finished")).to_be_visible(timeout=LONG_MS)
        async with page.expect_popup() as opened:
            await page.get_by_role("link", name="Open the report").click()
        report = await opened.value
        await expect(report.get_by_role("note", name="Decision")).to_be_visible()
        assert "/page/reports/" in report.url
        assert token not in report.url


@pytest.mark.vllm
async def test_the_real_service_measures_itself(visitor: Visitor, real_url: str) -> None:
    page = await visitor.open(f"{real_url}/#runs")
    await fill(page, seconds=1)
    await page.get_by_role("button", name="Start").click()
    await expect(state(page, "finished")).to_be_visible(timeout=2 * LONG_MS)
    await expect(page.get_by_role("img", name="Reward against cost: ref")).to_be_visible()
    speed = page.get_by_role("table", name="Speed of each mode at each load")
    await expect(speed.get_by_role("columnheader", name="TTFT p50 / p95, ms")).to_be_visible()
    await expect(speed.get_by_role("columnheader", name="failed")).to_have_count(0)
    await page.get_by_role("link", name="Explore").click()
    await expect(page.get_by_role("region", name="Policy vbon")).to_contain_text("Steps")
    figures = page.get_by_role("table", name="All figures")
    await expect(figures.get_by_role("row", name="bon, N = 4 load test")).to_be_visible()
