"""Reward models that are Python functions or remote scorers, and the texts that models score."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import traceback
from pathlib import Path

import httpx
import pytest

from tests.unit.scorer_imitation import scoring
from vbon.errors import CheckpointError, RewardError
from vbon.prompts import Prompt, encode_prompt, render_for_reward
from vbon.rewards import Scorable, open_reward_model
from vbon.rewards.remote import RemoteReward

ITEMS = [Scorable(Prompt(text="p"), text) for text in ("a", "bb", "ccc")]


@pytest.fixture
def callables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def length(prompts, completions):\n    return [len(c) for c in completions]\n"
        "def short(prompts, completions):\n    return [1.0]\n"
        "def words(prompts, completions):\n    return ['good'] * len(completions)\n"
        "def holes(prompts, completions):\n    return [None, float('nan'), 2]\n"
        "def broken(prompts, completions):\n    raise KeyError('x')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("callables")
def test_a_callable_scores_and_has_no_score_for_nan() -> None:
    for name, expected in (("length", [1.0, 2.0, 3.0]), ("holes", [None, None, 2.0])):
        model = open_reward_model(f"python:my_rewards:{name}")
        model.load()
        assert model.score(ITEMS) == expected


@pytest.mark.usefixtures("callables")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", "1 scores for 3"),
        ("words", "of type str, which is not a number"),
        ("broken", "KeyError"),
    ],
)
def test_a_callable_that_misbehaves_is_named(name: str, words: str) -> None:
    model = open_reward_model(f"python:my_rewards:{name}")
    model.load()
    with pytest.raises(RewardError, match=words):
        model.score(ITEMS)


@pytest.mark.usefixtures("callables")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("python:my_rewards:none", "cannot import"),
        ("python:no_such_module:f", "cannot import"),
        ("python:my_rewards:number", "int, not callable"),
        ("python:my_rewards", "package.module:function"),
    ],
)
def test_a_callable_that_is_not_there_is_named(spec: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_reward_model(spec).load()


def remote(answer: httpx.Response) -> RemoteReward:
    return RemoteReward("http://scorer/score", transport=httpx.MockTransport(lambda _: answer))


def test_a_remote_scorer_is_asked_in_batches() -> None:
    sizes = []

    def handler(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        sizes.append(len(body["completions"]))
        assert body["prompts"] == ["p"] * sizes[-1]
        return httpx.Response(200, json={"rewards": [len(c) for c in body["completions"]]})

    model = RemoteReward("http://x", batch_size=2, transport=httpx.MockTransport(handler))
    assert model.score(ITEMS) == [1.0, 2.0, 3.0]
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(500), "500"),
        (httpx.Response(200, text="rubbish"), "failed"),
        (httpx.Response(200, json={"scores": [1, 2, 3]}), "without a list `rewards`"),
        (httpx.Response(200, json={"rewards": [1, 2]}), "2 scores for 3"),
        (httpx.Response(200, json=[1, 2, 3]), "without a list"),
    ],
)
def test_a_remote_scorer_that_misbehaves_is_named(answer: httpx.Response, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        remote(answer).score(ITEMS)


def test_a_remote_scorer_that_is_too_deep_is_named() -> None:
    with pytest.raises(RewardError, match="failed"):
        remote(httpx.Response(200, text="[" * 10**6)).score(ITEMS)


@pytest.mark.parametrize("fault", ["drip", "drip-head", "hang"])
async def test_the_limit_of_a_remote_call_holds_whatever_trickles_in(fault: str) -> None:
    async with scoring(fault) as server:
        server.drip_s = 0.05
        model = RemoteReward(server.url, timeout_s=0.3)
        begun = time.monotonic()
        with pytest.raises(RewardError, match=r"within 0\.3 s"):
            await asyncio.wait_for(asyncio.to_thread(model.score, ITEMS), 30)
        assert time.monotonic() - begun < 20  # what trickles in has no end
        server.fault = ""
        assert await asyncio.to_thread(model.score, ITEMS) == [0.1, 0.2, 0.3]
        model.close()


@pytest.mark.parametrize(("fault", "words"), [("huge", "more than"), ("gzip", "compressed")])
async def test_a_remote_answer_is_bounded_and_not_unpacked(fault: str, words: str) -> None:
    async with scoring(fault) as server:
        model = RemoteReward(server.url, timeout_s=5)
        with pytest.raises(RewardError, match=words):
            await asyncio.to_thread(model.score, ITEMS)
        assert server.sent < 2**25
        model.close()


async def test_a_remote_call_under_way_ends_when_it_is_interrupted_and_its_thread_when_closed() -> (
    None
):
    others = set(threading.enumerate())
    async with scoring("hang") as server:
        model = RemoteReward(server.url, timeout_s=60)
        calling = asyncio.create_task(asyncio.to_thread(model.score, ITEMS))
        while not server.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        model.interrupt()
        with pytest.raises(RewardError, match="was cancelled"):
            await asyncio.wait_for(calling, 30)
        model.close()
        model.close()
        with pytest.raises(RewardError, match="closed"):
            model.score(ITEMS)
    started = set(threading.enumerate()) - others
    assert "remote-reward" not in {thread.name for thread in started}


def test_a_remote_null_means_no_score() -> None:
    assert remote(httpx.Response(200, json={"rewards": [1, None, 3]})).score(ITEMS) == [1, None, 3]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://me:s3cret@scorer/score", "must not contain a user"),
        ("http://s3cret@scorer/score", "must not contain a user"),
        ("http://scorer/score?key=s3cret", "must not contain a user, password, query"),
        ("http://me:12#s3cret@scorer/score", "or fragment"),
        ("http://scorer:s3cret/score", "must have the form http://host"),
        ("http://me:s3#cret@s3cret/score", "must have the form http://host"),
        ("http:///s3cret", "must have the form http://host"),
        ("http://scorer:99999/s3cret", "must have the form http://host"),
    ],
)
def test_a_remote_scorer_has_a_plain_url_and_another_is_not_repeated(url: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        open_reward_model(url)
    assert "s3" not in "".join(traceback.format_exception(caught.value))


class Tokenizer:
    """A minimal tokenizer for rendering, with a chat template that writes its own BOS."""

    chat_template = "yes"
    bos_token = "<s>"

    def apply_chat_template(self, turns, *, tokenize, add_generation_prompt):  # type: ignore[no-untyped-def]
        assert not tokenize
        text = "<s><s>" + "".join(f"[{t['role']}]{t['content']}" for t in turns)
        return text + ("[assistant]" if add_generation_prompt else "")

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}


def test_a_policy_with_a_template_sees_a_generation_prompt_and_no_second_bos() -> None:
    chat = Prompt(messages=({"role": "user", "content": "hi"},))
    assert encode_prompt(Tokenizer(), chat) == [ord(c) for c in "<s><s>[user]hi[assistant]"]
    assert encode_prompt(Tokenizer(), Prompt(text="hi")) == [1, ord("h"), ord("i")]


def test_a_reward_model_with_a_template_sees_a_finished_conversation_with_one_bos() -> None:
    chat = Prompt(messages=({"role": "system", "content": "s"}, {"role": "user", "content": "q"}))
    text, add_special = render_for_reward(Tokenizer(), chat, "a")
    assert (text, add_special) == ("<s>[system]s[user]q[assistant]a", False)
    text, _ = render_for_reward(Tokenizer(), Prompt(text="q"), "a")
    assert text == "<s>[user]q[assistant]a"


def test_without_a_template_a_reward_model_sees_one_text() -> None:
    plain = Tokenizer()
    plain.chat_template = ""
    assert render_for_reward(plain, Prompt(text="q"), " a") == ("q a", True)


@pytest.mark.parametrize("status", [400, 403, 422, 500, 503])
@pytest.mark.parametrize("quotes", [True, False])
def test_what_a_scorer_says_is_quoted_only_to_the_one_whose_texts_it_has(
    status: int, quotes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The service scores texts of several callers in one batch; a command has one."""

    def echo(request: httpx.Request) -> httpx.Response:
        bad = b"secret" in request.content
        return httpx.Response(status, content=request.content) if bad else right

    right = httpx.Response(200, json={"rewards": [1.0]})
    model = RemoteReward(
        "http://x", batch_size=2, quotes_server=quotes, transport=httpx.MockTransport(echo)
    )
    secret, other = (Scorable(Prompt(text=text), "x") for text in ("a secret", "b"))
    with pytest.raises(RewardError) as failed:
        model.score([secret, secret])
    assert f"HTTP {status}" in str(failed.value)
    assert ("secret" in str(failed.value)) == quotes
    assert quotes or failed.value.__cause__ is None
    if not quotes:  # where one of a batch fails, its reason is logged
        with contextlib.suppress(RewardError):
            assert model.score([secret, other]) == [None, 1.0]
        assert "secret" not in caplog.text


def test_the_service_quotes_no_scorer() -> None:
    from service.runtime.build import RuntimeBuilder
    from service.settings import ServiceSettings

    builder = RuntimeBuilder(ServiceSettings(reward="http://127.0.0.1:9/score"))
    model = builder.scorer("reward")._model
    assert isinstance(model, RemoteReward)
    assert not model._quotes_server
    model.close()
