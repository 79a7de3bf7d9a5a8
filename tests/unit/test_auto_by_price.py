"""Mode ``auto`` by price in the real application, with engines and a reward whose distribution is known."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from service.auto import price_router
from service.auto.choice import Prices
from service.auto.compared import Recent
from service.auto.live import LiveAuto
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from service.store import delete_auto_table, open_store, read_auto_table, save_auto_table
from service.strategies import STRATEGIES
from tests.unit.fakes import ChatEngine, FakeReward, make_runtime, score_text, serving, stream
from tests.unit.measured import around, as_json, row, table
from tests.unit.rolling import ANN_KEY, ROOT_KEY, bearer, rolling
from vbon.engine import Candidate, Sampling
from vbon.engine.fake import WORDS, FakeEngine
from vbon.errors import DataError, EngineDeadError, EngineError, StoreError
from vbon.measured.table import MeasuredTable, write_table

REWARDS = np.array([score_text(f" {word}") for word in WORDS])


class Tuned(ChatEngine):
    """A policy that says the best word."""

    def _candidate(self, prompt_ids: list[int], sampling: Sampling, index: int) -> Candidate:
        found = super()._candidate(prompt_ids, sampling, index)
        ids = (int(np.argmax(REWARDS)),) * len(found.token_ids)
        return replace(found, token_ids=ids, text="".join(f" {WORDS[one]}" for one in ids))


def expected_best(n: int) -> float:
    """The mean reward of the best of n words, by enumeration of the ranks of eight equally likely words."""
    ordered = np.sort(REWARDS)
    ranks = np.arange(1, len(ordered) + 1) / len(ordered)
    return float(np.diff(np.concatenate([[0.0], ranks**n])) @ ordered)


def exact_table(**changes: Any) -> MeasuredTable:
    """The true figures of answers of one word; latencies and the tokens of the tuned policy are invented."""
    rows = [
        row(n=n, mode="bon" if n > 1 else "ref", reward=around(expected_best(n), 0.01), max_tokens=1,
            generated_tokens=around(float(n), 0), latency_mean_s=around(0.1 * n, 0),
            latency_p95_s=around(0.2 * n, 0))
        for n in (1, 2, 3, 4, 8, 16)
    ]  # fmt: skip
    tuned = float(REWARDS.max())
    rows.append(
        row("vbon", 1, policy="vbon", reward=around(tuned, 0.01), max_tokens=1,
            generated_tokens=around(1.0, 0), latency_mean_s=around(1.0, 0), latency_p95_s=around(1.2, 0))
    )  # fmt: skip
    return table(*rows, **changes)


@dataclass
class Service:
    """The running application, a client, and what tests change of it."""

    app: FastAPI
    client: httpx.AsyncClient
    runtime: Runtime

    @property
    def auto(self) -> LiveAuto:
        found: LiveAuto = self.app.state.auto
        return found

    @contextmanager
    def priced(self, **prices: Any) -> Iterator[None]:
        router, before = self.auto.router, self.auto.prices
        router._prices = self.auto.prices = self.auto.table._prices = Prices(**prices)
        self.auto.table._known = None
        try:
            yield
        finally:
            router._prices = self.auto.prices = self.auto.table._prices = before
            self.auto.table._known = None

    async def put(self, one: MeasuredTable) -> dict[str, Any]:
        response = await self.client.put("/auto/table", json=as_json(one))
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def post(
        self, body: dict[str, Any] | None = None, mode: str = "auto", **headers: str
    ) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        body = {"prompt": "p", **(body or {})}
        return await self.client.post("/generate", params={"mode": mode}, json=body, headers=names)

    async def ask(self, body: dict[str, Any] | None = None, **headers: str) -> dict[str, Any]:
        response = await self.post(body, **headers)
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def refused(self, body: dict[str, Any], status: int = 422, **headers: str) -> str:
        response = await self.post(body, **headers)
        assert response.status_code == status, response.text
        return str(response.json()["error"]["message"])

    async def chosen(self, body: dict[str, Any] | None = None, **headers: str) -> tuple[str, int]:
        routing = (await self.ask(body, **headers))["routing"]
        return routing["mode"], routing["n"]


def engines() -> dict[str, FakeEngine]:
    return {"ref": ChatEngine("fake-ref", endless=True), "vbon": Tuned("fake-vbon", endless=True)}


@asynccontextmanager
async def started(**settings: Any) -> AsyncGenerator[Service, None]:
    runtime = make_runtime(
        **{"engines": engines(), "store": "none", "gold": FakeReward()} | settings
    )
    async with serving(runtime) as (app, client):
        await app.state.auto.table.until_read()
        yield Service(app, client, runtime)


@pytest.fixture(scope="module")
async def shared() -> AsyncGenerator[Service, None]:
    async with started() as service:
        yield service


@pytest.fixture
async def service(shared: Service) -> Service:
    """The shared service with the exact table."""
    await shared.put(exact_table())
    return shared


GRID = [
    {"token": token, "latency": latency, "p95_s": p95}
    for token in (0.0, 0.02, 0.1, 0.5)
    for latency in (0.0, 0.2, 2.0)
    for p95 in (None, 0.5)
]


async def test_modes_say_which_budgets_requests_may_have(service: Service) -> None:
    modes = (await service.client.get("/modes")).json()
    assert modes["budgets"] == ["tokens", "reward"]
    assert (await service.client.delete("/auto/table")).status_code == 204
    assert (await service.client.get("/modes")).json()["budgets"] == []
    for price in ("price_per_hour", "price_per_million_tokens"):
        async with started(auto={price: 2.0}) as priced:
            await priced.put(exact_table())
            found = (await priced.client.get("/modes")).json()["budgets"]
            assert found == ["tokens", "money", "reward"]


async def test_at_every_price_the_best_setting_answers(service: Service) -> None:
    """The choice is the enumerated argmax, and the answer is made with its N and policy."""
    seen = set()
    for prices in GRID:
        with service.priced(**prices):
            values = {
                (one.mode, one.n): one.reward.mean - prices["token"] * one.generated_tokens.mean
                - prices["latency"] * one.latency_mean_s.mean
                for one in exact_table().rows
                if one.reward and one.latency_mean_s and one.latency_p95_s
                and (prices["p95_s"] is None or one.latency_p95_s.high <= prices["p95_s"])
            }  # fmt: skip
            answer = await service.ask({"return_candidates": True})
        routing, best = answer["routing"], max(values, key=values.__getitem__)
        assert (routing["mode"], routing["n"]) == best, prices
        assert answer["policy"]["name"] == routing["policy"]
        assert len(answer["candidates"]) == answer["sampling"]["n"] == routing["n"]
        assert answer["usage"]["generated_tokens"] == routing["n"]
        assert answer["reward"] == max(one["reward"] for one in answer["candidates"])
        seen.add(best)
    assert seen >= {("ref", 1), ("vbon", 1), ("bon", 2)}


async def test_the_reward_that_is_expected_is_the_one_that_comes(service: Service) -> None:
    """128 answers of each of three budgets; their means are within 4 standard errors (one in 5,000)."""
    for budget in (1, 3, 16):
        answers = await service.ask(
            {"prompt": None, "prompts": [f"p{i}" for i in range(128)], "budget": {"tokens": budget}}
        )
        rewards = np.array([one["reward"] for one in answers["answers"]])
        expected = answers["answers"][0]["routing"]["expected"]["reward"]["mean"]
        error = max(float(rewards.std()), 0.05) / np.sqrt(len(rewards))
        assert abs(float(rewards.mean()) - expected) < 4 * error
        generated = [one["usage"]["generated_tokens"] for one in answers["answers"]]
        assert max(generated) <= budget


async def test_the_answer_says_what_was_chosen_and_why(service: Service) -> None:
    with service.priced(token=0.02, latency=0.0, hour=3.6):
        routing = (await service.ask({"n": 4, "max_tokens": 1}))["routing"]
    assert (routing["mode"], routing["policy"], routing["n"]) == ("vbon", "vbon", 1)
    assert routing["expected"]["reward"]["count"] == 100
    assert routing["expected"]["generated_tokens"]["mean"] == 1.0
    assert routing["expected"]["latency_p95_s"]["mean"] == 1.2
    assert routing["expected"]["money"] == pytest.approx(1.0 / 8 / 1000)
    assert (routing["met"], routing["differs"], routing["settings"]) == (None, [], {})
    assert routing["why"].startswith("It has the highest reward less prices,")
    body = {"model": "auto", "prompt": "p", "best_of": 3, "budget": {"reward": 0.0}}
    found = (await service.client.post("/v1/completions", json=body)).json()["vbon"]
    assert found["mode"] == "auto"
    assert found["routing"]["met"] is True
    assert "cheapest" in found["routing"]["why"]


@pytest.mark.parametrize("mode", [*STRATEGIES, "ref", "vbon"])
async def test_every_mode_can_be_a_setting(shared: Service, mode: str) -> None:
    single = mode in ("ref", "vbon")
    policy = mode if single else "ref"
    best = row(mode, 1 if single else 4, policy=policy, reward=around(50.0), max_tokens=6)
    await shared.put(table(row(n=2), best))
    for body in (
        {},
        {"seed": 7},
        {"messages": [{"role": "user", "content": "hi"}], "prompt": None},
    ):
        answer = await shared.ask(body)
        assert (answer["mode"], answer["routing"]["mode"]) == ("auto", mode)
        assert answer["sampling"]["max_tokens"] == 6
        assert answer["policy"]["name"] == policy
    direct = (await shared.post({"seed": 7, "n": 4, "max_tokens": 6}, mode=mode)).json()
    again = await shared.ask({"seed": 7, "max_tokens": 6})
    assert (again["text"], again["reward"]) == (direct["text"], direct["reward"])
    streamed = await stream(
        shared.app, "/generate?mode=auto", {"prompt": "p", "stream": True, "seed": 7}
    )
    (final,) = streamed.named("answer")
    assert final["text"] == direct["text"]
    totals = {one["total"] for one in streamed.named("progress")}
    assert totals <= {best.n if single else STRATEGIES[mode]().most_candidates(best.n)}


async def test_strategy_settings_of_a_row_are_used_and_bad_ones_make_it_unusable(
    shared: Service,
) -> None:
    good = row("soft-bon", 4, settings={"reward_temperature": 0.25}, reward=around(9.0))
    bad = [
        row("soft-bon", 4, settings={"reward_temperature": -1}, reward=around(99.0)),
        row("soft-bon", 4, settings={"candidate_cost": 1.0}, reward=around(99.0)),
        row("nothing", 4, reward=around(99.0)), row("tuned", 4, reward=around(99.0)),
        row("auto", 4, reward=around(99.0)),
        row("bon", 4, policy="gone", reward=around(99.0)), row("vbon", 1, reward=around(99.0)),
        row("bon", 200, reward=around(99.0)), row("bon", 5, max_tokens=10_000, reward=around(99.0)),
        row("adaptive-bon", 4, settings={"max_n": 500}, reward=around(99.0)),
        row("bon", 6, temperature=1e9, reward=around(99.0)), row("bon", 7, reward=None),
    ]  # fmt: skip
    found = await shared.put(
        table(good, *bad, policies={"ref": "fake", "vbon": "fake", "gone": "g1"})
    )
    assert (found["usable"], len(found["rows"])) == (1, 13)
    assert [one["usable"] for one in found["rows"]] == [True] + [False] * 12
    assert all(one["reason"] for one in found["rows"][1:])
    answer = await shared.ask()
    assert (answer["routing"]["mode"], answer["routing"]["settings"]) == (
        "soft-bon", {"reward_temperature": 0.25},
    )  # fmt: skip
    assert answer["strategy"]["reward_temperature"] == 0.25


# -- budgets and what the client asks for


async def test_budgets_are_kept_and_what_cannot_be_kept_is_said(service: Service) -> None:
    for most in (1, 2, 3, 5, 9, 16, 10**9):
        answer = await service.ask({"budget": {"tokens": most}})
        assert answer["usage"]["generated_tokens"] <= most
        assert answer["routing"]["met"] is True
    answer = await service.ask({"budget": {"reward": 1e6}})
    assert answer["routing"]["met"] is False
    assert "The lower end of no setting's reward reaches" in answer["routing"]["why"]
    for least in (expected_best(2) - 0.02, expected_best(3) - 0.01, expected_best(8) - 0.02):
        answer = await service.ask({"budget": {"reward": least}})
        met = [one for one in exact_table().rows if one.reward and one.reward.low >= least]
        cheapest = min(one.generated_tokens.mean for one in met)
        assert answer["routing"]["expected"]["generated_tokens"]["mean"] == cheapest
        assert answer["routing"]["expected"]["reward"]["low"] >= least
    assert "no prices of money" in await service.refused({"budget": {"money": 1}})
    with service.priced(million_tokens=1e6):
        assert await service.chosen({"budget": {"money": 1.0}}) == ("vbon", 1)
        assert "cheapest measured setting needs up to" in await service.refused(
            {"budget": {"money": 0.9}}
        )


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({}, "exactly one of tokens, money, reward; got none"),
        ({"tokens": 1, "reward": 2}, "got tokens, reward"),
        ({"tokens": 0}, "budget.tokens"),
        ({"tokens": 1.5}, "budget.tokens"),
        ({"money": -1}, "budget.money"),
        ({"reward": "x"}, "budget.reward"),
        ({"requests": 1}, "budget.requests"),
        ({"tokens": None}, "got none"),
        (3, "budget"),
    ],
)
async def test_a_wrong_budget_is_refused(shared: Service, budget: Any, words: str) -> None:
    assert words in await shared.refused({"budget": budget})


async def test_the_client_s_n_and_its_hub_s_header_bound_the_candidates(service: Service) -> None:
    assert await service.chosen() == ("vbon", 1)
    rows = [one for one in exact_table().rows if one.mode != "vbon"]
    await service.put(table(*rows))
    assert await service.chosen() == ("bon", 16)
    assert await service.chosen({"n": 5}) == ("bon", 4)
    assert await service.chosen(X_ITS_Budget="3") == ("bon", 3)
    assert await service.chosen({"n": 8}, X_ITS_Budget="2") == ("bon", 2)
    assert await service.chosen({"n": 1}) == ("ref", 1)
    assert await service.chosen({"budget": {"reward": 0.5}}, X_ITS_Budget="9") == ("bon", 2)
    for value in ("0", "-1", "x", "1.5", ""):
        await service.refused({}, X_ITS_Budget=value)
    # In other modes it bounds N as well.
    answer = (await service.post({"max_tokens": 2}, mode="bon", X_ITS_Budget="3")).json()
    assert answer["sampling"]["n"] == 3
    answer = (await service.post({"n": 2, "max_tokens": 2}, mode="bon", X_ITS_Budget="3")).json()
    assert answer["sampling"]["n"] == 2
    assert (await service.post({}, mode="ref", X_ITS_Budget="1")).status_code == 200
    for mode, body in (("adaptive-bon", {"max_n": 8}), ("bon", {"n": [2, 4]})):
        refused = await service.post(body, mode=mode, X_ITS_Budget="3")
        assert refused.json()["error"]["param"] == "X-ITS-Budget"
    body = {"model": "ref", "prompt": "p", "n": 3}
    two = {"X-ITS-Budget": "2"}
    refused = await service.client.post("/v1/completions", json=body, headers=two)
    assert refused.status_code == 422
    assert "takes no budget" in (await service.post({"budget": {"tokens": 9}}, mode="bon")).text


async def test_several_answers_need_as_many_candidates_and_cost_as_many_samples(
    service: Service,
) -> None:
    async def asked(**body: Any) -> dict[str, Any]:
        body = {"model": "auto", "prompt": "p", "n": 3, **body}
        response = await service.client.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    tuned = row("vbon", 1, policy="vbon", reward=around(9.0), max_tokens=2,
                generated_tokens=around(1.9, 0.1))  # fmt: skip
    await service.put(table(*[one for one in exact_table().rows if one.mode == "bon"], tuned))
    found = await asked()
    assert len(found["choices"]) == 3
    assert (found["vbon"]["routing"]["mode"], found["vbon"]["generated_tokens"]) == ("vbon", 6)
    # Three samples of the tuned policy need up to six tokens on average, best-of-4 needs four.
    found = await asked(budget={"tokens": 5})
    assert (found["vbon"]["routing"]["mode"], found["vbon"]["routing"]["n"]) == ("bon", 4)
    assert len(found["choices"]) == 3
    found = await asked(best_of=3, budget={"tokens": 4})
    assert found["vbon"]["routing"]["n"] == 3


async def test_the_request_s_own_sampling_wins_and_what_differs_is_said(shared: Service) -> None:
    cold = row(n=2, temperature=0.5, top_p=0.9, top_k=5, max_tokens=4, reward=around(2.0))
    warm = row(n=4, temperature=1.0, max_tokens=6, reward=around(1.0))
    one = row("ref", 1, max_tokens=6, reward=around(0.0))
    await shared.put(table(cold, warm, one))
    sampling = (await shared.ask())["sampling"]
    assert [sampling[name] for name in ("n", "temperature", "top_p", "top_k", "max_tokens")] == [
        2, 0.5, 0.9, 5, 4,
    ]  # fmt: skip
    # Settings that were measured with the request's own temperature come first.
    answer = await shared.ask({"temperature": 1.0})
    assert (answer["sampling"]["n"], answer["routing"]["differs"]) == (4, [])
    answer = await shared.ask({"temperature": 0.7, "max_tokens": 3, "stop": "x", "min_p": 0.1})
    assert (answer["sampling"]["n"], answer["sampling"]["temperature"]) == (2, 0.7)
    assert answer["routing"]["differs"] == ["max_tokens", "temperature", "min_p", "stop"]
    assert (answer["sampling"]["max_tokens"], answer["sampling"]["top_p"]) == (3, 0.9)
    # All candidates of greedy decoding are the same.
    assert (await shared.ask({"temperature": 0}))["routing"]["n"] == 1
    answer = await shared.ask({"top_k": 0, "top_p": 1.0})
    assert answer["sampling"]["n"] == 4
    body = {"model": "auto", "prompt": "p", "top_p": 1.0}
    found = (await shared.client.post("/v1/completions", json=body)).json()["vbon"]
    assert (found["sampling"]["n"], found["sampling"]["top_p"]) == (4, 1.0)


async def test_a_default_that_does_not_fit_the_context_is_lowered_from_the_row_s(
    shared: Service,
) -> None:
    await shared.put(table(row(n=2, max_tokens=200)))
    answer = await shared.ask({"prompt": "x" * 100})
    assert answer["sampling"]["max_tokens"] == 156
    assert answer["details"]["max_tokens"].startswith("156 instead of the default 200")
    assert "max_tokens" not in (await shared.ask())["details"]


async def test_settings_that_cannot_make_the_answer_are_left_out(shared: Service) -> None:
    tree = row("treebon", 4, reward=around(9.0), max_tokens=8)
    stops = row(
        "adaptive-bon", 4, settings={"max_n": 2, "min_n": 2}, reward=around(8.0), max_tokens=8
    )
    await shared.put(table(tree, stops, row("bon", 4, max_tokens=8)))
    assert (await shared.chosen()) == ("treebon", 4)
    assert (await shared.chosen({"frequency_penalty": 0.5})) == ("adaptive-bon", 4)
    body = {"model": "auto", "prompt": "p", "n": 3, "frequency_penalty": 0.5}
    found = (await shared.client.post("/v1/completions", json=body)).json()
    assert found["vbon"]["routing"]["mode"] == "bon"


async def test_where_nothing_fits_the_default_answers_and_a_budget_is_refused(
    shared: Service,
) -> None:
    await shared.put(table(row(n=4, max_tokens=2)))
    answer = await shared.ask({"n": 2, "max_tokens": 2})
    assert (answer["sampling"]["n"], answer["routing"]["expected"]) == (2, None)
    assert "at most 2 candidates" in answer["routing"]["why"]
    said = await shared.refused({"n": 2, "budget": {"tokens": 100}})
    assert "at most 2 candidates" in said
    before = shared.auto.router.unmeasured["request"]
    await shared.ask({"n": 3, "max_tokens": 2})
    assert shared.auto.router.unmeasured["request"] == before + 1


# -- stale tables


@contextmanager
def revised(engine: FakeEngine, revision: str) -> Iterator[None]:
    before = engine.info
    engine.info = replace(before, revision=revision)
    try:
        yield
    finally:
        engine.info = before


async def test_a_reload_makes_rows_unusable_at_once_and_the_old_weights_usable_again(
    service: Service,
) -> None:
    tuned: Any = service.runtime.policies["vbon"]
    reference: Any = service.runtime.policies["ref"]
    assert await service.chosen() == ("vbon", 1)
    with revised(tuned, "other"):
        assert await service.chosen() == ("bon", 16)
        found = (await service.client.get("/auto/table")).json()
        assert found["usable"] == 6
        assert found["reasons"] == [
            "Policy 'vbon' was measured at revision fake, and revision other is served."
        ]
        with revised(reference, "new"):
            answer = await service.ask({"max_tokens": 2})
            assert answer["sampling"]["n"] == 16
            assert answer["routing"]["expected"] is None
            assert "revision new is served" in answer["routing"]["why"]
            response = await service.post({"budget": {"tokens": 9}})
            assert (response.status_code, response.json()["error"]["type"]) == (503, "not_ready")
            assert "are stale" in response.text
            refused = await service.client.put("/auto/table", json=as_json(exact_table()))
            assert refused.status_code == 422
            assert "none of the table's settings can be used here" in refused.text
    assert await service.chosen() == ("vbon", 1)


async def test_a_policy_that_leaves_takes_its_rows_with_it(service: Service) -> None:
    policies = service.runtime.policies
    service.runtime._serve({"ref": policies["ref"]})
    try:
        assert await service.chosen() == ("bon", 16)
    finally:
        service.runtime._serve(policies)
    assert await service.chosen() == ("vbon", 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardware": "another machine"}, "measured on 'another machine'"),
        ({"reward_revision": "w2"}, "revision w2 of the reward model"),
        ({"reward_revision": None}, "measured with no reward model"),
        ({"policies": {"ref": "x", "vbon": "y"}}, "revision x, and revision fake is served"),
    ],
)
async def test_a_table_of_another_server_is_refused_and_the_one_before_stays(
    service: Service, changes: dict[str, Any], words: str
) -> None:
    refused = await service.client.put("/auto/table", json=as_json(exact_table(**changes)))
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "invalid_input")
    assert words in refused.text.replace('\\"', "'")
    assert await service.chosen() == ("vbon", 1)


async def test_gold_rewards_are_weighed_if_asked_for_and_bound_to_their_model(
    shared: Service,
) -> None:
    rows = [row(n=2, gold=around(5.0)), row(n=4, gold=around(3.0), reward=around(9.0)), row(n=8)]
    with shared.priced(gain="gold"):
        found = await shared.put(table(*rows))
        assert found["usable"] == 2
        assert await shared.chosen() == ("bon", 2)
        other = as_json(table(*rows, gold_revision="g2"))
        assert "gold" in (await shared.client.put("/auto/table", json=other)).text
    assert await shared.chosen() == ("bon", 4)


async def test_broken_tables_are_refused(shared: Service) -> None:
    good, headers = as_json(exact_table()), {"content-type": "application/json"}
    whole = await shared.client.put("/auto/table", content=json.dumps(good), headers=headers)
    assert whole.status_code == 200, whole.text
    for change in (
        {"version": 9}, {"rows": []}, {"rows": good["rows"] * 2}, {"extra": 1}, {"made_by": "me"},
        {"policies": {}}, {"hardware": "\ud800"}, {"concurrency": 0}, {"made_at": "yesterday"},
    ):  # fmt: skip
        content = json.dumps(good | change)
        response = await shared.client.put("/auto/table", content=content, headers=headers)
        assert response.status_code == 422, change
    assert (
        "this program reads version 1"
        in (await shared.client.put("/auto/table", json=good | {"version": 9})).text
    )


@pytest.mark.parametrize("made_at", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
async def test_a_time_that_no_calendar_has_in_utc_is_refused(tmp_path: Path, made_at: str) -> None:
    async with started(store=str(tmp_path / "runs.db")) as service:
        changed = as_json(exact_table()) | {"made_at": made_at}
        response = await service.client.put("/auto/table", json=changed)
        assert response.status_code == 422, response.text
        assert "made_at" in response.text


# -- what is kept between requests


async def test_settings_are_compared_once_for_requests_of_a_kind_and_again_once_anything_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every answer is that of a router that keeps nothing."""
    compared = 0
    original = price_router.option_of

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal compared
        compared += 1
        return original(*args, **named)

    monkeypatch.setattr(price_router, "option_of", counted)
    async with started() as service:
        await service.runtime.supervisor.stop()
        await service.put(exact_table())

        async def told(body: dict[str, Any] | None = None) -> tuple[bool, Any]:
            """Whether settings were compared for a request, and what its answer says of the choice."""
            nonlocal compared
            compared = 0
            kept = (await service.ask(body))["routing"]
            looked = compared > 0
            router = service.auto.router
            router._recent.clear()
            assert (await service.ask(body))["routing"] == kept
            return looked, (kept["mode"], kept["n"])

        assert await told() == (True, ("vbon", 1))
        bodies: list[dict[str, Any]] = [{}, {"prompt": "other"}, {"seed": 3}]
        bodies += [{"budget": {kind: amount}} for kind, amount in
                   (("tokens", 3), ("tokens", 4), ("reward", 0.1), ("reward", 99))]  # fmt: skip
        for body in bodies:
            assert (await told(body))[0] is False, body
        biased = [{"logit_bias": {"1": value}} for value in (1, 2)]
        for body in ({"temperature": 0.5}, {"n": 2}, {"max_tokens": 2}, *biased):
            assert (await told(body))[0] is True, body
        assert (await told(biased[1]))[0] is False
        tuned: Any = service.runtime.policies["vbon"]
        await tuned.stop()
        assert await told() == (True, ("bon", 16))
        await tuned.start()
        await service.put(exact_table(rows=[row("bon", 4)]))
        assert await told() == (True, ("bon", 4))


