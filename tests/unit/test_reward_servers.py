"""Reward servers of other projects: found by their answers, checked at the start, and scored raw."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest

from tests.unit.reward_servers import (
    LONGEST,
    MODEL,
    InfinityServer,
    OpenRlhfServer,
    OwnServer,
    RewardServer,
    TeiServer,
    VllmServer,
    raw_score,
    rendered,
    serving,
)
from vbon.errors import CheckpointError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import Scorable
from vbon.rewards.remote import RemoteReward

CHAT = Prompt(messages=({"role": "system", "content": "s"}, {"role": "user", "content": "q"}))
ITEMS = [
    Scorable(Prompt(text="the film"), " was good"),
    Scorable(Prompt(text="a play"), " that is dull"),
    Scorable(Prompt(text="the film"), ""),
    Scorable(CHAT, "hello"),
    Scorable(Prompt(text="a play"), " 😀"),
]
SERVERS: dict[str, tuple[RewardServer, str, str]] = {
    "own": (OwnServer(), "/score", "vbon"),
    "openrlhf": (OpenRlhfServer(), "/get_reward", "OpenRLHF"),
    "vllm-classify": (VllmServer(), "/classify", "vLLM"),
    "vllm-pooling": (VllmServer(paths=("pooling",)), "/pooling", "vLLM"),
    "vllm-score": (VllmServer(paths=("score",)), "/score", "vLLM"),
    "vllm-rerank": (VllmServer(paths=("rerank",)), "/rerank", "vLLM"),
    "vllm-by-token": (VllmServer(paths=("pooling",), by_token=True), "/pooling", "vLLM"),
    "tei-rerank": (TeiServer(), "/rerank", "text-embeddings-inference"),
    "tei-predict": (TeiServer(reranks=False), "/predict", "text-embeddings-inference"),
    "infinity-classify": (InfinityServer(), "/classify", "Infinity"),
    "infinity-rerank": (InfinityServer(path="rerank"), "/rerank", "Infinity"),
}


async def scored(url: str, items: list[Scorable] = ITEMS) -> list[float | None]:
    model = RemoteReward(url)
    try:
        await asyncio.to_thread(model.load)
        return await asyncio.to_thread(model.score, items)
    finally:
        await asyncio.to_thread(model.close)


async def refusal(url: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        await scored(url)
    return str(caught.value)


@pytest.mark.parametrize("address", ["named", "/", ""])
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_is_found_and_its_raw_scores_are_read(
    kind: str, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    server, path, title = SERVERS[kind]
    async with serving(server):
        with caplog.at_level(logging.INFO, logger="vbon.rewards"):
            found = await scored(server.url + (path if address == "named" else address))
    expected = [raw_score(item.prompt.key + item.completion) for item in ITEMS]
    assert found == pytest.approx(expected, abs=1e-9)
    [words] = [m for m in caplog.messages if "is a reward server" in m]
    assert title in words
    assert path in words
    assert "one output" in words
    assert ("raw scores" in words) == (kind not in ("own", "openrlhf"))
    assert (MODEL in words) == kind.startswith(("vllm", "infinity"))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("path", ["classify", "pooling"])
async def test_a_chat_template_of_the_server_is_used_for_chats_and_texts(path: str) -> None:
    async with serving(VllmServer(paths=(path,), template=True)) as server:
        found = await scored(server.url)
    expected = [raw_score(rendered(item.prompt, item.completion)) for item in ITEMS]
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("path", ["classify", "pooling"])
@pytest.mark.parametrize(
    ("special", "begins", "shown", "around"),
    [
        (("", ""), False, True, ("", "")),  # a tokenizer without special tokens
        (("^", "$"), False, True, ("^", "$")),  # [CLS] and [SEP], which the template leaves out
        (("^", ""), False, True, ("^", "")),  # BOS, which the template leaves out
        (("^", ""), True, True, ("^", "")),  # BOS, which the template writes
        (("^", "$"), False, False, ("", "")),  # nobody knows
    ],
)
async def test_special_tokens_around_a_chat_are_those_that_a_classifier_here_adds(
    path: str, special: tuple[str, str], begins: bool, shown: bool, around: tuple[str, str]
) -> None:
    kind = VllmServer(
        paths=(path,), template=True, special=special, begins=begins, shows_tokens=shown
    )
    async with serving(kind) as server:
        found = await scored(server.url)
    first, last = around
    texts = [first + rendered(item.prompt, item.completion) + last for item in ITEMS]
    assert found == pytest.approx([raw_score(text) for text in texts], abs=1e-9)


@pytest.mark.parametrize(
    "server",
    [
        VllmServer(outputs=2),
        VllmServer(outputs=384, paths=("pooling",)),
        VllmServer(outputs=3, paths=("pooling",), by_token=True),
        TeiServer(outputs=2, reranks=False),
        InfinityServer(outputs=2),
    ],
)
async def test_a_model_with_several_outputs_is_refused_at_the_start(server: RewardServer) -> None:
    async with serving(server):
        words = await refusal(server.url)
    assert f"answers {server.outputs} numbers for each text" in words
    assert "exactly one output" in words


@pytest.mark.parametrize(
    ("activates", "warned"), [("asked", False), ("never", False), ("always", True)]
)
async def test_a_scale_that_may_be_of_probabilities_is_said(
    activates: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(VllmServer(activates=activates)) as server:
        with caplog.at_level(logging.INFO, logger="vbon.rewards"):
            await scored(f"{server.url}/classify")
    assert ("may be probabilities" in caplog.text) == warned
    assert ("scores between 0 and 1" in caplog.text) == warned


async def test_a_server_that_is_none_is_refused_with_what_was_tried() -> None:
    class Other(RewardServer):
        def routes(self):  # type: ignore[no-untyped-def, override]
            return {"/v1/completions": lambda body: {"choices": []}}

    async with serving(Other()) as server:
        for address in ("", "/v1/completions", "/classify"):
            words = await refusal(server.url + address)
            assert "answers in no known format" in words
            for path in ("score", "get_reward", "classify", "pooling", "rerank", "predict"):
                assert f"/{path}" in words


@pytest.mark.parametrize("status", [401, 403])
async def test_a_server_that_wants_credentials_says_so(status: int) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json={"error": "no key"}))
    model = RemoteReward("http://scorer", transport=transport)
    with pytest.raises(CheckpointError, match=f"HTTP {status} .*no key.*let a proxy add"):
        await asyncio.to_thread(model.load)
    await asyncio.to_thread(model.close)


async def test_a_server_that_starts_later_is_found_with_the_first_texts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    up = False

    def answer(request: httpx.Request) -> httpx.Response:
        if not up:
            raise httpx.ConnectError("connection refused")
        if request.url.path != "/get_reward":
            return httpx.Response(404)
        return httpx.Response(200, json={"rewards": [0.5] * len(request_texts(request))})

    def request_texts(request: httpx.Request) -> list[str]:
        import json

        return list(json.loads(request.content)["query"])

    model = RemoteReward("http://scorer", transport=httpx.MockTransport(answer))
    await asyncio.to_thread(model.load)
    assert "connection refused; it is asked again with the first texts" in caplog.text
    with pytest.raises(RewardError, match="connection refused"):
        await asyncio.to_thread(model.score, ITEMS)
    up = True
    assert await asyncio.to_thread(model.score, ITEMS) == [0.5] * len(ITEMS)
    await asyncio.to_thread(model.close)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_a_server_that_is_still_loading_is_asked_again(status: int) -> None:
    answers = [httpx.Response(status)]

    def answer(request: httpx.Request) -> httpx.Response:
        return answers.pop() if answers else httpx.Response(200, json={"rewards": [1.0, 2.0]})

    model = RemoteReward("http://scorer/score", transport=httpx.MockTransport(answer))
    await asyncio.to_thread(model.load)
    assert await asyncio.to_thread(model.score, ITEMS[:2]) == [1.0, 2.0]
    await asyncio.to_thread(model.close)


@pytest.mark.parametrize("template", [False, True])
async def test_a_text_that_is_too_long_for_the_server_has_no_score(template: bool) -> None:
    async with serving(VllmServer(template=template)) as server:
        texts = [" good", " x" * LONGEST, " bad", " fair"]
        found = await scored(server.url, [Scorable(Prompt(text="p"), text) for text in texts])
    assert [score is None for score in found] == [False, True, False, False]


@pytest.mark.parametrize("server", [TeiServer(), TeiServer(reranks=False)])
async def test_a_batch_has_no_more_texts_than_the_server_takes(server: TeiServer) -> None:
    items = [Scorable(Prompt(text="p"), " a" * i) for i in range(70)]
    async with serving(server):
        found = await scored(server.url, items)
    assert found == pytest.approx([raw_score("p" + " a" * i) for i in range(70)], abs=1e-9)
    assert server.sizes[-3:] == [32, 32, 6]


async def test_a_reranker_gets_the_completions_of_each_prompt_together() -> None:
    async with serving(VllmServer(paths=("rerank",))) as server:
        await scored(f"{server.url}/rerank")
    batches = [(body["query"], body["documents"]) for body in server.bodies[-3:]]
    assert sorted(batches) == [
        ("a play", [" that is dull", " 😀"]),
        ("system: s\nuser: q", ["hello"]),
        ("the film", [" was good", ""]),
    ]


@pytest.mark.parametrize(
    "results",
    [
        [{"index": 0, "score": 1.0}, {"index": 0, "score": 2.0}],
        [{"index": 0, "score": 1.0}, {"index": 2, "score": 2.0}],
        [{"index": 0, "score": 1.0}],
        [{"index": 0}, {"index": 1}],
        [{"score": 1.0}, {"score": 2.0}],
        [{"index": 0, "score": "high"}, {"index": 1, "score": 2.0}],
    ],
)
async def test_an_answer_that_does_not_fit_the_texts_is_no_known_format(results: object) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=results)

    model = RemoteReward("http://scorer/rerank", transport=httpx.MockTransport(answer))
    with pytest.raises(CheckpointError, match="no known format"):
        await asyncio.to_thread(model.load)
    await asyncio.to_thread(model.close)
