"""Several answers to one prompt: the best by reward where candidates are reranked, else samples."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from service.strategies import STRATEGIES
from tests.unit.fakes import (
    ChatEngine,
    FakeReward,
    Streamed,
    make_runtime,
    on_a_port,
    score_text,
    serving,
    stream,
)

N = 3
CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "the film was"},
    CHATS: {"messages": [{"role": "user", "content": "the film was"}]},
}


def body_of(route: str, model: str, **changes: Any) -> dict[str, Any]:
    plain = {"model": model, "best_of": 8, "n": N, "max_tokens": 12, "seed": 3}
    return {**plain, **BODIES[route], **changes}


def chats(**options: Any) -> Any:
    engines = {name: ChatEngine(name) for name in ("ref", "vbon")}
    return serving(make_runtime(engines=engines, **options))


def text_of(choice: dict[str, Any]) -> str:
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize("route", BODIES)
async def test_reranked_modes_return_their_choice_and_the_others_by_reward(route: str) -> None:
    async with chats() as (_, client):
        for model in STRATEGIES:
            body = body_of(route, model, return_candidates=True)
            several = await client.post(route, json=body)
            one = await client.post(route, json={**body, "n": 1})
            check_order(model, several.json(), one.json())


def check_order(model: str, answer: dict[str, Any], one: dict[str, Any]) -> None:
    assert [choice["index"] for choice in answer["choices"]] == list(range(N))
    whole = [c for c in answer["vbon"]["candidates"] if c["finish_reason"] != "rejected"]
    selected = answer["vbon"]["selected_index"]
    others = sorted(
        (c for c in whole if c["index"] != selected),
        key=lambda c: (-(c["reward"] or 0), c["index"]),  # self-certainty scores only its choice
    )
    assert model == "self-certainty" or None not in [c["reward"] for c in whole]
    wanted = [next(c for c in whole if c["index"] == selected), *others][:N]
    assert [text_of(choice) for choice in answer["choices"]] == [c["text"] for c in wanted]
    told = [(one["selected_index"], one["reward"]) for one in answer["vbon"]["answers"]]
    assert told == [(c["index"], c["reward"]) for c in wanted]
    assert answer["usage"]["completion_tokens"] == sum(c["num_tokens"] for c in wanted)
    assert one["vbon"]["answers"] is None
    if model not in {"speculative-rejection", "adaptive-bon"}:  # which decode more for n answers
        assert text_of(one["choices"][0]) == text_of(answer["choices"][0])
    if model == "bon":
        assert [c["reward"] for c in wanted] == sorted((c["reward"] for c in whole), reverse=True)[
            :N
        ]


@pytest.mark.parametrize("route", BODIES)
async def test_single_modes_return_samples_in_their_order(route: str) -> None:
    async with chats() as (_, client):
        answer = (await client.post(route, json=body_of(route, "vbon", score=True))).json()
        more = (await client.post(route, json=body_of(route, "vbon", n=5))).json()
    texts = [text_of(choice) for choice in answer["choices"]]
    assert len(set(texts)) == N
    assert texts == [text_of(choice) for choice in more["choices"]][:N]
    rewards = [one["reward"] for one in answer["vbon"]["answers"]]
    assert rewards == pytest.approx([score_text(text) for text in texts])
    assert [one["selected_index"] for one in answer["vbon"]["answers"]] == [0, 1, 2]
    assert answer["vbon"]["sampling"]["n"] == N


async def test_several_prompts_with_several_answers_each() -> None:
    async with chats() as (_, client):
        both = (
            await client.post(
                COMPLETIONS, json=body_of(COMPLETIONS, "bon", prompt=["one", "another"], logprobs=0)
            )
        ).json()
        alone = (
            await client.post(
                COMPLETIONS, json=body_of(COMPLETIONS, "bon", prompt="another", logprobs=0)
            )
        ).json()
    assert [choice["index"] for choice in both["choices"]] == list(range(2 * N))
    for choice, same in zip(both["choices"][N:], alone["choices"], strict=True):
        assert choice | {"index": 0} == same | {"index": 0}
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert both["vbon"][1]["answers"] == alone["vbon"]["answers"]


@pytest.mark.parametrize("route", BODIES)
async def test_a_stream_has_the_same_answers(route: str) -> None:
    logprobs: Any = True if route == CHATS else 0
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with chats() as (app, client):
        for model in ("vbon", "bon", "soft-bon", "speculative-rejection"):
            body = body_of(route, model, logprobs=logprobs)
            whole = (await client.post(route, json=body)).json()
            check_stream(whole, await stream(app, route, {**body, **options}))


def check_stream(whole: dict[str, Any], seen: Streamed) -> None:
    chunks = [data for _, data in seen.events if data != "[DONE]"]
    texts, ends, tokens = [""] * N, [None] * N, [0] * N
    for chunk in chunks:
        for choice in chunk["choices"]:
            at = choice["index"]
            assert ends[at] is None
            texts[at] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
            ends[at] = choice["finish_reason"]
            listed = choice["logprobs"] or {}
            tokens[at] += len(listed.get("tokens", listed.get("content", ())))
    assert texts == [text_of(choice) for choice in whole["choices"]]
    assert ends == [choice["finish_reason"] for choice in whole["choices"]]
    assert sum(tokens) == whole["usage"]["completion_tokens"]
    assert chunks[-1]["usage"] == whole["usage"]
    reports = [chunk["vbon"] for chunk in chunks if "vbon" in chunk]
    assert [report["answers"] for report in reports] == [whole["vbon"]["answers"]]


async def test_a_default_number_of_candidates_is_raised_to_the_answers() -> None:
    async with chats(default_n=2) as (_, client):
        body = body_of(COMPLETIONS, "bon", best_of=None, n=5)
        answer = (await client.post(COMPLETIONS, json=body)).json()
    assert (len(answer["choices"]), answer["vbon"]["sampling"]["n"]) == (5, 5)


async def test_modes_that_stop_early_keep_enough_for_the_answers() -> None:
    async with chats() as (_, client):
        body = body_of(COMPLETIONS, "speculative-rejection", n=6, max_tokens=64)
        kept = (await client.post(COMPLETIONS, json=body)).json()
        body = body_of(COMPLETIONS, "adaptive-bon", n=6, stop_at_reward=-1000)
        drawn = (await client.post(COMPLETIONS, json=body)).json()
        body = body_of(COMPLETIONS, "adaptive-bon", n=6, max_n=5)
        refused = await client.post(COMPLETIONS, json=body)
    assert (len(kept["choices"]), kept["vbon"]["strategy"]["keep"]) == (6, 6)
    assert (len(drawn["choices"]), drawn["vbon"]["strategy"]["min_n"]) == (6, 6)
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "max_n")


async def test_answers_that_could_not_be_scored_come_last() -> None:
    class Picky(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            return [
                None if "good" in one.completion else score_text(one.completion) for one in items
            ]

    async with chats(reward=Picky()) as (_, client):
        answer = (await client.post(COMPLETIONS, json=body_of(COMPLETIONS, "bon", n=8))).json()
    rewards = [one["reward"] for one in answer["vbon"]["answers"]]
    scored = [reward for reward in rewards if reward is not None]
    assert 0 < len(scored) < 8
    assert rewards == sorted(scored, reverse=True) + [None] * (8 - len(scored))


async def test_samples_are_counted_by_admission() -> None:
    """Two requests of three samples do not fit beside each other into four places."""
    engines = {"ref": ChatEngine("ref", seconds_per_token=0.01, endless=True)}
    runtime = make_runtime(engines=engines, limits={"running_sequences": 4, "waiting_sequences": 0})
    async with serving(runtime) as (_, client):
        import asyncio

        first, second = await asyncio.gather(
            *(client.post(COMPLETIONS, json=body_of(COMPLETIONS, "ref")) for _ in range(2))
        )
    assert sorted([first.status_code, second.status_code]) == [200, 429]


async def test_the_official_client_gets_n_choices() -> None:
    engines = {"ref": ChatEngine("ref"), "vbon": ChatEngine("vbon")}
    async with (
        on_a_port(make_runtime(engines=engines)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        messages: Any = BODIES[CHATS]["messages"]
        for model in ("bon", "vbon"):
            found = await client.chat.completions.create(
                model=model, messages=messages, n=2, max_tokens=5
            )
            assert [choice.index for choice in found.choices] == [0, 1]
