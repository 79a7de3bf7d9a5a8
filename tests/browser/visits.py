"""Pages opened in a real browser by a visitor who notes everything that goes wrong on them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

from service.runtime.runtime import Runtime
from tests.unit.fakes import on_a_port

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 60_000

# Pages that are open, with the address of their server.
_open_contexts: dict[BrowserContext, str] = {}


def find_chromium() -> str | None:
    """Where it is: ``CHROMIUM``, or what the path has."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Visitor:
    """Opens pages; ``complaints`` are console errors and warnings, refusals by the page's policy,
    exceptions, and requests to other hosts. What a test provokes on purpose it allows beforehand.
    """

    def __init__(self, browser: Browser) -> None:
        self.complaints: list[str] = []
        self._browser = browser
        self._allowed: list[re.Pattern[str]] = []
        self._contexts: list[BrowserContext] = []

    def allow(self, pattern: str) -> None:
        """Let complaints pass that match; call it before they come."""
        self._allowed.append(re.compile(pattern))

    async def open(
        self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False, **more: Any
    ) -> Page:
        """A page in a context of its own: no storage shared with any other."""
        context = await self._browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            **more,
        )
        self._contexts.append(context)
        _open_contexts[context] = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        context.set_default_timeout(PATIENCE_MS)
        page = await context.new_page()
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self._complain(f"exception: {error}"))
        page.on("request", lambda request: self._on_request(request, url))
        await page.goto(url)
        return page

    async def close(self) -> None:
        """Close all that was opened."""
        for context in self._contexts:
            if _open_contexts.pop(context, None) is not None:
                await context.close()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._complain(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _on_request(self, request: Request, url: str) -> None:
        asked = urlsplit(request.url)
        if asked.scheme not in {"data", "blob"} and asked.netloc != urlsplit(url).netloc:
            self._complain(f"request to another host: {request.url}")

    def _complain(self, text: str) -> None:
        if not any(pattern.search(text) for pattern in self._allowed):
            self.complaints.append(text)


@asynccontextmanager
async def hosted(
    runtime: Runtime, *, leaves_pages: bool = False, **options: Any
) -> AsyncGenerator[str, None]:
    """The real application under uvicorn, with whatever engines; its address without a path.

    Its pages are closed before it stops, unless ``leaves_pages``: one that still loads something then
    would complain of a server that is gone.
    """
    # Browsers keep connections open.
    async with on_a_port(runtime, **{"timeout_graceful_shutdown": 1, **options}) as url:
        address = url.removesuffix("/v1")
        try:
            yield address
        finally:
            if not leaves_pages:
                for context in [one for one, base in _open_contexts.items() if base == address]:
                    del _open_contexts[context]
                    await context.close()


async def assert_accessible(page: Page) -> None:
    """No breach of WCAG 2 A or AA, contrast included, that axe finds on the page as it is now."""
    options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}
    found = await Axe().run(page, options=options)
    breaches = [
        f"{one['id']}: {one['help']}: {[node['html'][:160] for node in one['nodes']]}"
        for one in found.response["violations"]
    ]
    assert not breaches, "\n".join(breaches)


async def assert_fits(page: Page) -> None:
    """Nothing sticks out sideways."""
    widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1], widths
