"""Security headers, cross-origin requests, and forms of other sites."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from fastapi import Response
from pydantic import ValidationError

from service.auth.keys import new_key, write_keys
from service.settings import ServiceSettings
from tests.unit.fakes import make_runtime, serving, stream

BODY = {"prompt": "the film was", "n": 2, "max_tokens": 4}
SITE = "https://page.example"


async def test_answers_may_not_be_guessed_framed_run_or_kept() -> None:
    async with serving(make_runtime()) as (app, client):
        responses = [
            await client.post("/generate", json=BODY),
            await client.get("/v1/models"),
            await client.get("/nowhere"),
            await client.post("/generate", json={}),
            await client.post("/generate", content=b"x" * 2_000_000),
            await client.post("/admin/x"),
        ]
        streamed = await stream(app, "/generate?mode=ref", {**BODY, "stream": True})
    assert [response.status_code for response in responses] == [200, 200, 404, 422, 413, 403]
    for headers in [*(response.headers for response in responses), streamed.headers]:
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"


async def test_a_route_s_own_policy_stays() -> None:
    async with serving(make_runtime()) as (app, client):

        @app.get("/own")
        async def own() -> Response:
            policy = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "no-cache"}
            return Response("x", headers=policy)

        headers = (await client.get("/own")).headers
    assert headers.get_list("content-security-policy") == ["default-src 'self'"]
    assert headers.get_list("cache-control") == ["no-cache"]
    assert headers["x-content-type-options"] == "nosniff"


async def test_no_other_site_may_read_anything_by_default() -> None:
    async with serving(make_runtime()) as (_, client):
        simple = await client.get("/modes", headers={"origin": SITE})
        asked = await client.options("/generate", headers=preflight())
    for response in (simple, asked):
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert asked.status_code == 405


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", None]
)
async def test_no_page_can_make_a_server_work_without_being_asked(content_type: str | None) -> None:
    headers = {"origin": SITE} | ({"content-type": content_type} if content_type else {})
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/generate", content=b'{"prompt": "a"}', headers=headers)
        curl = await client.post(
            "/generate",
            content=b'{"prompt": "a"}',
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
    assert (response.status_code, curl.status_code) == (422, 200)


async def test_only_the_sites_named_may_read_and_their_preflight_needs_no_key() -> None:
    async with serving(make_runtime(cors_origins=[SITE])) as (_, client):
        asked = await client.options("/generate", headers=preflight())
        answered = await client.post("/generate", json=BODY, headers={"origin": SITE})
        other = await client.post(
            "/generate", json=BODY, headers={"origin": "https://evil.example"}
        )
        refused = await client.options("/generate", headers=preflight("https://evil.example"))
    assert asked.status_code == 200
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert answered.headers["access-control-allow-origin"] == SITE
    assert "access-control-allow-credentials" not in answered.headers
    assert "access-control-allow-origin" not in other.headers
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", ["*", "page.example", "https://a.b/c", "javascript://x", ""])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ValidationError, match="not an origin"):
        ServiceSettings(cors_origins=[origin])


def preflight(origin: str = SITE) -> dict[str, str]:
    return {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }


OWN = (
    *("localhost", "LOCALHOST:8000", "page.localhost", "localhost."),
    *("127.0.0.1:8000", "127.8.9.1", "[::1]:80"),
)
OTHER = (
    *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("10.0.0.1", "[::2]"),
)


async def test_a_server_without_keys_is_served_only_under_its_own_names() -> None:
    """A page whose name came to resolve to this server is the same site, as far as the browser knows."""
    async with serving(make_runtime(store="none")) as (_, client):
        for host in (*OWN, *OTHER):
            await served_under(host, client, known=host in OWN)


async def served_under(host: str, client: httpx.AsyncClient, *, known: bool) -> None:
    page = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    paths = ("/", "/modes", "/metrics", "/openapi.json", "/loadtests", "/page/app.js")
    read = [(await client.get(path, headers=page)).status_code for path in paths]
    asked = await client.post("/generate", json=BODY, headers=page)
    started = await client.post("/loadtests", json={"modes": ["nothing"]}, headers=page)
    probes = [
        (await client.get(path, headers=page)).status_code
        for path in ("/healthz", "/readyz", "/health")
    ]
    assert read == [200 if known else 403] * len(paths), host
    assert (asked.status_code, started.status_code) == ((200, 422) if known else (403, 403)), host
    assert probes == [200, 200, 200], host
    if not known:
        error = asked.json()["error"]
        assert error["type"] == "forbidden", host
        assert "--hosts" in error["message"], host


async def test_a_server_knows_the_names_that_it_was_told_and_with_keys_all(tmp_path: Path) -> None:
    async def status(name: str, **settings: object) -> int:
        async with serving(make_runtime(**settings)) as (_, client):
            return (await client.get("/modes", headers={"host": name})).status_code

    assert await status("models.example:80", hosts=["Models.example"]) == 200
    assert await status("other.example", hosts=["models.example"]) == 403
    assert await status("10.1.2.3:8000", host="10.1.2.3") == 200
    key, _ = new_key("ann")
    write_keys(tmp_path / "keys.jsonl", [key])
    with_keys = {"auth": {"keys_file": str(tmp_path / "keys.jsonl")}}
    assert await status("other.example", **with_keys) == 401


@pytest.mark.parametrize("path", ["/generate/", "/modes/", "/docs/", "/v1/models/"])
async def test_no_answer_leads_to_the_host_that_a_request_names(path: str) -> None:
    async with serving(make_runtime()) as (_, client):
        for method in ("GET", "POST"):
            answer = await client.request(method, path, headers={"host": "localhost"})
            assert answer.status_code in (404, 405)
            assert "location" not in answer.headers


@pytest.mark.parametrize("host", ["*", "https://a.b", "a.b:80", "a/b", ""])
def test_what_is_no_host_is_refused_at_the_start(host: str) -> None:
    with pytest.raises(ValidationError, match="not a host"):
        ServiceSettings(hosts=[host])
