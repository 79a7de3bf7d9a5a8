"""POST /v1/score: rewards of given texts, with the batching, admission and keys of all requests."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.auth.keys import new_key, write_keys
from service.runtime.runtime import Runtime
from tests.unit.fakes import FakeReward, make_runtime, on_a_port, score_text, serving
from tests.unit.test_api import disconnect_after
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.errors import RewardError
from vbon.prompts import Prompt
from vbon.rewards import Scorable
from vbon.rewards.remote import RemoteReward

clocked = virtually("service", "vbon", "tests.unit")

TEXTS = [" good", " bad and dull", "", " superb 😀"]
REWARDS = [score_text(text) for text in TEXTS]
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
PROMPT = Prompt(text="p")
CHAT_PROMPT = Prompt(messages=tuple(CHAT))  # type: ignore[arg-type]
# Each form of a request, and the prompts that the reward model must get.
FORMS: dict[str, tuple[dict[str, Any], list[Prompt]]] = {
    "prompt": ({"prompt": "p", "completions": TEXTS}, [PROMPT] * 4),
    "messages": ({"messages": CHAT, "completions": TEXTS}, [CHAT_PROMPT] * 4),
    "prompts": ({"prompts": ["a", "b", "c", "d"], "completions": TEXTS}, [Prompt(text=t) for t in "abcd"]),
    "chats": (
        {"prompts": ["a", {"messages": CHAT}, "c", "d"], "completions": TEXTS},
        [Prompt(text="a"), CHAT_PROMPT, Prompt(text="c"), Prompt(text="d")],
    ),
    "one of several": ({"prompts": ["p"], "completions": TEXTS}, [PROMPT] * 4),
    "vLLM": ({"text_1": "p", "text_2": TEXTS}, [PROMPT] * 4),
    "vLLM's lists": ({"text_1": list("abcd"), "text_2": TEXTS}, [Prompt(text=t) for t in "abcd"]),
    "vLLM's newer names": ({"queries": "p", "documents": TEXTS, "model": None}, [PROMPT] * 4),
}  # fmt: skip


class Noting(FakeReward):
    """Keeps what it scored."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(seconds)
        self.seen: list[Scorable] = []

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        self.seen += items
        return super().score(items)


class Picky(FakeReward):
    """Has no score for texts with "dull"."""

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        scores = super().score(items)
        return [None if "dull" in i.completion else s for i, s in zip(items, scores, strict=True)]


