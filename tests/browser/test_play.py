"""The view Play, in a real browser over the real application."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Locator, Page, Route, expect

from tests.browser.visits import Visitor, assert_accessible, assert_fits, hosted
from tests.unit.fakes import FakeReward, make_runtime, score_text
from vbon.engine.fake import FakeEngine
from vbon.engine.protocol import Candidate, Sampling

PROMPT = "the film was"
SOME_TOKENS = re.compile(r"^\d+ tokens$")
INJECTIONS = (
    "<img src=x onerror=\"globalThis.taken='image'\">",
    "</p></script><script>globalThis.taken='script'</script>",
    "<svg onload=\"globalThis.taken='svg'\"><a href='javascript:globalThis.taken=1'>&amp; &lt;b&gt;",
)


class Hostile(FakeEngine):
    """Its answers are what an attacker would like to see on somebody's page."""

    def _candidate(self, prompt_ids: list[int], sampling: Sampling, index: int) -> Candidate:
        made = super()._candidate(prompt_ids, sampling, index)
        return replace(made, text=" " + INJECTIONS[index % len(INJECTIONS)])


class Fragile(FakeEngine):
    """Once stopped, it comes back when it is mended and no sooner."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.mended = asyncio.Event()
        self.mended.set()

    async def start(self) -> None:
        await self.mended.wait()
        await super().start()

    async def stop(self) -> None:
        self.mended.clear()
        await super().stop()


def slow(seconds: float = 0.02, **options: Any) -> dict[str, FakeEngine]:
    return {
        name: FakeEngine(name, seconds_per_token=seconds, **options) for name in ("ref", "vbon")
    }


def column(page: Page, mode: str) -> Locator:
    return page.locator(f".column[data-mode={mode}]")


async def show_candidates(shown: Locator) -> None:
    """Opens those of a column, which comes with the first of them."""
    await shown.locator("summary", has_text=re.compile(r"^\d+ candidates?$")).click()


async def open_ready(visitor: Visitor, url: str, **options: Any) -> Page:
    page = await visitor.open(f"{url}/#play", **options)
    await expect(page.locator("#readiness")).to_have_text("ready")
    return page


async def ask(page: Page, prompt: str = PROMPT, **fields: str) -> None:
    await page.get_by_role("textbox", name="Prompt").fill(prompt)
    for name, value in fields.items():
        await page.get_by_label(name).fill(value)
    await page.keyboard.press("Control+Enter")


async def done(page: Page, count: int = 3) -> None:
    await expect(page.locator(".column[data-state=done]")).to_have_count(count)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110  (state of the server, polled)
            await asyncio.sleep(0.01)


async def test_modes_answer_side_by_side_while_they_are_made(visitor: Visitor) -> None:
    engines = slow(0.03, endless=True)
    async with hosted(make_runtime(engines=engines, store="none")) as url:
        page = await open_ready(visitor, url)
        await ask(page, **{"Max tokens": "150", "Seed": "7"})
        for mode in ("ref", "vbon"):  # both at once: neither has ended
            await expect(column(page, mode)).to_have_attribute("data-state", SOME_TOKENS)
        await done(page)
        texts = [await column(page, mode).locator(".text").inner_text() for mode in ("ref", "vbon")]
        async with httpx.AsyncClient(base_url=url) as client:
            body = {"prompt": PROMPT, "max_tokens": 150, "seed": 7}
            asked = await asyncio.gather(
                *(
                    client.post("/generate", params={"mode": mode}, json=body)
                    for mode in ("ref", "vbon")
                )
            )
    assert [text.strip() for text in texts] == [one.json()["text"].strip() for one in asked]


async def test_the_form_as_code_asks_the_same(visitor: Visitor) -> None:
    prompt = 'it\'s "a" $film `of` \\ many'
    async with hosted(make_runtime(store="none")) as url:
        page = await open_ready(visitor, url)
        await page.get_by_text("The same as code").click()
        await ask(page, prompt, **{"Max tokens": "12", "Seed": "7"})
        await done(page)
        texts = {
            mode: (await column(page, mode).locator(".text").inner_text()).strip()
            for mode in ("ref", "bon", "vbon")
        }
        shell = await page.get_by_label("curl", exact=True).inner_text()
        program = await page.get_by_label("Python", exact=True).inner_text()
        ran = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
        )
        printed = (await ran.communicate())[0].decode()
        lines = [" ".join(line.split()) for line in printed.splitlines()]
        assert sorted(lines) == sorted(f"{mode} {text}" for mode, text in texts.items())
        async with httpx.AsyncClient() as client:
            for line in shell.splitlines():
                _, _, _, address, _, header, _, body = shlex.split(line)
                name, value = header.split(": ")
                answer = await client.post(address, headers={name: value}, content=body)
                assert answer.json()["text"].strip() == texts[address.partition("mode=")[2]]
        await assert_accessible(page)


async def test_an_example_is_in_the_code_too(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await open_ready(visitor, url)
        await page.get_by_text("The same as code").click()
        example = page.get_by_role("group", name="Example prompts").get_by_role("button").first
        await example.click()
        words = await example.inner_text()
        await expect(page.get_by_label("Python", exact=True)).to_contain_text(f'"{words}"')


async def test_empty_fields_are_the_cards_and_other_sampling_is_told(
    visitor: Visitor, tmp_path: Path
) -> None:
    card = {"identity": {"max_new_tokens": 5, "temperature": 0.5}}
    (tmp_path / "training.json").write_text(json.dumps(card))
    engines = {"ref": FakeEngine("ref"), "vbon": FakeEngine(str(tmp_path))}
    async with hosted(make_runtime(engines=engines, store="none")) as url:
        page = await open_ready(visitor, url)
        await expect(page.get_by_label("Max tokens")).to_have_attribute("placeholder", "5")
        await expect(page.get_by_label("Temperature")).to_have_attribute("placeholder", "0.5")
        await ask(page)
        await done(page)
        assert await page.locator(".differences").count() == 0
        await ask(page, **{"Max tokens": "7"})
        await expect(column(page, "vbon").locator(".differences")).to_have_text(
            "Not as it was trained: max_tokens is 7, but the checkpoint was trained and measured with 5."
        )
        await done(page)
        assert await page.locator(".differences").count() == 1
        await assert_accessible(page)
        await page.goto(f"{url}/#runs")
        await expect(page.get_by_label("Max tokens")).to_have_attribute("placeholder", "5")


async def test_candidates_come_with_their_rewards_and_the_highest_is_chosen(
    visitor: Visitor,
) -> None:
    async with hosted(make_runtime(engines=slow(), reward=FakeReward(), store="none")) as url:
        page = await open_ready(visitor, url)
        await ask(page, **{"N (candidates)": "12", "Max tokens": "40", "Seed": "3"})
        bon = column(page, "bon")
        rows = bon.locator(".candidate")
        await show_candidates(bon)
        await expect(rows.nth(1)).to_be_visible()
        assert await rows.count() < 12, "they should come one by one"
        await expect(bon.locator("[data-mark=best]")).to_have_count(1)
        await expect(bon.locator(".label")).to_contain_text("highest reward so far")
        await done(page)
        await expect(rows).to_have_count(12)
        texts = await bon.locator(".candidate-text").all_inner_texts()
        rewards = [score_text(f" {text}") for text in texts]
        shown = [float(text) for text in await bon.locator(".reward").all_inner_texts()]
        winner = bon.locator("[data-mark=winner]")
        await expect(winner).to_have_count(1)
        assert await bon.locator("[data-mark=best]").count() == 0
        chosen = await winner.locator(".candidate-text").inner_text()
        answer = await bon.locator(".text").inner_text()
        tokens = await bon.locator(".stats dd").nth(2).inner_text()
        facts = await bon.locator(".facts").inner_text()
        await bon.get_by_label("Order of candidates").select_option("index")
        drawn = await bon.locator(".candidate").evaluate_all(
            "all => all.map(one => one.dataset.index)"
        )
        summary = await page.locator(".summary").inner_text()
        generated = {
            mode: int(
                (await column(page, mode).locator(".stats dd").nth(2).inner_text()).split()[0]
            )
            for mode in ("ref", "vbon", "bon")
        }
    fewest = min(generated, key=lambda mode: generated[mode])
    ratio = generated["bon"] / generated[fewest]
    assert f"bon has the highest reward, {shown[0]:.2f}, for {generated['bon']} tokens" in summary
    assert f"{ratio:.1f} times the {generated[fewest]} of {fewest}" in summary
    assert shown == pytest.approx(rewards, abs=0.0051)
    assert shown == sorted(shown, reverse=True)
    assert chosen == texts[0] == answer.strip()
    assert int(tokens.split()[0]) == sum(len(text.split()) for text in texts)
    assert [int(index) for index in drawn] == list(range(12))
    for words in ("queue", "decode", "rerank", "policy ref, revision fake"):
        assert words in facts


async def test_candidates_and_the_way_to_an_answer_are_shown_on_demand(visitor: Visitor) -> None:
    ways = ("treebon", "speculative-rejection")
    async with hosted(make_runtime(store="none")) as url:
        page = await open_ready(visitor, url, width=390)
        for mode in ("ref", "vbon", "bon"):
            await page.get_by_label(mode, exact=True).uncheck()
        await page.get_by_text("Other ways to choose among N").click()
        for mode in ways:
            await page.get_by_label(mode, exact=True).check()
        await ask(page, **{"N (candidates)": "8", "Max tokens": "16", "Seed": "3"})
        await done(page, 2)
        tree, checks = (column(page, mode) for mode in ways)
        for shown in (tree, checks):
            await expect(shown.locator("details")).to_have_count(2)
            await expect(shown.locator("details[open]")).to_have_count(0)
            await expect(shown.locator("summary").first).to_have_text("8 candidates")
            for summary in await shown.locator("summary").all():
                await summary.press("Enter")
        async with httpx.AsyncClient(base_url=url) as client:
            body = {"prompt": PROMPT, "n": 8, "max_tokens": 16, "seed": 3}
            asked = [
                (await client.post("/generate", params={"mode": mode}, json=body)).json()
                for mode in ways
            ]
        branches = asked[0]["details"]["branches"]
        expected = Counter(one["state"] for one in branches)
        expected.update(chosen=1, ended=-1)
        await expect(tree.locator(".branch")).to_have_count(len(branches))
        told = await tree.locator(".branch-state").all_inner_texts()
        assert Counter(told) == expected
        assert {"kept", "dropped"} <= expected.keys()
        for state in ("kept", "dropped"):
            texts = await tree.locator(
                f".branch[data-state={state}] .branch-text"
            ).all_inner_texts()
            drawn = [one["text"].strip() for one in branches if one["state"] == state]
            assert sorted(text.strip() for text in texts) == sorted(drawn)
        # The branch that led to the answer contains it.
        path = tree.locator(".tree > li", has=page.locator("[data-state=chosen]"))
        await expect(path).to_have_count(1)
        left = [
            f"after {one['tokens']} tokens{one['left']} left"
            for one in asked[1]["details"]["checks"]
        ]
        assert left
        await expect(checks.locator(".steps li")).to_have_text(["at first8 left", *left])
        await assert_fits(page)
        await assert_accessible(page)
        await checks.locator("summary").first.press("Enter")
        await ask(page, "another", Seed="4")
        await done(page, 2)
        await expect(tree.locator("details[open]")).to_have_count(2)
        await expect(checks.locator("details[open]")).to_have_count(1)


async def test_stop_stops_the_server_s_work(visitor: Visitor) -> None:
    engines = slow(0.05, endless=True)
    async with hosted(make_runtime(engines=engines, store="none")) as url:
        page = await open_ready(visitor, url)
        await ask(page, **{"Max tokens": "200"})
        await until(lambda: engines["ref"].running == 17 and engines["vbon"].running == 1)
        clock = column(page, "bon").locator(".clock")
        await expect(clock).to_have_text(re.compile(r"^\d+ s$"))
        await page.keyboard.press("Escape")
        await expect(page.locator(".column[data-state=stopped]")).to_have_count(3)
        await expect(clock).to_have_text("")
        await until(lambda: engines["ref"].running == engines["vbon"].running == 0)
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert (engines["ref"].aborted, engines["vbon"].aborted) == (17, 1)


async def test_the_scoring_of_modes_that_need_none_is_no_part_of_their_latency(
    visitor: Visitor,
) -> None:
    times = {"queue": 1.0, "decode": 20.0, "rerank": 300.0, "total": 321.0}

    async def timed(route: Route) -> None:
        body = {**route.request.post_data_json, "stream": False}
        answer = await (await route.fetch(post_data=json.dumps(body))).json()
        answer["timings_ms"] |= times
        text = f"event: answer\ndata: {json.dumps(answer)}\n\n"
        await route.fulfill(body=text, content_type="text/event-stream")

    async with hosted(make_runtime(store="none")) as url:
        page = await open_ready(visitor, url)
        await page.route("**/generate?mode=*", timed)
        await ask(page)
        await done(page)
        for mode, total, words in (
            (
                "ref",
                "21 ms",
                ["queue 1.0 ms", "decode 20 ms", "then scored for this page in 300 ms"],
            ),
            ("bon", "321 ms", ["queue 1.0 ms", "decode 20 ms", "rerank 300 ms"]),
        ):
            answered = column(page, mode)
            await expect(answered.locator(".stats dd").nth(1)).to_have_text(total)
            await expect(answered.locator(".timeline p span")).to_have_text(words)


async def test_a_new_question_stops_the_one_before(visitor: Visitor) -> None:
    engines = slow(0.02, endless=True)
    async with hosted(make_runtime(engines=engines, store="none")) as url:
        page = await open_ready(visitor, url)
        await ask(page, **{"Max tokens": "200"})
        await until(lambda: engines["ref"].running == 17)
        await ask(page, "another", **{"Max tokens": "4"})
        await done(page)
        await until(lambda: engines["ref"].running == 0)
    assert engines["ref"].aborted == 17


async def test_answers_go_on_while_another_view_is_looked_at(visitor: Visitor) -> None:
    engines = slow(0.03, endless=True)
    async with hosted(make_runtime(engines=engines, store="none")) as url:
        page = await open_ready(visitor, url)
        await ask(page, **{"Max tokens": "30"})
        await until(lambda: engines["ref"].running == 17)
        await page.get_by_role("link", name="Explore").click()
        await expect(page.locator(".column")).to_have_count(0)
        await page.get_by_role("link", name="Play").click()
        await done(page)
        assert await page.get_by_role("textbox", name="Prompt").input_value() == PROMPT


async def test_one_after_another_never_runs_two_modes_at_once(visitor: Visitor) -> None:
    engines = slow(0.02, endless=True)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(engine.running > 0 for engine in engines.values()))
            await asyncio.sleep(0.005)

    async with hosted(make_runtime(engines=engines, store="none")) as url:
        page = await open_ready(visitor, url)
        await page.get_by_label("One after another").check()
        watching = asyncio.create_task(watch())
        await ask(page, **{"Max tokens": "20"})
        await done(page)
        watching.cancel()
    assert most == 1


async def test_one_mode_s_error_is_its_own_and_names_the_remedy(visitor: Visitor) -> None:
    visitor.allow("status of 422")
    engines = {"ref": FakeEngine("ref"), "vbon": FakeEngine("vbon", max_model_len=20)}
    async with hosted(make_runtime(engines=engines, store="none")) as url:
        page = await open_ready(visitor, url)
        await ask(page, "a prompt that is too long for it", **{"Max tokens": "8"})
        await done(page, 2)
        failed = column(page, "vbon").locator(".error")
        await expect(failed).to_contain_text("over the model's limit of 20")
        await expect(failed).to_contain_text("shorten the prompt")
        await expect(failed.get_by_role("button")).to_have_count(0)
        await assert_accessible(page)


async def test_an_overloaded_server_says_when_to_come_back_and_then_answers(
    visitor: Visitor,
) -> None:
    visitor.allow("status of 429")
    engines = slow(0.05, endless=True)
    limits = {"running_sequences": 16, "waiting_sequences": 0}
    async with hosted(make_runtime(engines=engines, store="none", limits=limits)) as url:
        page = await open_ready(visitor, url)
        for mode in ("ref", "vbon"):
            await page.get_by_label(mode, exact=True).uncheck()
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            body = {"prompt": PROMPT, "n": 16, "max_tokens": 200}
            other = asyncio.create_task(client.post("/generate?mode=bon", json=body))
            await until(lambda: engines["ref"].running == 16)
            await ask(page, **{"Max tokens": "8"})
            refused = column(page, "bon").locator(".error")
            await expect(refused).to_contain_text("room in 5 seconds")
            again = refused.get_by_role("button", name="Try again")
            await expect(again).to_be_disabled()
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
        await until(lambda: engines["ref"].running == 0)
        await expect(again).to_be_enabled()
        await again.click()
        await done(page, 1)


async def test_an_engine_that_dies_is_told_in_its_column_while_others_go_on(
    visitor: Visitor,
) -> None:
    visitor.allow("status of 503")
    fragile = Fragile("vbon", seconds_per_token=0.05, endless=True)
    async with hosted(
        make_runtime(engines={"ref": FakeEngine(), "vbon": fragile}, store="none")
    ) as url:
        page = await open_ready(visitor, url)
        await page.get_by_label("bon", exact=True).uncheck()
        await ask(page, **{"Max tokens": "200"})
        await expect(column(page, "vbon")).to_have_attribute("data-state", SOME_TOKENS)
        await fragile.stop()
        await expect(column(page, "vbon").locator(".error")).to_contain_text("engine was stopped")
        await done(page, 1)
        await expect(page.locator("#banner")).to_contain_text("Not everything can answer: ")
        await expect(page.locator("#banner")).to_contain_text("vbon")
        await expect(page.locator("#readiness")).to_have_text("partly ready")
        await ask(page, **{"Max tokens": "8"})
        await done(page, 1)
        await expect(column(page, "vbon")).to_have_attribute("data-state", "failed")
        await assert_accessible(page)
        fragile.mended.set()
        await expect(page.locator("#banner")).to_be_hidden()
        await ask(page, **{"Max tokens": "8"})
        await done(page, 2)


async def test_text_of_models_and_users_is_never_markup(visitor: Visitor, tmp_path: Path) -> None:
    engines: dict[str, FakeEngine] = {"ref": Hostile("ref"), "vbon": Hostile("<b>vbon</b>")}
    async with hosted(make_runtime(engines=engines, store=str(tmp_path / "s.db"))) as url:
        page = await open_ready(visitor, url)
        prompt = f"{INJECTIONS[0]}{INJECTIONS[1]}"
        await ask(page, prompt, **{"N (candidates)": "6", "Max tokens": "8"})
        await done(page)
        await expect(column(page, "ref").locator(".answer")).to_contain_text(INJECTIONS[0])
        await show_candidates(column(page, "bon"))
        for text in INJECTIONS:
            await expect(
                column(page, "bon").locator(".candidate-text", has_text=text).first
            ).to_be_visible()
        await page.get_by_role("link", name="Vote", exact=True).click()
        await page.get_by_text("in the deck, shuffled").click()
        await page.get_by_label("Prompts, one a line").fill(prompt)
        await page.get_by_role("button", name="Show me two answers").click()
        await expect(page.locator(".panel").first).to_contain_text("<img src=x")
        await page.keyboard.press("2")
        await expect(page.get_by_text("The last pair. You find both as good.")).to_be_visible()
        await expect(page.locator(".panel").first).to_contain_text("<img src=x")
        made = "main img, main script, main svg, main b, main a, main iframe"
        assert await page.locator(made).count() == 0
        assert await page.evaluate("globalThis.taken === undefined")


async def test_sixteen_of_each_are_drawn_on_one_axis(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await open_ready(visitor, url)
        await ask(page, **{"N (candidates)": "2", "Max tokens": "4", "Seed": "3"})
        await done(page)
        await expect(page.get_by_text("cut at the limit of tokens").first).to_be_visible()
        await page.get_by_role("button", name="Draw 16 of each").click()
        chart = page.get_by_role("img", name="Rewards on one axis")
        await expect(chart.locator("g")).to_have_count(3)
        assert [await row.locator("circle").count() for row in await chart.locator("g").all()] == [
            16,
            1,
            16,
        ]
        told = await page.locator(".draws li").all_inner_texts()
        assert [text.split(":")[0] for text in told] == [
            "ref, 16 samples",
            "bon, best of 16",
            "vbon, 16 samples",
        ]
        best = float(told[1].split()[-1])
        assert best == float(told[0].split()[-1])  # the highest of the reference's sixteen
        await assert_accessible(page)


async def test_a_server_that_takes_few_candidates_draws_as_many(visitor: Visitor) -> None:
    runtime = make_runtime(store="none", limits={"max_n": 4}, default_n=4)
    async with hosted(runtime) as url:
        page = await open_ready(visitor, url)
        await ask(page, **{"N (candidates)": "2", "Max tokens": "4"})
        await done(page)
        await page.get_by_role("button", name="Draw 4 of each").click()
        told = page.locator(".draws li")
        await expect(told).to_have_count(3)
        words = [text.split(":")[0] for text in await told.all_inner_texts()]
        assert words == ["ref, 4 samples", "bon, best of 4", "vbon, 4 samples"]


async def test_modes_without_rewards_are_asked_all_the_same(visitor: Visitor) -> None:
    runtime = make_runtime(without_reward=True, default_mode="ref", store="none")
    async with hosted(runtime) as url:
        page = await open_ready(visitor, url)
        await ask(page)
        await done(page, 2)
        await expect(column(page, "ref").locator(".stats dd").first).to_have_text("–")


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1280, True)])
async def test_answers_are_accessible_and_fit(visitor: Visitor, width: int, dark: bool) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await open_ready(visitor, url, width=width, dark=dark)
        await page.get_by_text("Other ways to choose among N").click()
        await page.get_by_label("soft-bon", exact=True).check()
        await ask(page, "word" * 50 if width == 360 else PROMPT, **{"Max tokens": "24"})
        await done(page, 4)
        for mode in ("bon", "soft-bon"):
            await show_candidates(column(page, mode))
        await assert_fits(page)
        await assert_accessible(page)


async def test_everything_is_reached_and_done_by_keyboard_alone(visitor: Visitor) -> None:
    async with hosted(make_runtime(store="none")) as url:
        page = await open_ready(visitor, url)
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to the content")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("textbox", name="Prompt")).to_be_focused()
        await page.keyboard.type(PROMPT)
        names = []
        for _ in range(20):
            await page.keyboard.press("Tab")
            names.append(
                await page.evaluate(
                    "document.activeElement.value || document.activeElement.placeholder || "
                    "document.activeElement.textContent"
                )
            )
            if names[-1] == "Ask":
                break
        assert {"ref", "vbon", "bon", "64", "1"} <= set(names)
        await page.keyboard.press("Enter")
        await done(page)


@pytest.mark.vllm
async def test_the_real_engine_answers_and_is_judged(visitor: Visitor, real_url: str) -> None:
    page = await open_ready(visitor, real_url)
    await ask(page, **{"N (candidates)": "8", "Max tokens": "12", "Seed": "5"})
    await done(page)
    bon = column(page, "bon")
    await show_candidates(bon)
    rewards = [float(text) for text in await bon.locator(".reward").all_inner_texts()]
    reward = await bon.locator(".stats dd").first.inner_text()
    assert len(rewards) == 8
    assert float(reward) == max(rewards) == rewards[0]
    for mode in ("ref", "vbon"):
        tokens = int((await column(page, mode).locator(".stats dd").nth(2).inner_text()).split()[0])
        assert 1 <= tokens <= 12
        await expect(column(page, mode).locator(".text")).not_to_be_empty()
    await page.get_by_role("link", name="Vote", exact=True).click()
    await page.get_by_role("button", name="Show me two answers").click()
    await expect(page.get_by_role("group", name="Which is better?")).to_be_focused()
    await page.keyboard.press("1")
    await expect(page.locator(".standings tbody tr")).to_contain_text("1 verdict")
