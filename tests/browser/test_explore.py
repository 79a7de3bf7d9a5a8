"""The view Explore in a real browser: the curve, the cards, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.async_api import expect

from service.runtime.runtime import Runtime
from tests.browser.test_decide import runtime_with
from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.decided_runs import TUNED_RATES, cell, decided_run, quality
from tests.unit.fakes import make_runtime
from tests.unit.test_frontier import EVALUATION, HELDOUT, RECORD
from vbon.engine.fake import FakeEngine

MARKUP = "<img src=x onerror=\"document.title='gone'\">"


def measured_runtime(directory: Path) -> Runtime:
    """With a card of a name that would be markup, and an evaluation."""
    (directory / "vbon").mkdir()
    (directory / "vbon" / "training.json").write_text(json.dumps(RECORD | {"objective": MARKUP}))
    rows = [row | HELDOUT if row["method"] == "vbon" else row for row in EVALUATION["rows"]]  # type: ignore[attr-defined]
    file = directory / "evaluation.json"
    file.write_text(json.dumps(EVALUATION | {"rows": rows}))
    engines = {"ref": FakeEngine(str(directory)), "vbon": FakeEngine(str(directory / "vbon"))}
    return make_runtime(engines=engines, store="none", evaluation=str(file))


async def test_policies_stand_on_the_curve_and_hovering_shows_the_card(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with hosted(measured_runtime(tmp_path)) as url:
        page = await visitor.open(f"{url}/#explore")
        plot = page.get_by_role("img", name="KL and win rate against the reference")
        await expect(plot).to_have_attribute("aria-label", "KL and win rate against the reference: "
            "best-of-4: 0.64 nats, 0.800; ref: 0.00 nats, 0.500; vbon: 1.90 nats, 0.890")  # fmt: skip
        await plot.locator("[data-variant=vbon] path.point").hover(force=True)
        card = page.locator(".xy-tip:visible")
        for words in (
            MARKUP,
            "KL 1.900 nats (Rao-Blackwellised)",
            "70 steps",
            "trained 3 min 51 s",
        ):
            await expect(card).to_contain_text(words)
        policy = page.get_by_role("region", name="Policy vbon")
        await expect(policy).to_contain_text(MARKUP)
        await expect(policy).to_contain_text("evaluation")
        row = page.get_by_role("table", name="All figures").get_by_role("row", name="best-of-4")
        await expect(row).to_contain_text("≤ 0.640")
        await expect(page.get_by_text("no load test of these models is stored")).to_be_visible()
        await page.get_by_label("Judge by the gold reward model").check()
        gold = page.get_by_role("img", name="KL and mean reward")
        await expect(gold).to_have_attribute(
            "aria-label", "KL and mean reward: vbon: 1.90 nats, 3.000"
        )
        await assert_accessible(page)
        assert await page.title() == "Explore · vbon"


async def test_modes_are_sorted_by_the_reward_that_tokens_buy(
    visitor: Visitor, tmp_path: Path
) -> None:
    run = decided_run()
    reference = quality("ref", "ref", 1, 1.0, 1.0, 0.5)
    run["quality"].append(reference.model_dump(mode="json"))
    run["cells"].append(cell("ref", "ref", 1, 32, TUNED_RATES, 40).model_dump(mode="json"))
    model = {"name": "ref", "path": "x", "revision": "fake"}
    run["server"]["modes"].append({"name": "ref", "reranks": False, "policy": model})
    async with hosted(runtime_with(tmp_path, run)) as url:
        page = await visitor.open(f"{url}/#explore")
        table = page.get_by_role("table", name="All figures")
        live = table.get_by_role("row", name="load test")
        await expect(live).to_have_count(3)
        # (3.0 - 1.0) / 10 tokens and (3.2 - 1.0) / 160 tokens, per 1,000.
        await expect(live.filter(has_text="vbon").locator("td").last).to_have_text("200.00")
        await expect(live.filter(has_text="bon, N = 16").locator("td").last).to_have_text("13.75")
        await expect(live.filter(has_text="ref").locator("td").last).to_have_text("–")
        head = table.get_by_role("columnheader", name="reward gained per 1,000 tokens")
        for order, first in (("descending", "vbon"), ("ascending", "bon, N = 16")):
            await head.get_by_role("button").click()
            await expect(head).to_have_attribute("aria-sort", order)
            rows = await table.locator("tbody th").all_inner_texts()
            assert rows[0] == first
        await assert_accessible(page)


async def test_on_a_narrow_dark_screen_all_of_it_fits(visitor: Visitor, tmp_path: Path) -> None:
    async with hosted(measured_runtime(tmp_path)) as url:
        page = await visitor.open(f"{url}/#explore", width=360, height=740, dark=True)
        await expect(page.get_by_role("img", name="KL and mean reward")).to_be_visible()
        await assert_fits(page)
        await assert_accessible(page)
        await page.get_by_role("button", name="Dark theme").click()
        await assert_accessible(page)


async def test_where_nobody_measured_it_says_which_command_does(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await visitor.open(f"{url}/#explore")
        await expect(page.get_by_text("Nobody has measured these models yet.")).to_be_visible()
        commands = page.locator(".empty code")
        await expect(commands.first).to_contain_text("vbon evaluate --checkpoints vbon=")
        await assert_accessible(page)
