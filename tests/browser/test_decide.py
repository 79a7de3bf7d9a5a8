"""The view Decide in a real browser: the verdict, what-ifs, and the strip on other views."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from service.loadtest.schema import LoadTestResult
from service.runtime.runtime import Runtime
from service.store import add_run, open_store
from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.decided_runs import HOURS, SAMPLED_RATES, TUNED_RATES, decided_run
from tests.unit.fakes import make_runtime


def runtime_with(directory: Path, *runs: dict[str, object]) -> Runtime:
    file = str(directory / "s.db")
    store = open_store(file)
    for run in runs:
        add_run(store, run)
    store.close()
    return make_runtime(store=file)


async def verdict(page: Page) -> str:
    return await page.get_by_role("region", name="Verdict", exact=True).inner_text()


COMPUTED = """async (values) => {
    const { verdictOf } = await import(new URL("page/verdict.js", location.href));
    const { decision } = await import(new URL("page/decision.js", location.href));
    const names = ["tuned", "mode", "judge", "n", "volume", "price", "hours", "p95"];
    const nothing = Object.fromEntries(names.map((name) => [name, null]));
    const found = verdictOf(decision.found, { ...nothing, ...values });
    return { paysAfter: found.paysAfter, ratio: found.ratio, choice: found.choice, total: found.tuned.total,
        level: found.sampled.level?.load ?? null };
}"""


async def test_the_verdict_is_the_report_s_and_follows_what_is_put_in(
    visitor: Visitor, tmp_path: Path
) -> None:
    run = decided_run()
    (pair,) = LoadTestResult.model_validate(run).break_even
    async with hosted(runtime_with(tmp_path, run)) as url:
        page = await visitor.open(url)
        await expect(page).to_have_title("Decide · vbon")
        await expect(page.locator(".headline")).to_contain_text("Fine-tuning (vbon) pays after")
        found = await page.evaluate(COMPUTED, {})
        # The same numbers as the server's analysis, from the same rounds.
        assert found["paysAfter"]["point"] == pytest.approx(pair.requests)
        assert found["paysAfter"]["low"] == pytest.approx(pair.requests_low)
        assert found["paysAfter"]["high"] == pytest.approx(pair.requests_high)
        assert found["ratio"]["low"] == pytest.approx(pair.cost_ratio.low)
        assert found["ratio"]["high"] == pytest.approx(pair.cost_ratio.high)
        assert found["choice"] == "tuned"
        assert found["total"] == pytest.approx(2 * HOURS + 1e6 * 2 / 3600 / 300)
        # Twice the training, twice the answers; a price changes nothing, as training and serving share it.
        for hours, price, factor in ((2 * HOURS, 2, 2), (HOURS, 7, 1)):
            other = await page.evaluate(COMPUTED, {"hours": hours, "price": price})
            assert other["paysAfter"]["point"] == pytest.approx(factor * (pair.requests or 0))
        # Below 420 ms best-of-16 has only its smaller load; below 90 ms none at all.
        assert (await page.evaluate(COMPUTED, {"p95": 400}))["level"] == "2 in flight"
        assert await page.evaluate(COMPUTED, {"p95": 80}) | {"total": 0} == {
            "paysAfter": {"point": None, "low": None, "high": None}, "ratio": None, "choice": "tuned",
            "total": 0, "level": None,
        }  # fmt: skip
        few = await page.evaluate(COMPUTED, {"volume": 100})
        assert few["choice"] == "sampled"
        await assert_accessible(page)


async def test_training_has_the_price_that_the_load_test_gave_it(
    visitor: Visitor, tmp_path: Path
) -> None:
    run = decided_run(training_price=8.0)
    (pair,) = LoadTestResult.model_validate(run).break_even
    async with hosted(runtime_with(tmp_path, run)) as url:
        page = await visitor.open(url)
        await expect(page.locator(".headline")).to_contain_text("Fine-tuning (vbon) pays after")
        found = await page.evaluate(COMPUTED, {})
        assert found["paysAfter"]["point"] == pytest.approx(pair.requests)
        assert found["total"] == pytest.approx(8 * HOURS + 1e6 * 2 / 3600 / 300)
        # Another price of serving leaves that of training as it is.
        other = await page.evaluate(COMPUTED, {"price": 4})
        assert other["paysAfter"]["point"] == pytest.approx((pair.requests or 0) / 2)


async def test_the_n_of_equal_reward_is_told_with_its_judge_and_its_open_ends(
    visitor: Visitor, tmp_path: Path
) -> None:
    run = decided_run()
    run["break_even"][0] |= {
        "judged_by": "gold",
        "equal_n": 9.0,
        "equal_n_low": 1.0,
        "equal_n_high": 16.0,
        "equal_n_low_open": True,
        "equal_n_high_open": True,
    }
    async with hosted(runtime_with(tmp_path, run)) as url:
        page = await visitor.open(f"{url}/#decide?judge=nobody")
        box = page.get_by_role("region", name="Verdict", exact=True)
        await expect(box).to_contain_text("You give up 0.10 of gold reward")
        await expect(box).to_contain_text("as good as best-of-9.0 (below 1 to above 16.0)")
        # By the serving reward model it would be another n, which the load test does not tell.
        await page.get_by_label("Judged by").select_option("reward")
        await expect(box).to_contain_text("You give up 0.20 of reward")
        await expect(box).not_to_contain_text("best-of-9.0")


TOLD = """async ({ factors, better, hours }) => {
    const { verdictOf } = await import(new URL("page/verdict.js", location.href));
    const { atVolume, headline } = await import(new URL("page/views/decide/words.js", location.href));
    const { decision } = await import(new URL("page/decision.js", location.href));
    const { comparison } = await import(new URL("page/comparison.js", location.href));
    const found = structuredClone(decision.found);
    const own = found.sides.find((side) => side.variant === "vbon");
    for (const level of own.levels) {
        for (const [i, round] of level.rounds.entries()) round.answers_per_s = 30 * factors[i];
    }
    found.pairs[0].training_hours = hours;
    if (better) found.pairs[0].given_up.reward = { mean: -0.2, low: -0.3, high: -0.1, count: 12 };
    const verdict = verdictOf(found, comparison.values);
    return [headline(verdict), atVolume(verdict)];
}"""


async def test_a_dearer_answer_that_is_better_is_a_trade_and_a_close_price_needs_no_training_time(
    visitor: Visitor, tmp_path: Path
) -> None:
    half, around = [0.5] * 5, [0.8, 0.9, 1, 1.1, 1.3]
    async with hosted(runtime_with(tmp_path, decided_run())) as url:
        page = await visitor.open(url)
        await expect(page.locator(".headline")).to_contain_text("Fine-tuning (vbon) pays after")
        for hours in (0.1, None):
            worse = await page.evaluate(TOLD, {"factors": half, "better": False, "hours": hours})
            assert worse[0] == "Keep bon (N=16): an answer of vbon costs no less."
            assert worse[1].startswith("Keep bon (N=16) for 1,000,000 answers")
            trade = await page.evaluate(TOLD, {"factors": half, "better": True, "hours": hours})
            assert trade[0] == (
                "A trade: an answer of vbon costs no less than one of bon (N=16), and is better."
            )
            assert trade[1].startswith("A trade for 1,000,000 answers")
            close = await page.evaluate(TOLD, {"factors": around, "better": False, "hours": hours})
            assert close[0].endswith("is too close to call.")
            assert close[1].startswith("Too close to call for 1,000,000 answers")


async def test_the_time_to_break_even_is_at_the_median_rate(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with hosted(runtime_with(tmp_path, decided_run())) as url:
        page = await visitor.open(url)
        told = await page.evaluate(
            """async () => {
                const { paybackTime } = await import(new URL("page/views/decide/words.js", location.href));
                const rounds = [100, 40, 20, 10].map((rate, round) => ({ round, answers_per_s: rate }));
                const pair = { sampled: "bon (N=16)" };
                return paybackTime({ paysAfter: { point: 5400 }, sampled: { level: { rounds } }, pair });
            }"""
        )
    assert told == "3 minutes of bon (N=16) at full load"  # 30 answers a second


async def test_figures_asked_for_while_older_ones_are_on_their_way_are_asked_for_again(
    visitor: Visitor, tmp_path: Path
) -> None:
    """A load test may end while its predecessor's figures are being read."""
    async with hosted(runtime_with(tmp_path, decided_run())) as url:
        page = await visitor.open(url)
        await expect(page.locator(".headline")).to_contain_text("Fine-tuning (vbon) pays after")
        asked = await page.evaluate(
            """async () => {
                const { decision } = await import(new URL("page/decision.js", location.href));
                const ask = window.fetch;
                let count = 0;
                window.fetch = (...what) => {
                    count += String(what[0]).endsWith("/decision");
                    return ask(...what);
                };
                await Promise.all([decision.refresh(), decision.refresh(), decision.refresh()]);
                return count;
            }"""
        )
    assert asked == 2


