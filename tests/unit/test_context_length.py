"""A default max_tokens is lowered to what fits; what cannot fit is refused in the words clients look for."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from service.runtime.default_sampling import default_sampling
from service.settings import ServiceSettings
from tests.unit.fakes import ChatEngine, make_runtime, on_a_port, serving
from vbon.storage.training_record import TrainingRecord

CONTEXT = 256
SHORT, TIGHT, OVERLONG = "x" * 20, "x" * 246, "x" * 256
ROUTES = ("/generate?mode=ref", "/v1/completions", "/v1/chat/completions")


def body_of(route: str, text: str, **changes: Any) -> dict[str, Any]:
    model = {} if route.startswith("/generate") else {"model": changes.pop("model", "ref")}
    if "chat" in route:
        # The chat engine encodes "user: " too.
        return {**model, "messages": [{"role": "user", "content": text[6:]}], **changes}
    return {**model, "prompt": text, **changes}


def runtime(**settings: Any) -> Any:
    return make_runtime(
        engines={n: ChatEngine(n, endless=True) for n in ("ref", "vbon")}, **settings
    )


def read(answer: dict[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """max_tokens used, tokens returned, and the details."""
    told = answer.get("vbon", answer)
    usage = answer["usage"]
    returned = usage.get("returned_tokens", usage.get("completion_tokens"))
    return told["sampling"]["max_tokens"], returned, told["details"]


@pytest.mark.parametrize("route", ROUTES)
async def test_a_default_that_does_not_fit_is_lowered_and_the_answer_says_so(route: str) -> None:
    async with serving(runtime()) as (_, client):
        response = await client.post(route, json=body_of(route, TIGHT))
    assert response.status_code == 200, response.text
    used, returned, details = read(response.json())
    assert (used, returned) == (10, 10)  # 256 - 246
    default = 4096 if "chat" in route else 64
    assert details["max_tokens"].startswith(
        f"10 instead of the default {default}: the prompt's 246"
    )


@pytest.mark.parametrize("model", ["bon", "treebon", "speculative-rejection", "adaptive-bon"])
async def test_every_mode_lowers_it(model: str) -> None:
    async with serving(runtime()) as (_, client):
        body = body_of("/v1/completions", TIGHT, model=model, best_of=4)
        found = (await client.post("/v1/completions", json=body)).json()
    assert read(found)[:2] == (10, 10)


async def test_a_stream_lowers_it_too() -> None:
    async with serving(runtime()) as (_, client):
        body = body_of("/v1/completions", TIGHT, stream=True)
        found = await client.post("/v1/completions", json=body)
    assert '"max_tokens":"10 instead' in found.text.replace('": "', '":"')


@pytest.mark.parametrize("route", ROUTES)
async def test_what_fits_is_left_alone(route: str) -> None:
    async with serving(runtime()) as (_, client):
        found = (await client.post(route, json=body_of(route, SHORT, max_tokens=7))).json()
    assert read(found) == (7, 7, {})


async def test_a_chat_gets_what_is_left_within_the_setting() -> None:
    route = ROUTES[2]
    for settings, wanted in (({}, 236), ({"default_chat_max_tokens": 100}, 100)):
        async with serving(runtime(**settings)) as (_, client):
            chat = read((await client.post(route, json=body_of(route, SHORT))).json())
            text = read((await client.post(ROUTES[1], json=body_of(ROUTES[1], SHORT))).json())
        assert chat[:2] == (wanted, wanted)
        assert text == (64, 64, {})


CARD = TrainingRecord.model_validate({"identity": {"max_new_tokens": 40}})


@pytest.mark.parametrize(
    ("settings", "cards", "expected"),
    [
        ({}, {}, (4096, "limits.max_tokens")),
        ({"limits": {"max_tokens": 99}}, {}, (99, "limits.max_tokens")),
        ({}, {"a": CARD}, (40, "card of a")),
        ({"default_max_tokens": 50}, {"a": CARD}, (50, "setting default_max_tokens")),
        ({"default_chat_max_tokens": 70}, {"a": CARD}, (70, "setting default_chat_max_tokens")),
    ],
)
def test_a_chats_default(settings: Any, cards: Any, expected: tuple[int, str]) -> None:
    found = default_sampling(ServiceSettings(**settings), cards)
    assert (found.chat_max_tokens, found.sources["chat_max_tokens"]) == expected


def test_a_chats_default_is_within_the_limit() -> None:
    with pytest.raises(ValueError, match=r"default_chat_max_tokens 9 is over limits\.max_tokens 8"):
        ServiceSettings(default_chat_max_tokens=9, limits={"max_tokens": 8})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        (OVERLONG, {}, "the prompt has 256 tokens and max_tokens is 1: together 257"),
        (OVERLONG, {"stream": True}, "together 257, over the model's limit of 256; shorten"),
        (TIGHT, {"max_tokens": 11}, "together 257, over the model's limit of 256; shorten the "
         "prompt or lower max_tokens"),
    ],
)  # fmt: skip
async def test_what_cannot_fit_is_refused_in_the_words_clients_look_for(
    route: str, text: str, changes: dict[str, Any], words: str
) -> None:
    async with serving(runtime()) as (_, client):
        response = await client.post(route, json=body_of(route, text, **changes))
    error = response.json()["error"]
    assert response.status_code == (400 if route.startswith("/v1") else 422)
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "prompt_too_long"
    assert error["param"] == ("messages" if "chat" in route else "prompt")
    assert error["message"].startswith("This model's maximum context length is 256 tokens")
    assert words in error["message"]
    assert error["message"].endswith("(context_length_exceeded)")  # for clients that read only this


async def test_a_comparison_lowers_nothing() -> None:
    async with serving(runtime()) as (_, client):
        response = await client.post("/compare", json={"prompts": [TIGHT], "n": 2})
    assert (response.status_code, response.json()["error"]["type"]) == (422, "prompt_too_long")


async def test_the_official_client_knows_the_code() -> None:
    async with (
        on_a_port(runtime()) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="bon", prompt=OVERLONG)
    assert refused.value.code == "context_length_exceeded"
