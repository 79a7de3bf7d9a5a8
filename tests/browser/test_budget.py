"""The budget of mode auto in Play, in a real browser: what was chosen, why, and at what cost."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

from playwright.async_api import expect

from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.fakes import make_runtime
from tests.unit.measured import around, row, table
from vbon.measured.table import write_table


async def test_a_budget_is_kept_and_explained_and_without_a_table_it_says_what_to_do(
    visitor: Visitor, tmp_path: Path
) -> None:
    visitor.allow("status of 422")
    file = tmp_path / "table.json"
    settings = [row(n=n, reward=around(n / 10, 0.05)) for n in (2, 4, 16)]  # 80, 160, 640 tokens
    write_table(file, table(*settings))
    async with hosted(make_runtime(store="none", auto={"table": str(file)})) as url:
        page = await visitor.open(f"{url}/#play", width=390, height=844)
        await expect(page.locator("#readiness")).to_have_text("ready")
        kind = page.get_by_label("Budget", exact=True)
        assert await kind.locator("option:enabled").all_inner_texts() == [
            "none", "tokens", "reward",
        ]  # fmt: skip
        await kind.select_option("tokens")
        await expect(page.get_by_role("checkbox", name="auto", exact=True)).to_be_checked()
        await page.get_by_role("textbox", name="Prompt").fill("the film was")
        await page.keyboard.press("Control+Enter")
        await expect(page.get_by_role("alert")).to_have_text(
            "Give the budget an amount, or choose none."
        )
        for name in ("ref", "bon", "vbon"):
            await page.get_by_role("checkbox", name=name, exact=True).set_checked(name == "ref")
        amount = page.get_by_label("Tokens at most")
        await amount.fill("200")
        await page.get_by_text("The same as code").click()
        shell = await page.get_by_label("curl", exact=True).inner_text()
        asked = [json.loads(shlex.split(line)[-1]).get("budget") for line in shell.splitlines()]
        program = await page.get_by_label("Python", exact=True).inner_text()
        assert asked == [None, {"tokens": 200}]
        assert 'own = {"budget": {"tokens": 200}} if mode == "auto" else {}' in program
        ast.parse(program)
        await page.keyboard.press("Control+Enter")
        column = page.locator(".column[data-mode=auto]")
        chosen = column.get_by_role("group", name="Chosen by mode auto")
        await expect(chosen).to_contain_text("Chosen: bon, N = 4, of ref.")
        await expect(chosen).to_contain_text("of 2 settings that need at most 200 tokens an answer")
        await expect(chosen).to_contain_text("reward 0.40 (0.35 to 0.45), 160 tokens")
        await expect(chosen).to_contain_text("keeps the budget on average")
        await expect(page.locator(".column[data-state=done]")).to_have_count(2)
        await expect(page.locator(".column[data-mode=ref] .chosen")).to_have_count(0)
        await assert_accessible(page)
        await assert_fits(page)
        await amount.fill("3")
        await page.keyboard.press("Control+Enter")
        wrong = column.get_by_role("group", name="What went wrong")
        await expect(wrong).to_contain_text(
            "raise the budget, lower Max tokens, or choose no budget"
        )
        await kind.select_option("reward")
        await page.get_by_label("Reward at least").fill("9")
        await page.keyboard.press("Control+Enter")
        await expect(chosen).to_contain_text("misses the budget on average")
        await page.get_by_role("checkbox", name="auto", exact=True).uncheck()
        await page.keyboard.press("Control+Enter")
        await expect(page.get_by_role("alert")).to_contain_text("A budget is for mode auto")
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#play")
        await expect(page.locator("#readiness")).to_have_text("ready")
        await expect(page.get_by_label("Budget", exact=True)).to_be_disabled()
        hint = page.get_by_text("A budget needs measured settings")
        await hint.get_by_role("link", name="Tune").click()
        await expect(page).to_have_title("Tune · vbon")
        await expect(page.locator(".empty")).to_contain_text("--store FILE")
        await assert_accessible(page)