async def test_a_load_test_that_ended_elsewhere_is_there_when_the_view_is_shown_again(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with hosted(runtime_with(tmp_path)) as url:
        page = await visitor.open(url)
        box = page.get_by_role("region", name="Verdict", exact=True)
        await expect(box).to_contain_text("Nobody has measured it here yet")
        store = open_store(str(tmp_path / "s.db"))
        add_run(store, decided_run())
        store.close()
        await page.get_by_role("link", name="Play").click()
        await expect(page).to_have_title("Play · vbon")
        await page.get_by_role("link", name="Decide").click()
        await expect(box).to_contain_text("Fine-tuning (vbon) pays after")


async def test_nothing_breaks_at_zero(visitor: Visitor, tmp_path: Path) -> None:
    run = decided_run()
    # No answer of best-of-16 is within the SLOs at its larger load.
    for cell in run["cells"]:
        for one in cell["rounds"]:
            late = cell["n"] == 16 and cell["load"] == 4
            one["goodput_per_s"] = 0.0 if late else one["requests_per_s"]
    async with hosted(runtime_with(tmp_path, run)) as url:
        page = await visitor.open(f"{url}/#decide?price=0&volume=0&hours=0")
        box = page.get_by_role("region", name="Verdict", exact=True)
        await expect(box).to_contain_text("Fine-tune for 1,000,000 answers")
        assert (await page.evaluate(COMPUTED, {}))["level"] == "2 in flight"
        volume = page.get_by_label("Answers to serve", exact=True)
        await volume.focus()
        await page.keyboard.press("Home")
        await page.keyboard.press("ArrowRight")
        await expect(page.get_by_label("Answers to serve, exactly")).not_to_have_value("")
        await expect(box).not_to_contain_text("NaN")
        price = page.get_by_label("Price of the machine an hour, exactly")
        await price.fill("0")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("is a number above 0")).to_be_visible()
        assert "NaN" not in await page.locator("main").inner_html()


