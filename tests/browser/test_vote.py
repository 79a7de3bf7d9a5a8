"""The view Vote, in a real browser over the real application."""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.async_api import Page, expect

from service.store import Preference, Shown, add_preference, open_store
from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.fakes import make_runtime

PROMPT = "the film was"


async def open_deck(visitor: Visitor, url: str, prompts: str = PROMPT, **options: int) -> Page:
    page = await visitor.open(f"{url}/#vote", **options)
    await expect(page.get_by_text("4 prompts in the deck, shuffled")).to_be_visible()
    await page.get_by_text("in the deck, shuffled").click()
    await page.get_by_label("Prompts, one a line").fill(prompts)
    return page


async def test_verdicts_are_given_blind_by_key_and_the_next_pair_comes_by_itself(
    visitor: Visitor, tmp_path: Path
) -> None:
    file = str(tmp_path / "s.db")
    store = open_store(file)
    old = (Shown("vbon", 1, "a", revision="earlier"), Shown("ref", 1, "b", revision="earlier"))
    add_preference(store, Preference(PROMPT, *old, "a"))
    store.close()
    async with hosted(make_runtime(store=file)) as url:
        page = await open_deck(visitor, url)
        await expect(page.get_by_text("No verdicts on the models that are served")).to_be_visible()
        await page.get_by_label("One mode").select_option("bon")
        await page.get_by_label("Another", exact=True).select_option("ref")
        await page.get_by_role("button", name="Show me two answers").click()
        arena = page.get_by_role("group", name="Which is better?")
        await expect(arena).to_be_focused()
        blind = await arena.inner_html()
        assert not any(word in blind for word in ("bon", "ref", "reward"))
        await page.get_by_label("Max tokens").press("1")  # somebody writing is not judging
        await expect(arena.get_by_role("button", name="Left is better")).to_be_enabled()
        await page.get_by_label("Max tokens").fill("")
        await arena.focus()
        await page.keyboard.press("3")
        now = page.locator(".standings").first.locator("tbody tr")
        await expect(now).to_contain_text("1 verdict")
        chosen = await page.locator(".whose", has_text="your choice").locator("strong").inner_text()
        share = page.locator(".share[data-kind=people]").first
        await expect(share).to_have_text("100%" if chosen == "bon" else "0%")
        await expect(arena).to_be_focused()  # the next pair
        await page.keyboard.down("ArrowUp")
        await expect(now).to_contain_text("2 verdicts")
        await expect(arena).to_be_focused()
        await page.keyboard.down("ArrowUp")  # held down, it judges no pair that nobody has read
        await page.keyboard.up("ArrowUp")
        await page.keyboard.press("0")
        await expect(page.get_by_text("The last pair. You find both bad.")).to_be_visible()
        await expect(now).to_contain_text("3 verdicts 1 both bad")
        await page.get_by_text("Verdicts on other models, such as earlier").click()
        earlier = page.locator("details .standings tbody tr")
        await expect(earlier).to_contain_text("1 verdict")
        await assert_accessible(page)
        async with httpx.AsyncClient(base_url=url) as client:
            line, before = (await client.get("/preferences")).json()["standings"]
        assert (line["mode"], line["against"], line["both_bad"]) == ("bon", "ref", 1)
        assert line["human_win_rate"]["mean"] == (float(chosen == "bon") + 1) / 3
        assert (line["current"], before["current"]) == (True, False)


async def test_a_pair_that_cannot_be_made_says_why_and_a_phone_has_room(
    visitor: Visitor, tmp_path: Path
) -> None:
    visitor.allow("status of 422")
    async with hosted(make_runtime(store=str(tmp_path / "s.db"))) as url:
        page = await open_deck(visitor, url, "", width=390, height=844)
        show = page.get_by_role("button", name="Show me two answers")
        await show.click()
        await expect(page.get_by_role("alert").first).to_contain_text("The deck is empty")
        await page.get_by_label("Prompts, one a line").fill(PROMPT)
        await page.get_by_label("Another", exact=True).select_option("bon")
        await show.click()
        await expect(page.locator(".blind .error")).to_contain_text("choose two that differ")
        await page.get_by_label("Another", exact=True).select_option("ref")
        await show.click()
        await expect(page.get_by_role("group", name="Which is better?")).to_be_visible()
        await assert_fits(page)
        await assert_accessible(page)


async def test_a_service_without_a_store_says_so(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#vote")
        await expect(page.get_by_text("keeps no verdicts")).to_be_visible()
        await expect(page.get_by_role("form", name="The deck")).to_be_hidden()
