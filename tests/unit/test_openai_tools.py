"""Tools: chosen ones are constrained by their schemas; the policy's own calls need a parser."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jsonschema
import openai
import pytest

from service.generation import openai_stream
from tests.unit.fakes import ChatEngine, make_runtime, on_a_port, serving, stream
from tests.unit.test_openai_fields import SPEAKS, Spoken
from vbon.engine import Candidate, FoundCall, FoundCalls
from vbon.prompts import Prompt, encode_prompt

ROUTE = "/v1/chat/completions"
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
PLACE = {
    "type": "object",
    "properties": {"at": {"$ref": "#/$defs/At"}},
    "required": ["at"],
    "$defs": {"At": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}},
    {"type": "function", "function": {"name": "place", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip
BODY: dict[str, Any] = {
    "model": "bon",
    "messages": [{"role": "user", "content": "rain?"}],
    "tools": TOOLS,
    "best_of": 4,
    "max_tokens": 200,
    "seed": 3,
}
WEATHER = {"type": "function", "function": {"name": "weather"}}


class Calling(ChatEngine):
    """Takes each word "good" for a call of the tool weather, as a parser would."""

    @property
    def finds_calls(self) -> bool:
        return True

    async def find_calls(
        self, candidate: Candidate, tools: Sequence[Mapping[str, Any]]
    ) -> FoundCalls:
        assert [tool["function"]["name"] for tool in tools] == ["weather", "place", "now"]
        count = candidate.text.count(" good")
        call = FoundCall("weather", '{"city": "Bern"}')
        return FoundCalls((call,) * count, candidate.text.replace(" good", ""))


def chats(kind: type[ChatEngine] = ChatEngine) -> Any:
    return serving(make_runtime(engines={"ref": kind("ref"), "vbon": kind("vbon")}))


def schema_of(name: str) -> dict[str, Any]:
    return {"weather": CITY, "place": PLACE, "now": {"type": "object", "properties": {}}}[name]


@pytest.mark.parametrize("model", ["ref", "bon", "soft-bon", "speculative-rejection"])
async def test_a_named_tool_is_called_with_arguments_of_its_schema(model: str) -> None:
    async with chats() as (_, client):
        body = {**BODY, "model": model, "tool_choice": WEATHER, "return_candidates": True, "n": 2}
        answer = (await client.post(ROUTE, json=body)).json()
    for index, choice in enumerate(answer["choices"]):
        (call,) = choice["message"]["tool_calls"]
        assert choice["message"]["content"] is None
        assert (call["type"], call["function"]["name"]) == ("function", "weather")
        jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)
        assert choice["finish_reason"] == "stop"
        assert call["id"].endswith(f"_{index}_0")
    for candidate in answer["vbon"]["candidates"]:
        if candidate["finish_reason"] == "stop":
            jsonschema.validate(json.loads(candidate["text"]), CITY)


@pytest.mark.parametrize("parallel", [True, False])
async def test_required_tools_are_called(parallel: bool) -> None:
    counts = set()
    async with chats() as (_, client):
        for seed in range(8):
            body = {
                **BODY,
                "tool_choice": "required",
                "parallel_tool_calls": parallel,
                "seed": seed,
            }
            (choice,) = (await client.post(ROUTE, json={**body, "max_tokens": 240})).json()[
                "choices"
            ]
            if choice["finish_reason"] == "length":
                assert choice["message"]["tool_calls"] is None
                continue
            assert choice["finish_reason"] == "tool_calls"
            calls = choice["message"]["tool_calls"]
            counts.add(len(calls))
            assert len({call["id"] for call in calls}) == len(calls)
            for call in calls:
                function = call["function"]
                jsonschema.validate(json.loads(function["arguments"]), schema_of(function["name"]))
    assert counts == {1} if not parallel else max(counts) > 1


@pytest.mark.parametrize("model", ["ref", "bon"])
async def test_the_policys_own_calls_are_found_by_its_parser(model: str) -> None:
    async with chats(Calling) as (_, client):
        for parallel in (True, False):
            body = {**BODY, "model": model, "max_tokens": 12, "parallel_tool_calls": parallel}
            body |= {"return_candidates": True, "ignore_eos": True}
            answer = (await client.post(ROUTE, json=body)).json()
            (choice,) = answer["choices"]
            chosen = answer["vbon"]["candidates"][answer["vbon"]["selected_index"]]["text"]
            found = chosen.count(" good")
            calls = choice["message"]["tool_calls"] or []
            assert len(calls) == (found if parallel else min(found, 1))
            assert choice["message"]["content"] == chosen.replace(" good", "") or None
            assert choice["finish_reason"] == "length"


async def test_auto_without_a_parser_is_refused_and_none_uses_no_tools() -> None:
    async with chats() as (_, client):
        for changes in ({}, {"tool_choice": "auto"}, {"stream": True}):
            refused = await client.post(ROUTE, json={**BODY, **changes})
            assert refused.status_code == 422
            error = refused.json()["error"]
            assert error["param"] == "tools"
            assert "needs a parser of the calls of policy 'ref'" in error["message"]
            assert "--engine.tool-parser" in error["message"]
        plain = {key: value for key, value in BODY.items() if key != "tools"} | {"max_tokens": 9}
        unused = (
            {},
            {"tools": TOOLS, "tool_choice": "none"},
            {"tools": []},
            {"tool_choice": "auto"},
        )
        texts = [
            (await client.post(ROUTE, json=plain | changes)).json()["choices"] for changes in unused
        ]
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "snow"}}}, "names the function 'snow'"),
        ({"tools": [], "tool_choice": "required"}, "'required', but tools has none"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two tools have the same name"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"tools": [{"type": "function"}]}, "tools.0.function: Field required"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "any"}, "tool_choice: Input should be 'none', 'auto' or 'required'"),
        ({"tool_choice": WEATHER, "model": "treebon"}, "takes no response_format"),
    ],
)  # fmt: skip
async def test_tools_that_contradict_each_other_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    async with chats() as (_, client):
        response = await client.post(ROUTE, json={**BODY, **changes})
    assert response.status_code == 422
    assert words in response.json()["error"]["message"]


async def test_schemas_with_the_same_definition_share_it_and_others_are_refused() -> None:
    other = json.loads(json.dumps(PLACE).replace('"number"', '"string"'))
    named = [{"type": "function", "function": {"name": name, "parameters": schema}}
             for name, schema in (("a", PLACE), ("b", PLACE), ("c", other))]  # fmt: skip
    async with chats() as (_, client):
        same = await client.post(
            ROUTE, json={**BODY, "tools": named[:2], "tool_choice": "required"}
        )
        differing = await client.post(
            ROUTE, json={**BODY, "tools": named, "tool_choice": "required"}
        )
    assert same.status_code == 200, same.text
    assert differing.status_code == 422
    assert "define 'At' in $defs differently" in differing.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ChatEngine, {"tool_choice": WEATHER}),
        (ChatEngine, {"tool_choice": "required"}),
        (Calling, {"max_tokens": 12}),
    ],
)
@pytest.mark.parametrize("model", ["ref", "bon"])
async def test_a_stream_has_the_same_calls(
    kind: type[ChatEngine], changes: dict[str, Any], model: str
) -> None:
    body = {**BODY, "model": model, **changes}
    async with chats(kind) as (app, client):
        (choice,) = (await client.post(ROUTE, json=body)).json()["choices"]
        seen = await stream(app, ROUTE, {**body, "stream": True})
    deltas = [data["choices"][0] for _, data in seen.events if data != "[DONE]"]
    text = "".join(one["delta"].get("content") or "" for one in deltas)
    calls = [call for one in deltas for call in one["delta"].get("tool_calls", ())]
    assert text == (choice["message"]["content"] or "")
    assert [call["function"] for call in calls] == [
        call["function"] for call in choice["message"]["tool_calls"] or ()
    ]
    assert [call["index"] for call in calls] == list(range(len(calls)))
    assert deltas[-1]["finish_reason"] == choice["finish_reason"]


async def test_a_stream_that_holds_its_calls_back_keeps_the_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tokens come all the time, so it is never quiet; a comment is due after each of them here."""
    monkeypatch.setattr(openai_stream, "KEEP_ALIVE_S", 0.0)
    body = {**BODY, "model": "ref", "tool_choice": WEATHER, "stream": True}
    async with chats() as (app, _):
        seen = await stream(app, ROUTE, body)
    assert "still at work" in seen.comments
    deltas = [data["choices"][0]["delta"] for _, data in seen.events if data != "[DONE]"]
    assert not any(delta.get("content") for delta in deltas)


