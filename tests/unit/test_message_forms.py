"""Messages take the same forms on every route: OpenAI's parts of texts, and the dumps of its clients."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.fakes import ChatEngine, make_runtime, serving

WHOLE: list[dict[str, Any]] = [{"role": "user", "content": "the film was"}]
PARTS: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "the film", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": " was"},
        ],
    }
]
DUMPED: list[dict[str, Any]] = [
    {**WHOLE[0], "refusal": None, "annotations": [], "audio": None, "function_call": None}
]
EMPTY: list[dict[str, Any]] = [{"role": "user", "content": ""}]
NOTHING: list[dict[str, Any]] = [{"role": "user", "content": []}]

SAMPLED = {"max_tokens": 6, "seed": 3}
# Each route with a request for some messages, and the place of the messages in it.
ROUTES: dict[str, tuple[str, str]] = {
    "/v1/chat/completions": ("messages", "messages"),
    "/generate?mode=bon": ("messages", "messages"),
    "/compare": ("prompts", "prompts.0.messages"),
    "/v1/score": ("messages", "messages"),
    "/v1/score#": ("prompts", "prompts.0.messages"),
}


async def answered(route: str, *chats: list[dict[str, Any]]) -> list[Any]:
    """The response to each chat."""
    field, _ = ROUTES[route]
    engines = {"ref": ChatEngine(), "vbon": ChatEngine()}
    found = []
    async with serving(make_runtime(engines=engines)) as (_, client):
        for messages in chats:
            sent = [{"messages": messages}] if field == "prompts" else messages
            body: dict[str, Any] = {field: sent, "completions": [" good", " dull"]}
            if "score" not in route:
                body = {field: sent, **SAMPLED}
            if route.startswith("/v1/chat"):
                body["model"] = "ref"
            found.append(await client.post(route.rstrip("#"), json=body))
    return found


def told(answer: dict[str, Any]) -> Any:
    """The parts of a response that depend on the messages."""
    if "choices" in answer:
        return answer["choices"], answer["usage"]
    if "rewards" in answer:
        return answer["rewards"]
    if "prompts" in answer:
        return answer["prompts"]
    return answer["text"], answer["usage"]


@pytest.mark.parametrize("route", ROUTES)
async def test_parts_of_texts_are_the_text(route: str) -> None:
    found = await answered(route, WHOLE, PARTS, DUMPED)
    assert [one.status_code for one in found] == [200] * 3, [one.text for one in found]
    whole, parts, dumped = [told(one.json()) for one in found]
    assert parts == dumped == whole
    empty, nothing = await answered(route, EMPTY, NOTHING)
    assert nothing.status_code == empty.status_code == 200
    assert told(nothing.json()) == told(empty.json())


@pytest.mark.parametrize("route", ROUTES)
async def test_other_parts_are_refused_by_name(route: str) -> None:
    kinds = ["image_url", "input_audio", "file", "refusal", "input_text"]
    chats = [
        [{"role": "user", "content": [PARTS[0]["content"][0], {"type": kind, kind: {"url": "x"}}]}]
        for kind in kinds
    ]
    for kind, answer in zip(kinds, await answered(route, *chats), strict=True):
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (422, f"{ROUTES[route][1]}.0.content.1")
        assert f"only parts of type 'text', not '{kind}'" in error["message"]
