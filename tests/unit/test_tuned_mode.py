"""Mode `tuned`: the setting that `vbon tune` writes into serve.toml."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import httpx
import pytest

from service.settings import ServiceSettings
from tests.unit.fakes import make_runtime, serving
from vbon.errors import InvalidInputError

TUNED = {
    "mode": "soft-bon",
    "policy": "vbon",
    "n": 3,
    "top_p": 0.5,
    "temperature": 0.5,
    "max_tokens": 5,
    "settings": {"reward_temperature": 0.25},
}
BODY = {"prompt": "the film was", "seed": 1}


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    async with serving(make_runtime(tuned=TUNED, default_mode="tuned")) as (_, client):
        yield client


async def test_a_request_that_sets_nothing_gets_the_tuned_setting(
    client: httpx.AsyncClient,
) -> None:
    answer = (await client.post("/generate", json=BODY)).json()
    explicit = await client.post(
        "/generate?mode=soft-bon&policy=vbon",
        json={
            **BODY,
            "n": 3,
            "top_p": 0.5,
            "temperature": 0.5,
            "max_tokens": 5,
            **TUNED["settings"],
        },  # type: ignore[dict-item]
    )
    assert answer["mode"] == "tuned"
    for name in ("text", "sampling", "strategy", "policy", "selected_index"):
        assert answer[name] == explicit.json()[name]
    assert answer["sampling"]["n"] == 3
    assert answer["sampling"]["max_tokens"] == 5


async def test_what_a_request_sends_wins(client: httpx.AsyncClient) -> None:
    sent = {"n": 2, "top_p": 1.0, "max_tokens": 4, "reward_temperature": 2.0}
    answer = (await client.post("/generate?mode=tuned&policy=ref", json={**BODY, **sent})).json()
    assert (answer["sampling"]["n"], answer["sampling"]["top_p"]) == (2, 1.0)
    assert (answer["sampling"]["max_tokens"], answer["sampling"]["temperature"]) == (4, 0.5)
    assert answer["strategy"]["reward_temperature"] == 2.0
    assert answer["policy"]["name"] == "ref"


async def test_openai_clients_get_it_too(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/v1/completions", json={**BODY, "model": "tuned"})).json()
    native = (await client.post("/generate", json=BODY)).json()
    assert answer["choices"][0]["text"] == native["text"]


async def test_other_modes_keep_their_defaults_and_it_is_listed(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/generate?mode=soft-bon", json=BODY)).json()
    assert (answer["sampling"]["n"], answer["sampling"]["top_p"]) == (16, 1.0)
    assert answer["strategy"]["reward_temperature"] == 1.0
    modes = {mode["name"]: mode for mode in (await client.get("/modes")).json()["modes"]}
    assert modes["tuned"]["default_n"] == 3
    assert modes["tuned"]["policy"]["name"] == "vbon"
    assert modes["tuned"]["settings"]["reward_temperature"] == 0.25


def test_a_policy_can_be_tuned_and_one_that_is_not_served_is_waited_for() -> None:
    single = make_runtime(tuned={"mode": "vbon"})
    assert single.mode("tuned").policy == "vbon"
    assert not single.mode("tuned").strategy.reranks
    later = make_runtime(
        tuned={"mode": "next"}, policies={"ref": "a", "next": "b"}, expected=["next"]
    )
    assert "tuned" not in later.modes


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        ({"mode": "best"}, "names 'best'"),
        ({"mode": "bon", "policy": "other"}, "names 'other'"),
        ({"mode": "bon", "settings": {"reg_strength": 1}}, "does not take reg_strength"),
    ],
)
def test_a_tuned_setting_that_cannot_be_served_stops_the_start(
    tuned: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        make_runtime(tuned=tuned)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tuned": {"n": 3}}, "no mode"),
        ({"tuned": {"mode": "bon", "n": 999}}, "limits.max_n 128"),
        ({"tuned": {"mode": "bon", "max_tokens": 9999}}, "limits.max_tokens 4096"),
        ({"tuned": {"mode": "auto"}}, "name a strategy or a policy"),
        ({"tuned": {"mode": "bon"}, "policies": {"ref": "a", "tuned": "b"}}, "rename the policy"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        ServiceSettings(**settings)  # type: ignore[arg-type]
