"""The view Tune in a real browser: a run's trials as they come, its plot, what it recommends, and apply."""

from __future__ import annotations

import re
import shlex
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Locator, Page, expect

from service.auth.keys import write_keys
from service.tune.config import TuneSettings
from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.fakes import make_runtime
from tests.unit.rolling import ANN_KEY, ROOT_KEY, bearer
from tests.unit.tuned_runs import (
    RUN,
    interval,
    measured_table,
    recommending,
    report,
    trial,
    tuned_setting,
)
from vbon.config import load_settings

MARKUP = "<img src=x onerror=\"document.title='gone'\">"
MISSED = tuned_setting(
    "ref", mode="ref", n=1, reaches=False, gains={"reward": interval(0.3)},
    margin=interval(-0.4), price=interval(12.0, 1.0),
)  # fmt: skip
TRIALS = [
    trial(1, best=MISSED), trial(2, error=f"HTTP 503: {MARKUP}"), trial(3),
    trial(4, best=tuned_setting("treebon, N=4", mode="treebon", price=None, over_limits=["p95 9 s"])),
]  # fmt: skip


@asynccontextmanager
async def tuned(tmp_path: Path) -> AsyncGenerator[tuple[str, httpx.AsyncClient], None]:
    """A service, and a client that reports to it as `vbon tune` does."""
    async with (
        hosted(make_runtime(store=str(tmp_path / "runs.db"))) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield url, client


async def put(client: httpx.AsyncClient, body: dict[str, Any], path: str = "") -> None:
    (await client.put(f"/tune/runs/{RUN}{path}", json=body)).raise_for_status()


def region(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name, exact=True)


async def test_trials_arrive_by_themselves_and_the_recommendation_is_applied(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with tuned(tmp_path) as (url, client):
        page = await visitor.open(f"{url}/#tune?judge=reward&n=8&price=2.5&p95=400")
        command = await page.get_by_label("command", exact=True).inner_text()
        words = shlex.split(command)
        asked = load_settings(TuneSettings, words[2:], program="vbon tune")
        assert words[:2] == ["vbon", "tune"]
        assert (asked.url, asked.target, asked.minimise) == (url, "reward >= best-of-8", "cost")
        assert (asked.price_per_hour, asked.p95_ms) == (2.5, 400)
        await assert_accessible(page)
        await put(client, report(trials=TRIALS[:1], best=MISSED))
        await page.reload()
        trials = region(page, "All trials").locator("tbody tr")
        await expect(trials).to_have_count(1)
        best = region(page, "Best so far")
        await expect(best).to_contain_text("Its lower bound misses reward >= best-of-4 by 0.500")
        await expect(page.get_by_text("1 of 20 trials has ended")).to_be_visible()
        good = tuned_setting()
        await put(client, report(trials=TRIALS, best=good, front=[MISSED, good]))
        await expect(trials).to_have_count(4)  # without a reload
        await expect(trials.nth(2)).to_contain_text(MARKUP)
        await expect(trials.nth(2)).to_contain_text("failed")
        await expect(best).to_contain_text("Its lower bound is 0.100 above reward >= best-of-4")
        plot = page.get_by_role("img", name="reward against tokens an answer: 2 settings")
        await expect(plot.locator(".point.missed")).to_have_count(1)
        await expect(plot.locator(".point.tuned")).to_have_count(1)
        assert await plot.locator(".bar").count() == 4  # of gain and price
        pareto = region(page, "Reward against tokens an answer")
        await expect(pareto).to_contain_text("1 trial failed and has no point: trial 2.")
        await expect(pareto).to_contain_text("1 trial without a known price has no point.")
        await expect(page.get_by_role("button", name="Answer mode auto")).to_have_count(0)
        await assert_accessible(page)
        await put(client, measured_table(), "/table")
        await put(client, recommending(trials=TRIALS))
        await expect(pareto.locator(".xy-chart .point.recommended")).to_have_count(1)
        checked = region(page, "Measured again with fresh seeds").get_by_role("row")
        await expect(checked.nth(1)).to_contain_text("test")
        await page.set_viewport_size({"width": 390, "height": 844})
        await assert_fits(page)
        apply = page.get_by_role("button", name="Answer mode auto with this setting")
        await apply.focus()
        await page.keyboard.press("Enter")
        await expect(region(page, "Recommended")).to_contain_text("answers with this setting alone")
        await expect(apply).to_be_disabled()
        answer = await client.post("/generate?mode=auto", json={"prompt": "a", "max_tokens": 2})
        assert answer.json()["routing"]["n"] == 4
        await page.get_by_role("link", name="Ask it in Play").click()
        await expect(page.get_by_role("checkbox", name="auto", exact=True)).to_be_visible()
        await page.get_by_role("link", name="Vote").click()
        sides = page.get_by_label("One mode").locator("option")
        await expect(sides.first).to_have_text("ref")
        assert "auto" not in await sides.all_inner_texts()  # the server makes no pairs of it
        assert not await page.evaluate("Boolean(window.Plotly)")


async def test_what_is_in_use_is_told_when_another_client_has_changed_it(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with tuned(tmp_path) as (url, client):
        await put(client, recommending())
        await put(client, measured_table(), "/table")
        apply = {"settings": "recommended"}
        (await client.post(f"/tune/runs/{RUN}/apply", json=apply)).raise_for_status()
        page = await visitor.open(f"{url}/#tune")
        await page.clock.install()
        await page.reload()
        button = page.get_by_role("button", name="Answer mode auto with this setting")
        await expect(button).to_be_disabled()
        (await client.delete("/auto/table")).raise_for_status()
        await page.clock.fast_forward(11_000)
        await expect(button).to_be_enabled()


async def test_runs_are_chosen_by_address_and_silent_and_other_states_are_told(
    visitor: Visitor, tmp_path: Path
) -> None:
    other = "f" * 12
    async with tuned(tmp_path) as (url, client):
        await put(client, report(trials=TRIALS, next_within_s=0.001))
        failed = report(status="failed", phase="ended", error=f"the models changed {MARKUP}")
        (await client.put(f"/tune/runs/{other}", json=failed)).raise_for_status()
        page = await visitor.open(f"{url}/#tune/{RUN}?judge=gold", dark=True)
        status = page.locator("section[aria-labelledby=tune-status]")
        await expect(status.locator(".badge")).to_have_text("silent")
        await expect(status).to_contain_text("No news since")
        await expect(status.locator("time")).to_have_attribute("datetime", re.compile("^20"))
        await assert_accessible(page)
        await page.get_by_label("Run", exact=True).select_option(other)
        await expect(status).to_contain_text(f"the models changed {MARKUP}")
        await expect(status.locator(".badge")).to_have_text("failed")
        await expect(page).to_have_url(f"{url}/#tune/{other}?judge=gold")
        await page.get_by_role("button", name="Remove this run").click()
        await page.get_by_role("dialog").get_by_role("button", name="Remove", exact=True).click()
        await expect(status.locator(".badge")).to_have_text("silent")
        await expect(page).to_have_url(f"{url}/#tune?judge=gold")
        runs = (await client.get("/tune/runs")).json()["runs"]
        assert [one["id"] for one in runs] == [RUN]


async def test_a_key_that_may_not_apply_is_told_so_and_sees_the_run(
    visitor: Visitor, tmp_path: Path
) -> None:
    visitor.allow("status of 40[13]")
    keys = tmp_path / "keys.jsonl"
    write_keys(keys, [ANN_KEY[0], ROOT_KEY[0]])
    runtime = make_runtime(store=str(tmp_path / "runs.db"), auth={"keys_file": str(keys)})
    async with (
        hosted(runtime) as url,
        httpx.AsyncClient(base_url=url, headers=bearer(ROOT_KEY), timeout=30) as client,
    ):
        await put(client, recommending())
        await put(client, measured_table(), "/table")
        page = await visitor.open(f"{url}/#tune")
        await page.get_by_label("Key", exact=True).fill(ANN_KEY[1])
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Let mode auto choose").click()
        trouble = page.get_by_role("group", name="What went wrong")
        await expect(trouble).to_contain_text("does not have the admin role")
        await expect(trouble).not_to_contain_text("Open this page at the address")
        assert (await client.get("/auto/table")).status_code == 404
