"""The page of the API in a real browser, without any network but this server."""

from __future__ import annotations

from playwright.async_api import expect

from tests.browser.visits import Visitor, hosted
from tests.unit.fakes import make_runtime


async def test_the_api_is_read_and_tried_without_the_internet(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/docs")
        operation = page.locator("#operations-server-get_healthz_healthz_get")
        await operation.locator("button").first.click()
        await operation.get_by_role("button", name="Try it out").click()
        await operation.get_by_role("button", name="Execute").click()
        await expect(operation.locator(".live-responses-table")).to_contain_text("alive")