def test_of_results_the_few_that_were_used_last_are_kept_and_no_error_is() -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], str]:
        return lambda: (made.append(name), name)[1]

    recent: Recent[str] = Recent(2)
    for name in "abacab":
        assert recent.get(name, make(name)) == name
    assert made == ["a", "b", "c", "b"]  # c took the place of b, which had been used before a

    def fail() -> str:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            recent.get("d", fail)
    assert recent.get("d", make("d")) == "d"
    assert made[4:] == ["d"]


# -- engines that die


async def test_a_dead_engine_leaves_its_settings_to_others() -> None:
    async with started() as service:
        await service.runtime.supervisor.stop()
        await service.put(exact_table())
        tuned: Any = service.runtime.policies["vbon"]
        await tuned.stop()
        assert await service.chosen() == ("bon", 16)
        await tuned.start()
        assert await service.chosen() == ("vbon", 1)
        reward: Any = service.runtime.reward
        reward._runs = lambda: False
        assert (await service.ask())["routing"]["mode"] == "vbon"
        await tuned.stop()
        assert (await service.ask())["routing"]["mode"] == "ref"
        await service.runtime.policies["ref"].stop()
        assert (await service.post()).json()["error"]["type"] in ("engine_dead", "reward_dead")


@pytest.mark.parametrize("dies", [True, False])
async def test_an_engine_that_fails_to_answer_leaves_the_request_to_another(dies: bool) -> None:
    class Failing(Tuned):
        async def generate(self, *arguments: Any, **named: Any) -> Any:
            if dies:
                await self.stop()
            if arguments:
                raise (EngineDeadError if dies else EngineError)("it failed to answer")
            async for candidate in super().generate(*arguments, **named):
                yield candidate

    own = {"ref": ChatEngine("fake-ref", endless=True), "vbon": Failing("fake-vbon", endless=True)}
    async with started(engines=own) as service:
        await service.runtime.supervisor.stop()
        await service.put(exact_table())
        answer = await service.ask()
        assert (answer["routing"]["mode"], answer["sampling"]["n"]) == ("bon", 16)
        assert service.auto.router.fallbacks == 1
        metrics = (await service.client.get("/metrics")).text
        assert "vbon_auto_fallbacks_total 1.0" in metrics
        # No other setting is within this budget, and the failure of the engine is not the client's fault.
        tuned: Any = service.runtime.policies["vbon"]
        await tuned.start()
        await service.put(table(row("vbon", 1, policy="vbon"), row(n=4)))
        response = await service.post({"budget": {"tokens": 50}})
        assert "it failed to answer" in response.text
        assert response.status_code >= 500


