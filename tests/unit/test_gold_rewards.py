"""Gold rewards of ``POST /generate``: of every text that is returned, and only where they are asked for."""

from __future__ import annotations

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
