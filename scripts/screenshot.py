"""Takes the screenshot of Decide that README shows, from the result of a load test.

    PYTHONPATH=. python scripts/screenshot.py runs/study/loadtest/result.json --out docs/images/decide.png

The page is this checkout's, and its figures are those of the result, by the code of `GET /decision`.
No model is loaded. Chromium is needed: `apt-get install chromium`, or `CHROMIUM=/path/to/it`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Route, async_playwright

from service.loadtest.analysis.decision_data import decision_data
from service.loadtest.schema import LoadTestResult
from service.page import INDEX, page_files, read_asset

HOST = "http://vbon.invalid"
SIZE = {"width": 1280, "height": 940}


def main() -> None:
    """Take the screenshot that the arguments describe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="result.json of a load test")
    parser.add_argument("--out", type=Path, default=Path("docs/images/decide.png"))
    arguments = parser.parse_args()
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if browser is None:
        sys.exit("no Chromium: apt-get install chromium, or CHROMIUM=/path/to/it")
    result = LoadTestResult.model_validate_json(arguments.result.read_text(encoding="utf-8"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    asyncio.run(take(answers(result), browser, arguments.out))
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1000:.0f} kB, of run {result.id}")


def answers(result: LoadTestResult) -> dict[str, Any]:
    """The answers of the routes that Decide asks, by path."""
    modes = [{"name": mode.name, "reranks": mode.reranks} for mode in result.server.modes]
    return {
        "/readyz": {"status": "ready"},
        "/modes": {"modes": modes, "records": True, "evaluates": False},
        "/decision": decision_data(result).model_dump(mode="json"),
        "/loadtests": {
            "current": None,
            "kept": True,
            "runs": [],
            "max_s": 600,
            "max_in_flight": 64,
        },
    }


async def take(answers: dict[str, Any], browser: str, out: Path) -> None:
    """Open the page with these answers, and write a picture of its first screen."""

    async def answer(route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path in answers:
            await route.fulfill(json=answers[path])
            return
        name = INDEX if path == "/" else path.removeprefix("/page/")
        if name in page_files():
            found = read_asset(name)
            await route.fulfill(body=found.content, content_type=found.media_type)
        else:
            await route.fulfill(status=404, json={"error": {"message": "absent"}})

    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = await opened.new_page(viewport=SIZE, device_scale_factor=1.5)
        await page.route("**/*", answer)
        await page.goto(f"{HOST}/#decide")
        await page.locator(".decide-verdict h2, .decide-verdict p").first.wait_for()
        await page.locator("svg path").last.wait_for(state="attached")
        await page.wait_for_timeout(500)  # the fonts' and the chart's last layout
        await page.screenshot(path=out)
        await opened.close()


if __name__ == "__main__":
    main()
