"""What the views are made of, tried in the page by itself."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.browser.visits import Visitor, assert_accessible, hosted
from tests.unit.fakes import make_runtime

STREAM = (
    'event: token\ndata: {"text":"é: a"}\n\n: still at work\n\n: done\n\nevent: progress\r\n'
    'data: {"n":1}\r\n\r\ndata: {"n":\ndata: 2}\n\n: open comment: done\n\nevent: answer\ndata: {}\n\n'
)


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_events_are_the_same_however_the_stream_is_cut(visitor: Visitor, size: int) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
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
        ["token", {"text": "é: a"}], ["progress", {"n": 1}], ["message", {"n": 2}], ["answer", {}],
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    ("milliseconds", "words"),
    [("0.041", "0.04 ms"), ("7.26", "7.3 ms"), ("999.4", "999 ms"), ("999.6", "1.00 s"), ("1994", "1.99 s"),
     ("200000", "3 min 20 s"), ("null", "–")],
)  # fmt: skip
async def test_durations_are_read_at_a_glance(
    visitor: Visitor, milliseconds: str, words: str
) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
        script = f"import('/page/dom.js').then(({{duration}}) => duration({milliseconds}))"
        assert await page.evaluate(script) == words


async def test_plots_are_drawn_under_the_page_s_policy_in_both_themes_and_told_in_words(
    visitor: Visitor,
) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#explore")
        await page.evaluate(
            """async () => {
                const {plot, plain} = await import("/page/charts.js");
                const node = document.createElement("div");
                document.querySelector(".view").append(node);
                const name = plain("<b>bon</b> & co");
                const traces = () => [{x: [1, 2], y: [3, 4.5], name, mode: "lines"}, {x: [1], y: [2]}];
                await plot(node, traces, {xaxis: {title: {text: "N"}}}, {label: "Reward over N"});
            }"""
        )
        figure = page.get_by_role("figure", name="Reward over N")
        legend = figure.locator(".legendtext").first
        await expect(legend).to_have_text("<b>bon</b> & co")
        light = await legend.evaluate("node => getComputedStyle(node).fill")
        await page.get_by_role("button", name="Dark theme").click()
        await expect(legend).not_to_have_css("fill", light)
        await page.get_by_text("The same as a table").click()
        rows = await page.locator(".alternative tbody tr").all_inner_texts()
        assert [row.split("\t") for row in rows][:2] == [
            ["<b>bon</b> & co", "1", "3"], ["<b>bon</b> & co", "2", "4.500"],
        ]  # fmt: skip
        await assert_accessible(page)
        async with page.expect_download() as download:  # the camera makes a picture as a blob
            await figure.hover()
            await figure.locator("[data-title*=ownload]").click()
        assert (await download.value).suggested_filename.endswith(".png")
