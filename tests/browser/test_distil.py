"""The view Distil in a real browser: a checkpoint from its submission to its rollback, by an admin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Page, expect

from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.fakes import make_runtime
from tests.unit.rolling import (
    ANN_KEY,
    GOOD,
    ROOT_KEY,
    SpeakerBuilder,
    bearer,
    decision,
    rolling_runtime,
    write_spoken,
)

MARKUP = "<img src=x onerror=\"document.title='gone'\">"


@asynccontextmanager
async def rolled_out(tmp_path: Path) -> AsyncGenerator[tuple[str, httpx.AsyncClient], None]:
    """A service that rolls out checkpoints: its address, and a client with an admin's key."""
    runtime = rolling_runtime(tmp_path)
    async with (
        hosted(runtime, rebuild=SpeakerBuilder()) as url,
        httpx.AsyncClient(base_url=url, headers=bearer(ROOT_KEY), timeout=30) as client,
    ):
        async with asyncio.timeout(60):  # the state is read from the store
            while (await client.get("/distil/checkpoints")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        yield url, client


async def submit(client: httpx.AsyncClient, tmp_path: Path, name: str, **changed: Any) -> None:
    path = write_spoken(tmp_path / "kept", name, GOOD)
    body = {"path": path, "decision": decision() | changed}
    (await client.post("/distil/checkpoints", json=body)).raise_for_status()


async def open_with_key(visitor: Visitor, url: str, key: tuple[Any, str], **more: Any) -> Page:
    visitor.allow("status of 401")
    page = await visitor.open(f"{url}/#distil", **more)
    await page.get_by_label("Key", exact=True).fill(key[1])
    await page.keyboard.press("Enter")
    await expect(page.locator("#readiness")).to_have_text("ready")
    return page


async def decide(page: Page, button: str, answer: str) -> None:
    await page.get_by_role("button", name=button).click()
    await page.get_by_role("dialog").get_by_role("button", name=answer, exact=True).click()


async def test_an_admin_follows_promotes_and_rolls_back_a_checkpoint(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with rolled_out(tmp_path) as (url, client):
        page = await open_with_key(visitor, url, ROOT_KEY)
        loop = page.get_by_role("region", name="Training loop")
        await expect(loop).to_be_hidden()
        report = {"round": "0001", "phase": "train", "done": 75, "of": 300, "left_s": 95}
        (await client.put("/distil/progress", json=report)).raise_for_status()
        await expect(loop).to_contain_text("Round 0001 trains.")
        await expect(loop).to_contain_text("75 of 300 (25%), about")
        bar = loop.get_by_role("progressbar", name="Progress of this step")
        await expect(bar).to_have_attribute("value", "0.25")
        silent = {**report, "next_within_s": 0.001}
        (await client.put("/distil/progress", json=silent)).raise_for_status()
        await expect(loop).to_contain_text("The loop has not reported for")
        await expect(loop.locator(".badge")).to_have_text("silent")
        stopped = {"round": "0001", "phase": "stopped"}
        (await client.put("/distil/progress", json=stopped)).raise_for_status()
        await expect(loop).to_contain_text("The loop has ended after round 0001.")
        shares = page.locator(".shares")
        await expect(shares).to_have_attribute("aria-label", "best-of-4 100%")
        await expect(page.get_by_text("None yet.")).to_be_visible()
        await assert_accessible(page)
        await submit(client, tmp_path, "0001", reasons=[MARKUP])
        card = page.get_by_role("region", name="Checkpoint 0001", exact=True)
        await expect(card).to_contain_text(MARKUP)
        await expect(card).to_contain_text(
            "It answers 50% of the requests of mode auto, step 1 of 2."
        )
        await expect(shares).to_have_attribute("aria-label", "best-of-4 50%, 0001, new 50%")
        for number in range(6):
            body = {"prompt": f"prompt {number}", "max_tokens": 4}
            answer = await client.post("/generate?mode=auto", json=body)
            answer.raise_for_status()
        compared = page.get_by_role("region", name="Compared", exact=True)
        await expect(compared).to_contain_text("each with 4 samples of the reference")
        await expect(card).to_contain_text("win rate 1.000 over the reference")
        await expect(card.get_by_role("progressbar", name="Good enough")).to_be_visible()
        chart = page.get_by_role("img", name="Win rate by checkpoint: 0001: 0.500, compared")
        await expect(chart).to_be_visible()
        for name in ("Reward by checkpoint: 0001: 0.50", "KL by checkpoint: 0001: 0.50 nats"):
            await expect(page.get_by_role("img", name=name, exact=True)).to_be_visible()
        await assert_accessible(page)
        # Cancelled, it changes nothing.
        await decide(page, "Next step: checkpoint 0001", "Cancel")
        await expect(page.get_by_role("dialog")).to_be_hidden()
        await expect(card).to_contain_text("step 1 of 2")
        await decide(page, "Next step: checkpoint 0001", "Next step")
        await expect(shares).to_have_attribute("aria-label", "0001, live 100%")
        await expect(page.get_by_role("region", name="Promoted")).to_contain_text("0001 is live")
        await expect(card.get_by_role("progressbar", name="Has become worse")).to_be_visible()
        await decide(page, "Back to best-of-4", "Back to best-of-4")
        await expect(shares).to_have_attribute("aria-label", "best-of-4 100%")
        await expect(card).to_contain_text("It was rolled back because a person decided so.")
        await decide(page, "Go back to it: checkpoint 0001", "Go back to it")
        await expect(shares).to_have_attribute("aria-label", "0001, live 100%")
        history = page.get_by_role("region", name="What happened").get_by_role("listitem")
        await expect(history.first).to_contain_text("0001 is live")
        await expect(page.get_by_text("0001 was rolled back: a person decided so")).to_be_visible()
        state = (await client.get("/distil/checkpoints")).json()
        assert state["live"] == "0001"
        net = round(state["saved_tokens"] - state["training_tokens"])
        name = "Saved" if net >= 0 else "Not paid back yet"
        saved = page.get_by_role("region", name=name, exact=True)
        await expect(saved).to_contain_text(f"{abs(net)} tokens")
        spent = 100 + state["shadows"]["tokens"] + sum(arm["tokens"] for arm in state["arms"])
        await expect(saved).to_contain_text(f"spent {spent}, training and comparisons included")
        await expect(saved).to_contain_text(f"always best-of-4: {spent + net}")
        assert await page.title() == "Distil · vbon"


async def test_what_waits_can_be_refused_and_all_of_it_fits_a_telephone(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with rolled_out(tmp_path) as (url, client):
        await submit(client, tmp_path, "0001", verdict="undecided")
        await submit(client, tmp_path, "0002")
        await submit(client, tmp_path, "0003", verdict="undecided")
        page = await open_with_key(visitor, url, ROOT_KEY, width=360, height=740, dark=True)
        await expect(page.get_by_role("img", name="KL by checkpoint")).to_be_visible()
        await expect(page.get_by_role("heading", level=3)).to_have_text(
            ["Checkpoint 0003", "Checkpoint 0002", "Checkpoint 0001"]
        )
        card = page.get_by_role("region", name="Checkpoint 0003", exact=True)
        await expect(card).to_contain_text("because its figures do not decide")
        await assert_fits(page)
        await assert_accessible(page)
        await decide(page, "Refuse: checkpoint 0003", "Refuse")
        await expect(card.locator(".badge")).to_have_text("refused")
        await expect(card.get_by_role("button")).to_have_text(["Promote"])


async def test_others_and_servers_without_it_are_told_what_it_needs(
    visitor: Visitor, tmp_path: Path
) -> None:
    visitor.allow("status of 403")
    async with rolled_out(tmp_path) as (url, _):
        page = await open_with_key(visitor, url, ANN_KEY)
        await expect(page.locator(".empty")).to_contain_text("does not have the admin role")
        await assert_accessible(page)
        await page.get_by_role("button", name="API key").click()
        await page.get_by_label("Key", exact=True).fill(ROOT_KEY[1])
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Look again").click()
        await expect(page.locator(".shares")).to_have_attribute("aria-label", "best-of-4 100%")
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#distil")
        await expect(page.locator(".empty code")).to_have_text("--distil.dir DIR")
        await assert_accessible(page)
