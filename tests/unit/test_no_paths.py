"""No field of a request can name a file to read or an address to reach."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from tests.unit.fakes import ChatEngine, FakeReward, make_runtime, serving
from tests.unit.measured import as_json, table
from tests.unit.rolling import decision
from tests.unit.tuned_runs import report

WATCHED = {
    "open",
    "socket.connect",
    "socket.getaddrinfo",
    "os.listdir",
    "os.scandir",
    "import",
    "subprocess.Popen",
    "sqlite3.connect",
}
SECRET = "secret-of-the-host"


class _Watch:
    """Watches for files opened, hosts reached and commands run with a marker in their arguments."""

    def __init__(self) -> None:
        self.markers: tuple[str, ...] = ()
        self.seen: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.markers and event in WATCHED:
            told = repr(arguments)
            if any(marker in told for marker in self.markers):
                self.seen.append(f"{event}{told[:200]}")


_WATCH = _Watch()
sys.addaudithook(_WATCH)  # cannot be taken back, so it is idle without markers


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[_Watch]:
    (tmp_path / "marked-file.txt").write_text(SECRET, encoding="utf-8")
    _WATCH.markers, _WATCH.seen = ("marked-file", "marked-host"), []
    yield _WATCH
    _WATCH.markers = ()


def names(tmp_path: Path) -> list[str]:
    file = tmp_path / "marked-file.txt"
    return [
        str(file),
        f"file://{file}",
        f"../../../..{file}",
        f"hf://{file}",
        f"python:{file}:score",
        f"sqlite:///{file}",
        "http://marked-host.invalid:81/v1",
        "http://127.0.0.1:9/marked-host",
        "postgresql://marked-host.invalid/x",
        "hidden:marked-file.txt",
    ]


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def string_places(
    schema: dict[str, Any], document: dict[str, Any], at: tuple[str | int, ...] = ()
) -> Iterator[tuple[str | int, ...]]:
    """The places where a request may hold free text; the first item stands for a list."""
    schema = resolved(schema, document)
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from string_places(part, document, at)
    if schema.get("type") == "string" and "enum" not in schema and "const" not in schema:
        yield at
    if "items" in schema:
        yield from string_places(schema["items"], document, (*at, 0))
    for name, inner in schema.get("properties", {}).items():
        yield from string_places(inner, document, (*at, name))
    if isinstance(inner := schema.get("additionalProperties"), dict):
        yield from string_places(inner, document, (*at, "ref"))


def put(body: dict[str, Any], place: tuple[str | int, ...], value: str) -> dict[str, Any]:
    """The body with a value at one place, adding the containers that it needs."""
    made: Any = value
    for step in reversed(place[1:]):
        made = [made] if isinstance(step, int) else {step: made}
    if place[0] in {"prompts", "messages"}:
        body = {name: held for name, held in body.items() if name != "prompt"}
    if place[0] == "messages" and isinstance(made, list):
        made = [{"role": "user"} | made[0]]
    return body | {str(place[0]): made}


WITH_BODY = {"post", "put", "patch"}
BASES: dict[str, dict[str, Any]] = {
    "/generate": {"prompt": "a", "max_tokens": 2},
    "/v1/completions": {"model": "ref", "prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {
        "model": "ref",
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 2,
    },
    "/v1/score": {"prompt": "a", "completions": ["b"]},
    "/compare": {"prompts": ["a"], "max_tokens": 2, "modes": ["ref", "vbon"]},
    "/preferences/pairs": {"prompt": "a", "sides": [{"mode": "ref"}, {"mode": "vbon"}]},
    "/preferences": {"pair": "x", "winner": "tie"},
    "/admin/reload": {"model": "ref"},
    "/auto/table": as_json(table()),
    "/tune/runs/{run_id}": report(),
    "/tune/runs/{run_id}/table": as_json(table()),
    "/tune/runs/{run_id}/apply": {"settings": "measured"},
    "/distil/checkpoints": {"path": "rounds/0001/checkpoint", "decision": decision()},
    "/distil/rollback": {"to": None},
    "/distil/checkpoints/{checkpoint}/promote": {"status": "waiting"},
    "/distil/progress": {"round": "0001", "phase": "train"},
    # Refused, or each would start a load test in a process of its own.
    "/loadtests": {"modes": ["nothing"]},
    "/loadtests/{run_id}": {"name": "a", "tags": ["b"]},
}


async def test_nothing_that_a_request_names_is_opened_or_reached(
    watch: _Watch, tmp_path: Path
) -> None:
    engines = {"ref": ChatEngine("fake-ref"), "vbon": ChatEngine("fake-vbon")}
    runtime = make_runtime(gold=FakeReward(), engines=engines, store="none")
    tried: set[str] = set()
    async with serving(runtime) as (app, client):
        document = app.openapi()
        for path, route in document["paths"].items():
            for method in set(route) & WITH_BODY:
                if "requestBody" not in route[method]:
                    continue
                content = route[method]["requestBody"]["content"]["application/json"]
                for place in set(string_places(content["schema"], document)):
                    tried.add(f"{path} {'.'.join(map(str, place))}")
                    for name in names(tmp_path):
                        body = put(BASES.get(path, {}), place, name)
                        _is_harmless(await client.request(method, path, json=body), name)
            for method, operation in route.items():
                for parameter in operation.get("parameters", []):
                    tried.add(f"{path} {parameter['name']}")
                    for name in names(tmp_path):
                        await _in_parameter(client, method, path, parameter, name)
        for header in (
            "host",
            "origin",
            "referer",
            "x-forwarded-for",
            "x-request-id",
            "authorization",
        ):
            for name in names(tmp_path):
                _is_harmless(await client.get("/modes", headers={header: name}), name)
    assert watch.seen == []
    # Prompts and names of modes at least, or the walk found nothing.
    assert {
        "/generate prompt",
        "/generate mode",
        "/v1/completions model",
        "/compare modes.0",
    } <= tried
    assert len(tried) > 15


async def _in_parameter(
    client: httpx.AsyncClient, method: str, path: str, parameter: dict[str, Any], name: str
) -> None:
    params: dict[str, str] = {}
    if parameter["in"] == "query":
        params[parameter["name"]] = name
    else:
        path = path.replace(f"{{{parameter['name']}}}", name.replace("/", "%2F"))
    body = BASES.get(path) if method in WITH_BODY else None
    _is_harmless(await client.request(method.upper(), path, params=params, json=body), name)


def _is_harmless(response: httpx.Response, name: str) -> None:
    assert SECRET not in response.text
    assert response.status_code < 500 or response.status_code == 503, f"{name}: {response.text}"


def test_the_watch_sees_what_is_opened_and_reached(watch: _Watch, tmp_path: Path) -> None:
    (tmp_path / "marked-file.txt").read_text(encoding="utf-8")
    with suppress(OSError):
        socket.getaddrinfo("marked-host.invalid", 81)
    assert [what.partition("(")[0] for what in watch.seen] == ["open", "socket.getaddrinfo"]


def test_every_route_that_takes_a_body_has_a_request_to_start_from() -> None:
    paths = create_app(make_runtime()).openapi()["paths"]
    with_body = {
        path
        for path, route in paths.items()
        if any("requestBody" in route.get(method, {}) for method in WITH_BODY)
    }
    assert with_body - BASES.keys() == set(), "add a valid request of the new route to BASES"
