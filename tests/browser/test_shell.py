"""The page's frame in a real browser: views, theme, key, and what it says of the server."""

from __future__ import annotations

from playwright.async_api import expect

from tests.browser.visits import Visitor, hosted
from tests.unit.fakes import make_runtime


async def test_views_are_links_that_a_keyboard_and_an_address_reach(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#measure")
        await expect(page.locator(".readiness")).to_have_text("ready")
        await expect(page.get_by_role("link", name="Measure")).to_have_attribute(
            "aria-current", "page"
        )
        await page.get_by_role("link", name="Frontier").focus()
        await page.keyboard.press("Enter")
        await expect(page).to_have_title("Frontier · bestofn")
        await page.go_back()
        await expect(page).to_have_title("Measure · bestofn")
