"""API keys checked by the real application."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.auth import watch
from service.auth.keys import new_key, read_keys, write_keys
from service.auth.middleware import warn_if_open
from service.settings import AuthSettings
from tests.unit.fakes import make_runtime, serving
from tests.unit.rolling import SpeakerBuilder
from vbon.errors import DataError

BODY: dict[str, Any] = {"prompt": "the film was", "n": 2, "max_tokens": 4}


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """Tokens by name, for the keys in ``keys.jsonl``."""
    pairs = [new_key("ann"), new_key("root", "admin")]
    write_keys(tmp_path / "keys.jsonl", [key for key, _ in pairs])
    return {key.name: token for key, token in pairs}


def auth(tmp_path: Path, **more: object) -> dict[str, object]:
    return {"keys_file": str(tmp_path / "keys.jsonl"), **more}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def with_admin_route(app: FastAPI) -> None:
    @app.post("/admin/echo")
    async def echo() -> dict[str, str]:
        return {"said": "yes"}


async def test_every_route_but_the_probes_needs_a_key(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    async with serving(make_runtime(auth=auth(tmp_path))) as (app, client):
        operations = [
            (path, method) for path, methods in app.openapi()["paths"].items() for method in methods
        ]
        assert len(operations) >= 10
        for path, method in [*operations, ("/openapi.json", "get")]:
            response = await client.request(method, path.replace("{model}", "bon"))
            expected = 200 if path in {"/healthz", "/readyz", "/health"} else 401
            assert response.status_code == expected, (method, path)
        assert (await client.get("/nowhere")).status_code == 401
        for path in ("/modes", "/v1/models", "/metrics", "/openapi.json"):
            response = await client.get(path, headers=bearer(tokens["ann"]))
            assert response.status_code == 200, path
        answered = await client.post("/generate", json=BODY, headers=bearer(tokens["ann"]))
        assert answered.status_code == 200


async def test_a_refusal_has_the_shape_of_errors_and_says_what_to_send(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    wrong = tokens["ann"][:-1] + ("a" if tokens["ann"][-1] != "a" else "b")
    cases = [
        {},
        bearer(wrong),
        bearer(""),
        {"authorization": f"Basic {tokens['ann']}"},
        {"authorization": tokens["ann"]},
    ]
    async with serving(make_runtime(auth=auth(tmp_path))) as (_, client):
        for headers in cases:
            response = await client.post("/generate", json=BODY, headers=headers)
            error = response.json()["error"]
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == 'Bearer realm="vbon"'
            assert (error["type"], error["code"]) == ("unauthorized", "invalid_api_key")
            assert error["request_id"] == response.headers["x-request-id"]
            assert not any(value and value in response.text for value in headers.values())
        twice = [("authorization", f"Bearer {tokens['ann']}"), ("authorization", "Bearer x")]
        assert (await client.get("/modes", headers=twice)).status_code == 401


async def test_a_body_is_not_read_for_who_may_not_come_in(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    app = create_app(make_runtime(auth=auth(tmp_path)))
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer nonsense")],
    }
    await app(scope, receive, send)
    assert statuses[0] == 401


async def test_the_official_client_sends_the_key_and_raises_its_own_error(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    async with serving(make_runtime(auth=auth(tmp_path))) as (app, _):

        def client(token: str) -> openai.AsyncOpenAI:
            transport = httpx.ASGITransport(app=app)
            return openai.AsyncOpenAI(
                api_key=token,
                base_url="http://test/v1",
                max_retries=0,
                http_client=httpx.AsyncClient(transport=transport),
            )

        done = await client(tokens["ann"]).completions.create(model="vbon", prompt="the film was")
        assert done.choices[0].text
        with pytest.raises(openai.AuthenticationError) as caught:
            await client("none").models.list()
        assert caught.value.code == "invalid_api_key"


async def test_admin_routes_take_only_admins_keys(tmp_path: Path, tokens: dict[str, str]) -> None:
    async with serving(make_runtime(auth=auth(tmp_path))) as (app, client):
        with_admin_route(app)
        nobody = await client.post("/admin/echo")
        user = await client.post("/admin/echo", headers=bearer(tokens["ann"]))
        admin = await client.post("/admin/echo", headers=bearer(tokens["root"]))
    assert (nobody.status_code, user.status_code, admin.status_code) == (401, 403, 200)
    assert user.json()["error"]["type"] == "forbidden"


async def test_without_keys_all_is_open_but_admin() -> None:
    async with serving(make_runtime()) as (app, client):
        with_admin_route(app)
        assert (await client.post("/generate", json=BODY)).status_code == 200
        assert (await client.get("/metrics")).status_code == 200
        refused = await client.post("/admin/echo")
    assert refused.status_code == 403
    assert "--auth.keys-file" in refused.json()["error"]["message"]
    assert "vbon keys add root --role admin" in refused.json()["error"]["message"]


async def test_a_rollout_that_nobody_can_use_is_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without keys, /distil is closed as /admin is, also to programs of the same machine."""
    distil: Any = {"dir": str(tmp_path / "kept"), "policy": "live"}
    runtime = make_runtime(store=str(tmp_path / "runs.db"), distil=distil)
    async with serving(runtime, rebuild=SpeakerBuilder()) as (_, client):
        for path in ("/distil", "/distil/checkpoints", "/distil/progress"):
            refused = await client.get(path)
            assert refused.status_code == 403
            assert "this server has no keys" in refused.json()["error"]["message"]
    (told,) = [one.message for one in caplog.records if "distil.policy is set" in one.message]
    assert "vbon keys add root --role admin" in told


async def test_metrics_may_be_open_where_the_rest_is_not(
    tmp_path: Path, tokens: dict[str, str]
) -> None:
    async with serving(make_runtime(auth=auth(tmp_path, open_metrics=True))) as (_, client):
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/modes")).status_code == 401


def test_a_server_with_a_bad_keys_file_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keys add"):
        create_app(make_runtime(auth=auth(tmp_path)))


@pytest.mark.parametrize(
    ("host", "keys_file", "warns"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("10.0.0.3", None, True),
        ("box", None, True),
        ("0.0.0.0", "keys.jsonl", False),
    ],
)
def test_an_open_server_that_others_reach_is_warned_of(
    host: str, keys_file: str | None, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_if_open(host, AuthSettings(keys_file=keys_file))
    assert bool(caplog.records) == warns


async def test_a_running_service_follows_its_keys_file(
    tmp_path: Path, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_AGAIN_S", 0.001)
    file = tmp_path / "keys.jsonl"
    async with serving(make_runtime(auth=auth(tmp_path))) as (_, client):
        write_keys(file, [key for key in read_keys(file) if key.name != "ann"])
        async with asyncio.timeout(30):
            while True:
                response = await client.get("/modes", headers=bearer(tokens["ann"]))
                if response.status_code == 401:
                    break
                await asyncio.sleep(0.001)  # the client in this process never waits by itself
        assert (await client.get("/modes", headers=bearer(tokens["root"]))).status_code == 200