# -- where tables come from and go


async def test_a_table_adds_the_mode_and_its_removal_takes_it_away(tmp_path: Path) -> None:
    store = str(tmp_path / "runs.db")
    async with started(store=store) as service:
        assert (await service.client.get("/auto/table")).status_code == 404
        assert (await service.client.delete("/auto/table")).status_code == 404
        assert "--auto.table FILE" in await service.refused({})
        found = await service.put(exact_table())
        assert (found["source"], found["stored"], found["usable"]) == ("request", True, 7)
        modes = {one["name"]: one for one in (await service.client.get("/modes")).json()["modes"]}
        assert "less the prices of tokens" in modes["auto"]["description"]
        names = [one["id"] for one in (await service.client.get("/v1/models")).json()["data"]]
        assert "auto" in names
        compare = {"prompts": ["a"], "modes": ["ref", "auto"]}
        assert (await service.client.post("/compare", json=compare)).status_code == 422
        assert "single n" in await service.refused({"n": [1, 2]})
    async with started(store=store, default_mode="auto") as service:
        found = (await service.client.get("/auto/table")).json()
        assert (found["source"], found["stored"]) == ("store", True)
        response = await service.client.post("/generate", json={"prompt": "p"})
        assert response.json()["routing"]["mode"] == "vbon"
        assert (await service.client.delete("/auto/table")).status_code == 204
        assert (await service.client.get("/auto/table")).status_code == 404
        await service.refused({})
    async with started(store=store) as service:
        assert (await service.client.get("/auto/table")).status_code == 404