def test_tools_are_shown_by_templates_that_have_them() -> None:
    prompt = Prompt(messages=({"role": "user", "content": "hi"},), tools=tuple(TOOLS))
    shows = SPEAKS + "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}"
    for template, wanted in ((SPEAKS, ""), (shows, "<weather><place><now>")):
        text = "".join(map(chr, encode_prompt(Spoken(template), prompt)))
        assert text == f"[user||hi|]{wanted}"


async def test_the_official_client_runs_a_tool_loop() -> None:
    engines = {"ref": ChatEngine("ref", max_model_len=2000), "vbon": ChatEngine("vbon")}
    async with (
        on_a_port(make_runtime(engines=engines)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        messages: list[Any] = [{"role": "user", "content": "rain?"}]
        first = await client.chat.completions.create(
            model="bon", messages=messages, tools=TOOLS, tool_choice="required", max_tokens=250,
            parallel_tool_calls=False, seed=1,
        )  # fmt: skip
        said = first.choices[0].message
        assert said.tool_calls
        answers = [
            {"role": "tool", "tool_call_id": call.id, "content": "yes"} for call in said.tool_calls
        ]
        second = await client.chat.completions.create(
            model="bon", messages=[*messages, said, *answers], max_tokens=5
        )
    assert second.choices[0].message.content
    assert re.fullmatch(r"call_.+_0_0", said.tool_calls[0].id)
