"""A real browser, and a visitor whose test fails if anything went wrong on a page."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright", reason="no playwright: pip install -e '.[dev]'")

from playwright.async_api import Browser, async_playwright, expect

from tests.browser.visits import FLAGS, PATIENCE_MS, Visitor, find_chromium

if TYPE_CHECKING:
    from tests.faults.stage import Stage


@pytest.fixture(scope="session")
async def browser() -> AsyncGenerator[Browser, None]:
    """Headless Chromium, one for all tests."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium: apt-get install chromium, or CHROMIUM=/path/to/it")
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        await browser.close()


@pytest.fixture
async def visitor(browser: Browser) -> AsyncGenerator[Visitor, None]:
    """Fails its test at the end where it has complaints."""
    found = Visitor(browser)
    yield found
    await found.close()
    assert found.complaints == []


@pytest.fixture(scope="session")
async def real_url(stage: Stage) -> str:
    """``python -m service`` on real vLLM and the tiny sandbox; its address."""
    return (await stage.service()).url