@pytest.mark.parametrize(("day", "source"), [(1, "store"), (3, "file")])
async def test_the_newer_of_file_and_store_is_used(tmp_path: Path, day: int, source: str) -> None:
    kept = exact_table(made_at=datetime(2026, 11, 2, tzinfo=UTC))
    opened = open_store(str(tmp_path / "runs.db"))
    save_auto_table(opened, as_json(kept), kept.made_at)
    opened.close()
    file = tmp_path / "table.json"
    write_table(file, exact_table(made_at=datetime(2026, 11, day, tzinfo=UTC)))
    async with started(store=str(tmp_path / "runs.db"), auto={"table": str(file)}) as service:
        assert (await service.client.get("/auto/table")).json()["source"] == source
        assert await service.chosen() == ("vbon", 1)


async def test_a_table_from_a_store_that_was_away_asks_for_the_hardware_outside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first question may start a program that takes seconds, in which no request would be answered."""
    kept = exact_table()
    opened = open_store(str(tmp_path / "runs.db"))
    save_auto_table(opened, as_json(kept), kept.made_at)
    opened.close()
    away = [StoreError("no connection")]
    asked: list[threading.Thread] = []

    def read(store: Any) -> Any:
        if away:
            raise away.pop()
        return read_auto_table(store)

    def describe() -> str:
        asked.append(threading.current_thread())
        return kept.hardware

    monkeypatch.setattr("service.auto.table_in_use.RETRY_S", 0.01)
    monkeypatch.setattr("service.auto.table_in_use.read_auto_table", read)
    monkeypatch.setattr("service.auto.table_in_use.describe_hardware", describe)
    async with started(store=str(tmp_path / "runs.db")) as service:
        reading = service.auto.table._reading
        assert reading is not None
        await asyncio.wait_for(reading, 60)
        assert await service.chosen() == ("vbon", 1)
    assert asked[0] is not threading.main_thread()


async def test_a_stored_table_that_cannot_be_used_is_logged_and_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_store(str(tmp_path / "runs.db"))
    save_auto_table(opened, {"version": 7}, datetime(2026, 11, 2, tzinfo=UTC))
    opened.close()
    async with started(store=str(tmp_path / "runs.db")) as service:
        assert "the table has version 7" in caplog.text
        assert (await service.client.get("/auto/table")).status_code == 404
        assert (await service.put(exact_table()))["stored"] is True


async def test_a_store_that_fails_leaves_the_table_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(store=str(tmp_path / "runs.db")) as service:
        await service.put(table(row(n=2)))

        def fails(*_: Any) -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr("service.auto.table_in_use.save_auto_table", fails)
        monkeypatch.setattr("service.auto.table_in_use.delete_auto_table", fails)
        response = await service.client.put("/auto/table", json=as_json(exact_table()))
        assert response.status_code == 503
        assert "retry-after" in response.headers
        assert (await service.client.delete("/auto/table")).status_code == 503
        assert await service.chosen() == ("bon", 2)


async def test_a_table_of_a_store_that_was_not_read_yet_can_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 404 would say that there is none, and the table would be used once the store is back."""
    kept = exact_table()
    opened = open_store(str(tmp_path / "runs.db"))
    save_auto_table(opened, as_json(kept), kept.made_at)
    opened.close()
    away = True

    def while_away(work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*arguments: Any) -> Any:
            if away:
                raise StoreError("no connection")
            return work(*arguments)

        return done

    monkeypatch.setattr("service.auto.table_in_use.RETRY_S", 0.01)
    monkeypatch.setattr("service.auto.table_in_use.read_auto_table", while_away(read_auto_table))
    monkeypatch.setattr(
        "service.auto.table_in_use.delete_auto_table", while_away(delete_auto_table)
    )
    async with started(store=str(tmp_path / "runs.db")) as service:
        assert (await service.client.delete("/auto/table")).status_code == 503
        monkeypatch.setattr("service.auto.table_in_use.RETRY_S", 60.0)
        await asyncio.sleep(0.05)  # the reader waits for its last short time
        away = False
        assert (await service.client.delete("/auto/table")).status_code == 204
        assert (await service.client.delete("/auto/table")).status_code == 404
        assert (await service.client.get("/auto/table")).status_code == 404
    again = open_store(str(tmp_path / "runs.db"))
    assert read_auto_table(again) is None
    again.close()


