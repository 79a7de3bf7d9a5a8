"""The page's frame in a real browser: views, theme, key, and what it says of the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import expect

from service.auth.keys import new_key, write_keys
from service.bench.processes import free_port
from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.fakes import make_runtime
from vbon.engine.fake import FakeEngine


class SlowToLoad(FakeEngine):
    """Loads when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = asyncio.Event()

    async def start(self) -> None:
        await self.loaded.wait()
        await super().start()


async def test_views_are_links_that_a_keyboard_and_an_address_reach(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#runs")
        await expect(page.locator("#readiness")).to_have_text("ready")
        await expect(page.get_by_role("link", name="Runs")).to_have_attribute(
            "aria-current", "page"
        )
        await page.get_by_role("link", name="Explore").focus()
        await page.keyboard.press("Enter")
        await expect(page).to_have_title("Explore · vbon")
        await page.go_back()
        await expect(page).to_have_title("Runs · vbon")
        await page.goto(f"{url}/#nowhere")
        await expect(page).to_have_title("Decide · vbon")


async def test_the_theme_is_the_system_s_until_another_is_chosen_and_then_stays(
    visitor: Visitor,
) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play", dark=True)
        background = "getComputedStyle(document.body).backgroundColor"
        dark = await page.evaluate(background)
        switch = page.get_by_role("button", name="Dark theme")
        await expect(switch).to_have_attribute("aria-pressed", "true")
        await switch.click()
        await expect(switch).to_have_attribute("aria-pressed", "false")
        light = await page.evaluate(background)
        await page.reload()
        await expect(switch).to_have_attribute("aria-pressed", "false")
        assert (await page.evaluate(background)) == light != dark


async def test_while_models_load_it_says_so_and_goes_on_by_itself(visitor: Visitor) -> None:
    visitor.allow("status of 503")
    engine = SlowToLoad()
    async with hosted(make_runtime(engines={"ref": engine}, store="none"), ready=False) as url:
        page = await visitor.open(f"{url}/#play")
        await expect(page.locator("#banner")).to_contain_text("models are loading")
        await expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
        await assert_accessible(page)
        engine.loaded.set()
        await expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        await expect(page.locator("#banner")).to_be_hidden()


async def test_a_server_that_is_gone_is_missed_and_found_again(visitor: Visitor) -> None:
    visitor.allow("ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET")
    port = free_port()
    async with hosted(make_runtime(store="none"), leaves_pages=True, port=port) as url:
        page = await visitor.open(f"{url}/#play")
        await expect(page.locator("#readiness")).to_have_text("ready")
    await expect(page.locator("#banner")).to_contain_text("does not answer")
    async with hosted(make_runtime(store="none"), port=port):
        await expect(page.locator("#banner")).to_be_hidden()
        await expect(page.locator("#readiness")).to_have_text("ready")


async def test_a_key_is_asked_for_only_where_one_is_needed_and_kept_for_the_tab_alone(
    visitor: Visitor, tmp_path: Path
) -> None:
    visitor.allow("status of 401")
    key, token = new_key("ann")
    write_keys(tmp_path / "keys.jsonl", [key])
    auth = {"keys_file": str(tmp_path / "keys.jsonl")}
    async with hosted(make_runtime(store="none", auth=auth)) as url:
        page = await visitor.open(f"{url}/#play")
        dialog = page.get_by_role("dialog", name="API key")
        await expect(dialog).to_contain_text("this server requires an API key")
        await assert_accessible(page)
        await page.get_by_label("Key", exact=True).fill("wrong")
        await page.keyboard.press("Enter")
        await expect(dialog).to_contain_text("unknown or has been removed")
        await page.get_by_label("Key", exact=True).fill(token)
        await page.keyboard.press("Enter")
        await expect(dialog).to_be_hidden()
        await expect(page.locator("#readiness")).to_have_text("ready")
        await page.get_by_role("textbox", name="Prompt").fill("the film was")
        await page.keyboard.press("Control+Enter")
        await expect(page.locator(".column[data-state=done]")).to_have_count(3)
        kept = await page.evaluate("[JSON.stringify(localStorage), document.cookie]")
        assert not any(token in text for text in kept)
        await page.reload()
        await expect(page.locator("#readiness")).to_have_text("ready")
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
        await expect(page.locator("#readiness")).to_have_text("ready")
        await expect(page.get_by_role("button", name="API key")).to_be_hidden()


@pytest.mark.parametrize("dark", [False, True])
async def test_every_view_is_accessible_and_fits_a_telephone(visitor: Visitor, dark: bool) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play", width=360, height=740, dark=dark)
        await expect(page.locator("#readiness")).to_have_text("ready")
        for view in ("ask", "measure", "frontier", "distil"):
            await page.goto(f"{url}/#{view}")
            await assert_accessible(page)
            await assert_fits(page)


async def test_a_visitor_notices_what_the_page_may_not_do(visitor: Visitor) -> None:
    """What all other tests rely on: each kind of trouble is a complaint."""
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
        await expect(page.locator("#readiness")).to_have_text("ready")
        for script in (
            "document.body.setAttribute('style', 'color: red')",
            "document.head.append(Object.assign(document.createElement('script'), {text: '1'}))",
            "document.head.append(Object.assign(document.createElement('script'), {src: 'https://a.example/x.js'}))",
            "console.warn('a warning')",
            "setTimeout(() => { throw new Error('a slip') })",
            "new Promise((done) => setTimeout(done, 200))",
        ):
            await page.evaluate(f"async () => {{ await ({script}) }}")
    seen, visitor.complaints[:] = "\n".join(visitor.complaints), []
    for words in ("inline style", "inline script", "a.example/x.js", "a warning", "a slip"):
        assert words in seen, (words, seen)