async def test_a_slider_changes_the_words_and_the_address_and_a_reset_undoes_it(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with hosted(runtime_with(tmp_path, decided_run())) as url:
        page = await visitor.open(f"{url}/#decide?volume=100&judge=gold")
        box = page.get_by_role("region", name="Verdict", exact=True)
        await expect(box).to_contain_text("Keep bon (N=16) for 100 answers")
        await expect(box).to_contain_text("You give up 0.10 of gold reward")
        await page.get_by_label("Answers to serve, exactly").fill("5000000")
        await page.keyboard.press("Tab")
        await expect(box).to_contain_text("Fine-tune for 5,000,000 answers")
        assert "volume=5000000" in page.url
        await page.get_by_label("Judged by").select_option("reward")
        await expect(box).to_contain_text("You give up 0.20 of reward")
        limit = page.get_by_label("Latency limit, p95", exact=True)
        await limit.focus()
        await page.keyboard.press("Home")
        await expect(box).to_contain_text("Neither keeps this latency limit")
        await page.get_by_role("button", name="As measured").click()
        await expect(box).to_contain_text("Fine-tuning (vbon) pays after")
        assert "volume" not in page.url
        # The comparison goes along to the other views and back.
        await page.get_by_role("link", name="Explore").click()
        strip = page.get_by_role("region", name="Verdict so far")
        await expect(strip).to_contain_text("Fine-tuning (vbon) pays after")
        assert "judge=reward" in page.url
        await strip.get_by_role("link", name="Why").click()
        await expect(page).to_have_title("Decide · vbon")


async def test_a_preliminary_run_says_what_it_lacks_and_measures_it(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with hosted(runtime_with(tmp_path, decided_run(rounds=2))) as url:
        page = await visitor.open(url)
        box = page.get_by_role("region", name="Verdict", exact=True)
        await expect(box).to_contain_text("Preliminary: fine-tuning (vbon) would pay after")
        await expect(box).to_contain_text("2 of at least 5 rounds compare the two")
        await assert_accessible(page)
        sent: list[str] = []
        page.on(
            "request",
            lambda one: sent.append(one.post_data or "") if one.method == "POST" else None,
        )
        await page.get_by_role("button", name="Measure properly").click()
        await expect(page).to_have_title("Runs · vbon")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await page.get_by_role("button", name="Stop").click()
        assert '"modes":["ref","bon","vbon"]' in sent[0]
        assert '"n":[16]' in sent[0]


async def test_without_a_load_test_the_first_thing_to_do_is_offered(
    visitor: Visitor, tmp_path: Path
) -> None:
    async with hosted(runtime_with(tmp_path)) as url:
        page = await visitor.open(url, width=360, height=740, dark=True)
        box = page.get_by_role("region", name="Verdict", exact=True)
        await expect(box).to_contain_text("Nobody has measured it here yet")
        await expect(page.get_by_role("button", name="Measure properly")).to_be_enabled()
        await assert_fits(page)
        await assert_accessible(page)


async def test_it_fits_a_phone_in_the_dark(visitor: Visitor, tmp_path: Path) -> None:
    async with hosted(runtime_with(tmp_path, decided_run(hours=None))) as url:
        page = await visitor.open(url, width=360, height=740, dark=True)
        await expect(page.locator(".headline")).to_contain_text("How long did its training take?")
        await page.get_by_label("Device hours of training, exactly").fill("0.1")
        await page.keyboard.press("Tab")
        await expect(page.locator(".headline")).to_contain_text("Fine-tuning (vbon) pays after")
        await assert_fits(page)
        await assert_accessible(page)
        assert len(TUNED_RATES) == len(SAMPLED_RATES) == 5