async def score(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/score", json=body)


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_gives_the_rewards_in_order(form: str) -> None:
    body, prompts = FORMS[form]
    reward = Noting()
    async with serving(make_runtime(reward=reward)) as (_, client):
        reward.seen.clear()
        answer = await score(client, **body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["rewards"] == pytest.approx(REWARDS)
    assert [(e["index"], e["object"]) for e in found["data"]] == [(i, "score") for i in range(4)]
    assert [element["score"] for element in found["data"]] == found["rewards"]
    assert (found["object"], found["model"], found["unscored"]) == ("list", "reward", 0)
    assert found["reward_model"]["name"] == "reward"
    assert reward.seen == [Scorable(p, t) for p, t in zip(prompts, TEXTS, strict=True)]


async def test_one_text_is_a_list_of_one() -> None:
    async with serving(make_runtime()) as (_, client):
        found = (await score(client, text_1="p", text_2=" good")).json()
    assert found["rewards"] == [pytest.approx(score_text(" good"))]


async def test_a_text_without_a_reward_is_null_and_counted() -> None:
    async with serving(make_runtime(reward=Picky())) as (_, client):
        found = (await score(client, prompt="p", completions=TEXTS)).json()
        seen = (await client.get("/metrics")).text
    assert found["rewards"] == [REWARDS[0], None, REWARDS[2], REWARDS[3]]
    assert found["unscored"] == 1
    assert 'vbon:scored_texts_total{model="reward"} 3.0' in seen
    assert 'vbon:unscored_texts_total{model="reward"} 1.0' in seen
    assert 'vbon:score_request_latency_seconds_count{model="reward"} 1.0' in seen


async def test_the_gold_model_scores_if_there_is_one() -> None:
    class Minus(FakeReward):
        def score(self, items: Sequence[Scorable]) -> list[float | None]:
            return [-(s or 0) for s in super().score(items)]

    async with serving(make_runtime(gold=Minus())) as (_, client):
        found = (await score(client, model="gold", prompt="p", completions=TEXTS)).json()
    assert found["rewards"] == pytest.approx([-reward for reward in REWARDS])
    assert found["reward_model"]["name"] == found["model"] == "gold"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "body", "exactly one of these pairs: prompt and completions.*got none"),
        ({"prompt": "p"}, "body", "got prompt"),
        ({"completions": ["a"]}, "body", "got completions"),
        ({"prompt": "p", "messages": CHAT, "completions": ["a"]}, "body", "got prompt, .*messages"),
        ({"text_1": "p", "completions": ["a"]}, "body", "exactly one of these pairs"),
        ({"prompts": ["a", "b"], "completions": ["c"]}, "body", "prompts has 2 elements and completions"),
        ({"text_1": ["a", "b"], "text_2": ["c"]}, "body", "text_1 has 2 elements and text_2 has 1"),
        ({"prompt": "p", "completions": []}, "completions", "at least 1"),
        ({"prompt": "p", "completions": "a"}, "completions", "valid list"),
        ({"prompt": "p", "completions": [None]}, "completions.0", "valid string"),
        ({"prompt": "p", "completions": ["a"], "n": 2}, "n", "has no such field"),
        ({"prompt": "p", "completions": ["a"], "model": "bon"}, "model", "'reward' or 'gold'"),
        ({"prompt": "p", "completions": ["a"], "model": "gold"}, "model", "has no gold model"),
        ({"prompt": "p", "completions": ["a"] * 7}, "completions", "at most 6 .*max_prompts x"),
        ({"text_1": "p", "text_2": ["a"] * 7}, "text_2", "text_2 has 7 texts"),
        ({"text_1": 5, "text_2": "a"}, "text_1", "^text_1: Input should be a valid string.{0,20}$"),
        ({"queries": [], "documents": "a"}, "queries", "^queries: List should have at least 1[^;]*$"),
    ],
)  # fmt: skip
async def test_a_request_that_cannot_be_scored_names_its_field(
    body: dict[str, Any], param: str, words: str
) -> None:
    limits = {"max_prompts": 2, "max_n": 3}
    async with serving(make_runtime(limits=limits, default_n=2)) as (_, client):
        answer = await score(client, **body)
    error = answer.json()["error"]
    assert answer.status_code == 422
    assert error["param"] == param
    assert re.search(words, error["message"], re.DOTALL), error["message"]


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [("prompt", "completions"), ("text_1", "text_2"), ("queries", "documents")],
)
@pytest.mark.parametrize("several", [False, True])
async def test_half_a_character_is_refused_in_every_form(
    prompts: str, texts: str, several: bool
) -> None:
    """A tokenizer fails on it, and with it the batch, in which texts of other requests may be."""
    reward = FakeReward()
    async with serving(make_runtime(reward=reward)) as (_, client):
        for wrong in (prompts, texts):
            body: dict[str, Any] = {prompts: "p", texts: ["a"]}
            listed = isinstance(body[wrong], list) or (several and wrong != "prompt")
            body[wrong] = ["\ud800"] if listed else "\ud800"
            answer = await client.post(
                "/v1/score",
                content=json.dumps(body),
                headers={"content-type": "application/json"},
            )
            assert answer.status_code == 422, answer.text
            assert answer.json()["error"]["param"] == (f"{wrong}.0" if listed else wrong)
    assert reward.batches == []


async def test_without_a_reward_model_the_request_is_refused() -> None:
    async with serving(make_runtime(without_reward=True)) as (_, client):
        answer = await score(client, prompt="p", completions=TEXTS)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "model")
    assert "--reward" in answer.json()["error"]["message"]


async def test_a_failed_model_is_502_and_counted() -> None:
    class Broken(FakeReward):
        def score(self, items: Sequence[Scorable]) -> list[float | None]:
            raise RewardError("out of memory")

    async with serving(make_runtime(reward=Broken())) as (_, client):
        answer = await score(client, prompt="p", completions=TEXTS)
        seen = (await client.get("/metrics")).text
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "reward_error")
    assert 'vbon:request_errors_total{error="reward_error",mode="score"} 1.0' in seen


async def test_a_dead_model_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = make_runtime()
    async with serving(runtime) as (_, client):
        await runtime.supervisor.stop()
        monkeypatch.setattr(runtime.reward, "_runs", lambda: False)
        answer = await score(client, prompt="p", completions=TEXTS)
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "reward_dead")


