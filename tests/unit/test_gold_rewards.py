"""Gold rewards of ``POST /generate``: of every text that is returned, and only where they are asked for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from tests.unit.fakes import FakeReward, make_runtime, score_text, serving
from vbon.rewards import Scorable

BODY = {"prompt": "the film was", "n": 4, "max_tokens": 8, "seed": 3}


class GoldReward(FakeReward):
    """A gold reward model with another taste than the serving one; it cannot score long texts."""

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        self.batches.append(len(items))
        return [gold_of(item.completion) for item in items]


def gold_of(text: str) -> float | None:
    return None if len(text) > 45 else 7 - score_text(text)


async def post(client: httpx.AsyncClient, mode: str, **changes: Any) -> httpx.Response:
    return await client.post(f"/generate?mode={mode}", json=BODY | changes)


async def test_each_text_that_is_returned_has_its_gold_reward() -> None:
    async with serving(make_runtime(gold=GoldReward())) as (_, client):
        single = (await post(client, "vbon", gold=True)).json()
        bon = (await post(client, "bon", gold=True, n=16)).json()
        whole = (await post(client, "bon", gold=True, n=16, return_candidates=True)).json()
        body = {"prompts": ["a", "b"], "prompt": None, "gold": True}
        several = (await post(client, "ref", **body)).json()["answers"]
    for answer in (single, bon, whole, *several):
        assert answer["gold_reward"] == gold_of(answer["text"])
        assert answer["reward"] == score_text(answer["text"])
    golds = [one["gold_reward"] for one in whole["candidates"]]
    assert golds == [gold_of(one["text"]) for one in whole["candidates"]]
    assert None in golds
    assert len(set(golds)) > 5
    assert golds[whole["selected_index"]] == whole["gold_reward"]


async def test_the_gold_model_is_not_used_unless_it_is_asked_for() -> None:
    gold = GoldReward()
    async with serving(make_runtime(gold=gold)) as (_, client):
        answer = (await post(client, "bon", return_candidates=True)).json()
        assert gold.batches == []
    assert answer["gold_reward"] is None
    assert {one["gold_reward"] for one in answer["candidates"]} == {None}


@pytest.mark.parametrize(
    ("has_gold", "changes", "words"),
    [(False, {}, "start the server with --gold"), (True, {"stream": True}, "takes no stream")],
)
async def test_what_cannot_be_reported_is_refused_with_the_remedy(
    has_gold: bool, changes: dict[str, Any], words: str
) -> None:
    async with serving(make_runtime(gold=GoldReward() if has_gold else None)) as (_, client):
        response = await post(client, "bon", gold=True, **changes)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "gold")
    assert words in response.json()["error"]["message"]


class SlowGold(FakeReward):
    """A gold reward model that scores nothing until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.released = threading.Event(), threading.Event()
        self.blocked = False

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        if self.blocked:
            self.begun.set()
            self.released.wait(60)
        return super().score(items)


async def test_a_gold_model_slower_than_the_answers_is_waited_for_by_few_and_delays_nobody_else() -> (
    None
):
    gold = SlowGold()
    runtime = make_runtime(gold=gold, limits={"waiting_sequences": 3})
    async with serving(runtime) as (_, client):
        gold.blocked = True
        try:
            asking = []
            for number in range(4):  # the first is being scored, three wait
                asking.append(asyncio.create_task(post(client, "ref", gold=True, seed=number)))
                while runtime.gold is None or runtime.gold.waiting < number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(gold.begun.wait, 60)
            refused = await post(client, "ref", gold=True)
            assert refused.status_code == 429
            assert refused.json()["error"]["type"] == "overloaded"
            assert "retry-after" in refused.headers
            assert (await post(client, "bon")).status_code == 200
        finally:
            gold.released.set()
        answers = await asyncio.gather(*asking)
        assert [answer.status_code for answer in answers] == [200] * 4
        assert (await post(client, "ref", gold=True)).status_code == 200


async def test_the_time_limit_holds_for_the_answer_and_its_gold_reward_together() -> None:
    gold = SlowGold()
    runtime = make_runtime(gold=gold)
    limits: list[float | None] = []
    async with serving(runtime) as (_, client):
        track = runtime.in_flight.track

        def watched(
            limit_s: float | None, name: str, uses: tuple[object, ...], spent_s: float = 0.0
        ) -> Any:
            limits.append(spent_s)
            return track(limit_s, name, uses, spent_s)

        runtime.in_flight.track = watched  # type: ignore[method-assign]
        answer = (await post(client, "ref", gold=True, timeout_s=9.0)).json()
        assert limits == [0.0, answer["timings_ms"]["total"] / 1000]
        gold.blocked = True
        late = asyncio.create_task(post(client, "ref", gold=True, timeout_s=0.2))
        response = await late
        gold.released.set()
    assert response.status_code == 504
    assert "within 0.2 s (timeout_s)" in response.text
