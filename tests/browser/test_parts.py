"""What the views are made of, tried in the page by itself."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from playwright.async_api import expect

from tests.browser.visits import Visitor, assert_accessible, hosted
from tests.unit.fakes import make_runtime

STREAM = (
    'event: token\ndata: {"text":"é: a"}\n\n: still at work\n\n: done\n\nevent: progress\r\n'
    'data: {"n":1}\r\n\r\ndata: {"n":\ndata: 2}\n\n: open comment: done\n\nevent: answer\ndata: {}\n\n'
)


async def test_events_are_the_same_however_the_stream_is_cut(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
        for size in (1, 3, 7, 1000):
            events = await page.evaluate(
                """async ([text, size]) => {
                    const parser = new (await import("/page/api.js")).EventParser();
                    const found = [];
                    for (let i = 0; i < text.length; i += size)
                        found.push(...parser.push(text.slice(i, i + size)));
                    return found.map(({event, data}) => [event, data]);
                }""",
                [STREAM, size],
            )
            assert events == [
                ["token", {"text": "é: a"}], ["progress", {"n": 1}], ["message", {"n": 2}],
                ["answer", {}],
            ], size  # fmt: skip


async def test_elements_take_no_markup_no_scripts_and_no_foreign_addresses(
    visitor: Visitor,
) -> None:
    cases = [
        "el('p', {innerHTML: '<b>x</b>'})", "el('p', {onclick: 'x()'})",
        "el('p', {style: 'color: red'})", "el('iframe', {srcdoc: '<p>'})",
        "el('a', {href: 'javascript:x()'})", "el('a', {href: ' javascript:x()'})",
        "el('a', {href: 'data:text/html,x'})",
    ]  # fmt: skip
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
        for case in cases:
            said = await page.evaluate(
                f"import('/page/dom.js').then(({{el}}) => {{ try {{ {case}; return 'made'; }}"
                " catch (error) { return error.message; } })"
            )
            assert said != "made", case
        text = await page.evaluate(
            "import('/page/dom.js').then(({el}) => el('p', {title: '\"><b>'}, '<b>x</b>').outerHTML)"
        )
    assert "&lt;b&gt;x&lt;/b&gt;" in text


async def test_durations_are_read_at_a_glance(visitor: Visitor) -> None:
    words = {
        "0.041": "0.04 ms", "7.26": "7.3 ms", "999.4": "999 ms", "999.6": "1.00 s", "1994": "1.99 s",
        "200000": "3 min 20 s", "null": "–",
    }  # fmt: skip
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
        script = """async (given) => {
            const {duration} = await import("/page/dom.js");
            return Object.fromEntries(given.map((one) => [one, duration(JSON.parse(one))]));
        }"""
        assert await page.evaluate(script, list(words)) == words


CHART = """async () => {
    const {plot} = await import("/page/charts.js");
    const node = document.createElement("div");
    document.querySelector(".view").append(node);
    const point = (x, y) => ({x, y, y_low: y - 1, y_high: y + 1, about: `${y} at\\n${x}`, text: `${y}`});
    const bon = {name: "<b>bon</b> & co", colour: "var(--series-1)", symbol: "circle", line: "solid"};
    const vbon = {name: "vbon", colour: "var(--series-2)", symbol: "square", line: null};
    bon.points = [point(1, 3), point(10, 4.5), point(100, 9)];
    vbon.points = [point(3, 5)];
    const series = [bon, vbon];
    plot(node, {label: "Reward over N: two modes", x: {label: "N", log: true}, y: {label: "reward"}, series});
}"""


async def test_charts_are_drawn_under_the_page_s_policy_in_both_themes_and_told_in_words(
    visitor: Visitor,
) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#explore")
        await page.evaluate(CHART)
        chart = page.get_by_role("img", name="Reward over N")
        bon = page.get_by_role("button", name="<b>bon</b> & co")
        axis = chart.locator(".axes text").first
        light = await axis.evaluate("node => getComputedStyle(node).fill")
        await page.get_by_role("button", name="Dark theme").click()
        await expect(axis).not_to_have_css("fill", light)
        await page.get_by_text("The same as a table").click()
        rows = await page.locator(".alternative tbody tr").all_inner_texts()
        assert [row.split("\t")[:3] for row in rows] == [
            ["<b>bon</b> & co", "1", "3"], ["<b>bon</b> & co", "10", "4.5"],
            ["<b>bon</b> & co", "100", "9"], ["vbon", "3", "5"],
        ]  # fmt: skip
        await bon.press("Enter")
        await expect(bon).to_have_attribute("aria-pressed", "false")
        await expect(chart.locator("[data-variant]")).to_have_count(1)
        await expect(bon).to_be_focused()
        await assert_accessible(page)
        async with page.expect_download() as download:
            await page.get_by_role("button", name="Save as SVG").click()
        file = await download.value
        assert file.suggested_filename == "reward-over-n.svg"
        kept = await asyncio.to_thread(Path(await file.path()).read_text, encoding="utf-8")
        assert set(re.findall(r'(?:class|style)="', kept)) == set()  # it needs no style sheet
        colour = await chart.locator("path.point").evaluate("node => getComputedStyle(node).fill")
        assert kept.count(f'fill="{colour}"') == 1


async def test_charts_are_read_and_enlarged_by_keys_pointer_and_touch(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#explore", has_touch=True)
        await page.evaluate(CHART)
        chart = page.get_by_role("img", name="Reward over N")
        tip, marks = page.locator(".xy-tip"), chart.locator("path.point")
        told = page.locator("[aria-live=polite].unseen").filter(has_text=" at")
        await page.get_by_role("button", name="Save as SVG").focus()
        await page.keyboard.press("Tab")
        await expect(chart).to_be_focused()
        # From left to right, whatever the series: N = 1, 3, 10 and 100; and around.
        for key, words in [
            ("ArrowRight", "3 at1"), ("ArrowRight", "5 at3"), ("ArrowRight", "4.5 at10"),
            ("End", "9 at100"), ("ArrowRight", "3 at1"), ("ArrowLeft", "9 at100"),
        ]:  # fmt: skip
            await page.keyboard.press(key)
            await expect(tip).to_have_text(words)
            await expect(told).to_have_text(words.replace("at", "at\n"))
        await page.keyboard.press("Escape")
        await expect(tip).to_be_hidden()
        everything = page.get_by_role("button", name="Show all")
        await expect(everything).to_be_hidden()
        await page.keyboard.press("End")
        await page.keyboard.press("+")  # around the point that is read
        await expect(everything).to_be_visible()
        await expect(chart).to_be_focused()
        await page.keyboard.press("Home")
        await expect(tip).to_have_text("4.5 at10")  # N = 1 and 3 are no longer shown
        await page.keyboard.press("0")
        await expect(everything).to_be_hidden()
        await marks.last.tap(force=True)
        await expect(tip).to_have_text("5 at3")
        first = await marks.nth(0).bounding_box()
        second = await marks.nth(1).bounding_box()
        assert first is not None
        assert second is not None
        # A box around the first two points of bon, by which vbon's is enclosed as well.
        await page.mouse.move(first["x"] - 10, first["y"] + 20)
        await page.mouse.down()
        await page.mouse.move(second["x"] + 20, second["y"] - 60, steps=3)
        await page.mouse.up()
        await expect(everything).to_be_visible()
        await chart.focus()
        await page.keyboard.press("End")
        await expect(tip).to_have_text("4.5 at10")
        await everything.click()
        await page.keyboard.press("End")
        await expect(tip).to_have_text("9 at100")