async def test_a_slow_model_is_504() -> None:
    async with serving(make_runtime(reward=FakeReward(seconds=0.2))) as (_, client):
        answer = await score(client, prompt="p", completions=["a"] * 300, timeout_s=0.05)
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout")
    assert "0.05 s (timeout_s)" in answer.json()["error"]["message"]


def slow(**limits: int) -> Runtime:
    engine = FakeEngine("fake-ref", seconds_per_token=0.02)
    return make_runtime(engines={"ref": engine}, limits=limits)


@clocked
async def test_texts_wait_behind_the_candidates_and_are_refused_where_the_queue_is_full() -> None:
    runtime = slow(running_sequences=2, waiting_sequences=3)
    async with serving(runtime) as (_, client):
        body = {"prompt": "a", "n": 2, "max_tokens": 60, "ignore_eos": True}
        decoding = asyncio.create_task(client.post("/generate?mode=bon", json=body))
        while runtime.admission.running < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(score(client, prompt="p", completions=["a", "b"]))
        while not runtime.admission.waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        refused = await score(client, prompt="p", completions=["a", "b"])
        assert not waiting.done()
        await decoding
        found = (await waiting).json()
    assert refused.status_code == 429
    assert "2 sequences run and 2 wait" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert found["timings_ms"]["queue"] > 500
    assert found["timings_ms"]["scoring"] < found["timings_ms"]["total"]


async def test_the_limits_of_a_key_count_texts(tmp_path: Path) -> None:
    pairs = [
        new_key("few", max_sequences=3),
        new_key("slow", tokens_per_minute=10),
    ]
    file = tmp_path / "keys.jsonl"
    write_keys(file, [key for key, _ in pairs])
    tokens = {key.name: token for key, token in pairs}
    async with serving(make_runtime(auth={"keys_file": str(file)})) as (_, client):

        async def ask(key: str, count: int) -> httpx.Response:
            headers = {"authorization": f"Bearer {tokens[key]}"} if key else {}
            body = {"prompt": "p", "completions": ["a"] * count}
            return await client.post("/v1/score", json=body, headers=headers)

        assert (await ask("", 1)).status_code == 401
        assert (await ask("few", 3)).status_code == 200
        many = await ask("few", 4)
        assert (await ask("slow", 6)).status_code == 200
        spent = await ask("slow", 6)
        never = await ask("slow", 11)
    assert (many.status_code, many.json()["error"]["param"]) == (422, "completions")
    assert (
        "asked for 4 texts at once; key 'few' allows at most 3" in many.json()["error"]["message"]
    )
    assert (spent.status_code, never.status_code) == (429, 422)
    assert never.json()["error"]["param"] == "completions"


async def test_texts_of_several_requests_share_batches_and_none_fills_them() -> None:
    reward = Noting(seconds=0.01)
    async with serving(make_runtime(reward=reward)) as (_, client):
        reward.seen.clear()
        large = score(client, prompt="large", completions=["a"] * 200)
        small = score(client, prompt="small", completions=["b"] * 5)
        answers = await asyncio.gather(large, small)
    assert [len(answer.json()["rewards"]) for answer in answers] == [200, 5]
    assert max(reward.batches) <= 64 + 5
    last_small = max(i for i, item in enumerate(reward.seen) if item.prompt.text == "small")
    assert last_small < 3 * 64  # of 205: it did not wait until the large request was scored


async def test_a_client_that_leaves_takes_its_texts_along() -> None:
    reward = Noting(seconds=0.05)
    runtime = make_runtime(reward=reward)
    async with serving(runtime) as (app, _):
        reward.seen.clear()
        body = {"prompt": "p", "completions": ["a"] * 300}
        sent = await disconnect_after(app, 0.02, "/v1/score", body)
        assert runtime.admission.running == 0
        assert runtime.reward is not None
        assert runtime.reward.waiting == 0
    assert [m["status"] for m in sent if m["type"] == "http.response.start"] == [499]
    assert len(reward.seen) <= 64


async def test_a_service_can_be_the_reward_model_of_another() -> None:
    items = [Scorable(PROMPT, TEXTS[0]), Scorable(CHAT_PROMPT, TEXTS[1]), Scorable(PROMPT, "")]
    async with on_a_port(make_runtime()) as url:
        for address in (f"{url}/score", url, url.removesuffix("/v1")):
            remote = RemoteReward(address)
            await asyncio.to_thread(remote.load)
            found = await asyncio.to_thread(remote.score, items)
            await asyncio.to_thread(remote.close)
            assert found == pytest.approx([score_text(item.completion) for item in items])