def test_a_file_that_is_no_table_stops_the_start(tmp_path: Path) -> None:
    from service.app import create_app

    (tmp_path / "table.json").write_text("{}")
    for name, words in (("table.json", "is not a table"), ("absent.json", "cannot read")):
        runtime = make_runtime(store="none", auto={"table": str(tmp_path / name)})
        with pytest.raises(DataError, match=words):
            create_app(runtime)


async def test_a_policy_of_the_mode_s_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="the name 'auto' of policies is needed"):
        ServiceSettings(policies={"ref": "r", "auto": "a"}, auto={"table": "t.json"})  # type: ignore[arg-type]
    own: dict[str, FakeEngine] = {"ref": ChatEngine("fake"), "auto": ChatEngine("fake")}
    async with started(engines=own) as service:
        refused = await service.client.put("/auto/table", json=as_json(table(row())))
        assert "rename it" in refused.text
        assert (await service.ask())["routing"] is None


async def test_only_admins_change_the_table_where_there_are_keys(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        body = as_json(table(policies={"ref": "fake"}))
        ann = bearer(ANN_KEY)
        for response in (
            await service.client.put("/auto/table", json=body, headers=ann),
            await service.client.delete("/auto/table", headers=ann),
        ):
            assert (response.status_code, response.json()["error"]["type"]) == (403, "forbidden")
        assert (await service.client.get("/auto/table", headers=ann)).status_code == 404
        root = bearer(ROOT_KEY)
        assert (await service.client.put("/auto/table", json=body, headers=root)).status_code == 200
        assert (await service.client.get("/auto/table", headers=ann)).status_code == 200


async def test_another_site_s_page_changes_nothing(shared: Service) -> None:
    body = as_json(exact_table())
    headers = {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}
    for response in (
        await shared.client.put("/auto/table", json=body, headers=headers),
        await shared.client.delete("/auto/table", headers=headers),
    ):
        assert response.status_code == 403


# -- beside a rollout, and metrics


async def test_a_rollout_decides_unless_the_request_has_a_budget(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        refused = await service.client.post(
            "/generate", params={"mode": "auto"}, json={"prompt": "p", "budget": {"tokens": 9}}
        )
        assert "no table of measured settings" in refused.text
        capped = await service.client.post(
            "/generate", params={"mode": "auto"}, json={"prompt": "p", "max_tokens": 2},
            headers={"X-ITS-Budget": "2"},
        )  # fmt: skip
        assert capped.json()["routing"]["arm"] == "bon"
        assert capped.json()["sampling"]["n"] == 2
        measured = table(row(n=3, max_tokens=4), policies={"ref": "fake"})
        response = await service.client.put("/auto/table", json=as_json(measured))
        assert response.status_code == 200, response.text
        assert (await service.ask())["routing"] == {
            "arm": "bon", "share": 1.0, "step": None, "checkpoint": None,
        }  # fmt: skip
        requests = service.live.keeper.totals.requests["bon"]
        found = await service.ask(budget={"tokens": 500})
        assert (found["routing"]["mode"], found["routing"]["n"]) == ("bon", 3)
        priced = await service.client.post(
            "/generate",
            params={"mode": "auto"},
            json={"prompt": "p"},
            headers={"X-ITS-Budget": "3"},
        )
        assert priced.json()["routing"]["n"] == 3
        assert service.live.keeper.totals.requests["bon"] == requests
        assert (await service.client.delete("/auto/table")).status_code == 204
        assert (await service.ask())["routing"]["arm"] == "bon"


async def test_metrics_count_answers_tokens_and_budgets() -> None:
    async with started() as service:
        before = (await service.client.get("/metrics")).text
        assert 'vbon_auto_rows{state="usable"} 0.0' in before
        await service.put(exact_table())
        for _, budget in itertools.product(range(2), ({"tokens": 2}, {"reward": 1e6})):
            await service.ask({"budget": budget})
        await service.ask({"n": 1, "temperature": 0.3})
        found = (await service.client.get("/metrics")).text
        for line in (
            'vbon_auto_answers_total{mode="vbon",policy="vbon"} 5.0',
            'vbon_auto_tokens_total{mode="vbon",policy="vbon"} 5.0',
            'vbon_auto_expected_tokens_total{mode="vbon",policy="vbon"} 5.0',
            'vbon_auto_budgets_total{kind="tokens",met="yes"} 2.0',
            'vbon_auto_budgets_total{kind="reward",met="no"} 2.0',
            'vbon_auto_unmeasured_total{reason="stale"} 0.0',
            'vbon_auto_rows{state="usable"} 7.0',
            'vbon_auto_rows{state="stale"} 0.0',
        ):
            assert line in found
