"""Clients that ask at the wrong address are told the right one; gateways and proxies are served."""

from __future__ import annotations

import openai
import pytest
from fastapi.routing import APIRoute

from tests.unit.fakes import make_runtime, on_a_port, serving

PROXIED = "https://vbon.example"


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/chat/completions", "set the base_url of the client to http://HOST:PORT/v1"),
        ("POST", "/completions", "below /v1"),
        ("GET", "/models", "below /v1"),
        ("POST", "/openai/chat/completions", "below /v1"),
        ("POST", "/v1/v1/chat/completions", "ends in /v1 twice"),
        ("POST", "/v1/responses", "no Responses API; use /v1/chat/completions"),
        ("GET", "/v1/responses/resp_1", "no Responses API"),
        ("POST", "/v1/embeddings", "is /v1/completions, /v1/chat/completions and /v1/models"),
        ("GET", "/v1", "is /v1/completions, /v1/chat/completions and /v1/models"),
        ("POST", "/v1/chat/completions/", "is /v1/completions, /v1/chat/completions and"),
        ("POST", "/score", "at POST /v1/score"),
        ("POST", "/v1/rerank", "at POST /v1/score"),
        ("POST", "/get_reward", "at POST /v1/score"),
        ("GET", "/nothing", "there is nothing at /nothing"),
    ],
)
async def test_a_wrong_address_is_answered_with_the_right_one(
    method: str, path: str, words: str
) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.request(method, path, json={} if method == "POST" else None)
    assert response.status_code == 404
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "not_found"


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", ""])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/score", "/generate"])
async def test_a_body_of_another_type_is_answered_with_the_header(
    path: str, content_type: str
) -> None:
    async with serving(make_runtime()) as (_, client):
        headers = {"content-type": content_type}
        response = await client.post(path, content=b'{"prompt": "secret"}', headers=headers)
    assert response.status_code == 422
    error = response.json()["error"]
    assert error["message"] == (
        "the body was not read as JSON; send the header content-type: application/json"
    )
    assert error["param"] == "body"


async def test_the_official_client_shows_the_hint() -> None:
    async with on_a_port(make_runtime()) as url:
        wrong = url.removesuffix("/v1")
        async with openai.AsyncOpenAI(base_url=wrong, api_key="none", max_retries=0) as client:
            with pytest.raises(openai.NotFoundError, match="set the base_url"):
                await client.chat.completions.create(
                    model="bon", messages=[{"role": "user", "content": "a"}]
                )
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            with pytest.raises(openai.NotFoundError, match="no Responses API"):
                await client.responses.create(model="bon", input="a")


async def test_head_asks_for_health_without_a_body() -> None:
    async with serving(make_runtime()) as (app, client):
        for path in ("/health", "/readyz", "/healthz"):
            response = await client.head(path)
            assert response.status_code == 200
            assert not response.content
            shown = [
                route.methods
                for route in app.routes
                if isinstance(route, APIRoute) and route.path == path and route.include_in_schema
            ]
            assert shown == [{"GET"}]


async def test_head_tells_that_models_are_loading() -> None:
    runtime = make_runtime()
    async with serving(runtime) as (_, client):
        runtime._loaded = False
        assert (await client.head("/health")).status_code == 503
        assert (await client.head("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": PROXIED, "sec-fetch-site": "same-origin"}, 200),
        ({"origin": PROXIED}, 200),
        ({"origin": PROXIED, "sec-fetch-site": "cross-site"}, 403),
        ({"origin": "https://evil.example", "sec-fetch-site": "same-origin"}, 403),
        ({"origin": "https://vbon.example.evil"}, 403),
        ({"origin": "http://test", "sec-fetch-site": "same-origin"}, 200),
        ({}, 200),
    ],
)
async def test_the_page_of_an_allowed_origin_posts_without_a_forwarded_host(
    headers: dict[str, str], status: int
) -> None:
    """The proxy asks for http://test, whatever host the page has."""
    body = {"prompt": "a", "sides": [{"mode": "ref"}, {"mode": "bon", "n": 2}], "max_tokens": 3}
    async with serving(make_runtime(cors_origins=[PROXIED])) as (_, client):
        allowed = await client.post("/preferences/pairs", json=body, headers=headers)
    async with serving(make_runtime()) as (_, client):
        other = await client.post("/preferences/pairs", json=body, headers=headers)
    assert allowed.status_code == status
    own = headers.get("origin") in {None, "http://test"}
    assert other.status_code == (200 if own else 403)
