"""Parameters of OpenAI's and vLLM's clients reach the engine in every mode, act there, and are echoed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from service.strategies import STRATEGIES
from tests.unit.fakes import ChatEngine, FakeEngine, make_runtime, serving, stream
from tests.unit.test_openai_fields import SPEAKS, Spoken
from vbon.errors import InvalidInputError
from vbon.prompts import Prompt, encode_prompt

ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["good", "bad"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "why": {"anyOf": [{"$ref": "#/$defs/Why"}, {"type": "null"}]},
    },
    "required": ["mood", "stars"],
    "additionalProperties": False,
    "$defs": {"Why": {"type": "array", "items": {"type": "string"}, "maxItems": 2}},
}
JSON_SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "review", "schema": SCHEMA, "strict": True},
}
GIVEN: dict[str, Any] = {
    "min_p": 0.25,
    "min_tokens": 3,
    "stop_token_ids": [6],
    "frequency_penalty": 0.5,
    "presence_penalty": -0.5,
    "repetition_penalty": 1.25,
    "logit_bias": {"3": 1.5},
}


class Noting(ChatEngine):
    """Notes the sampling it is asked for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked: list[Any] = []

    def _candidate(self, prompt_ids: list[int], sampling: Any, index: int) -> Any:
        self.asked.append(sampling)
        return super()._candidate(prompt_ids, sampling, index)


def target_and_body(route: str, mode: str, **changes: Any) -> tuple[str, dict[str, Any]]:
    source: dict[str, Any] = {"prompt": "the film was"}
    if "chat" in route:
        source = {"messages": [{"role": "user", "content": "the film was"}]}
    if route == "/generate":
        return f"{route}?mode={mode}", {**source, "n": 4, "max_tokens": 60, "seed": 3, **changes}
    return route, {"model": mode, **source, "best_of": 4, "max_tokens": 60, "seed": 3, **changes}


def told(answer: dict[str, Any]) -> dict[str, Any]:
    return dict(answer.get("vbon", answer))


def text_of(answer: dict[str, Any]) -> str:
    if "choices" not in answer:
        return str(answer["text"])
    choice = answer["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize("route", ROUTES)
async def test_every_parameter_reaches_the_engine_and_is_echoed(route: str) -> None:
    engines = {"ref": Noting("ref"), "vbon": Noting("vbon")}
    target, body = target_and_body(route, "bon", **GIVEN)
    async with serving(make_runtime(engines=engines)) as (_, client):
        response = await client.post(target, json=body)
    assert response.status_code == 200, response.text
    used = told(response.json())["sampling"]
    assert {name: used[name] for name in GIVEN} == GIVEN
    assert len(engines["ref"].asked) == 4
    for sampling in engines["ref"].asked:
        assert sampling.logit_bias == {3: 1.5}
        assert sampling.stop_token_ids == (6,)
        for name in GIVEN.keys() - {"logit_bias", "stop_token_ids"}:
            assert getattr(sampling, name) == GIVEN[name]


async def test_a_bias_decides_in_every_mode() -> None:
    async with serving(make_runtime()) as (_, client):
        for mode in ("ref", *STRATEGIES):
            target, body = target_and_body(
                "/v1/completions", mode, max_tokens=12, logit_bias={"2": 100}
            )
            if mode in {"rbon-kl", "srbon-kl"}:
                body["log_p"] = "policy"
            answer = (await client.post(target, json=body)).json()
            if mode == "corrected-bon":  # weighs log-probabilities that this engine does not tell
                assert answer["error"]["param"] == "logit_bias"
                continue
            assert set(text_of(answer).split()) == {"dull"}, mode


@pytest.mark.parametrize("mode", ["ref", "treebon", "speculative-rejection", "adaptive-bon"])
async def test_least_and_last_tokens_hold_in_modes_that_decode_in_steps(mode: str) -> None:
    """TreeBoN decodes in layers of 3 tokens here, and each layer knows of the others' tokens."""
    async with serving(make_runtime()) as (_, client):
        extra = {"return_candidates": True, "max_tokens": 12}
        target, body = target_and_body("/generate", mode, min_tokens=11, **extra)
        long = (await client.post(target, json=body)).json()
        target, body = target_and_body(
            "/generate", mode, stop_token_ids=[0, 1, 2, 3], ignore_eos=True, **extra
        )
        ended = (await client.post(target, json=body)).json()
    assert all(
        c["num_tokens"] >= 11 for c in long["candidates"] if c["finish_reason"] != "rejected"
    )
    for candidate in ended["candidates"]:
        assert not {"good", "bad", "dull", "superb"} & set(candidate["text"].split())
        if candidate["finish_reason"] == "stop":
            assert len(candidate["text"].split()) == candidate["num_tokens"] - 1


# Formats

WITHOUT_FORMATS = frozenset({"corrected-bon", "treebon"})


@pytest.mark.parametrize("route", ROUTES)
async def test_every_candidate_of_every_mode_fits_the_schema(route: str) -> None:
    engines = {"ref": ChatEngine("ref"), "vbon": ChatEngine("vbon")}
    async with serving(make_runtime(engines=engines)) as (_, client):
        for mode in ("ref", *(name for name in STRATEGIES if name not in WITHOUT_FORMATS)):
            target, body = target_and_body(
                route, mode, response_format=JSON_SCHEMA, max_tokens=200, return_candidates=True
            )
            response = await client.post(target, json=body)
            assert response.status_code == 200, (mode, response.text)
            answer = response.json()
            jsonschema.validate(json.loads(text_of(answer)), SCHEMA)
            candidates = told(answer)["candidates"]
            whole = [c for c in candidates if c["finish_reason"] == "stop"]
            assert whole
            for candidate in whole:
                jsonschema.validate(json.loads(candidate["text"]), SCHEMA)
            used = told(answer)["sampling"]["response_format"]
            assert used == {"type": "json_schema", "json_schema": {"schema": SCHEMA}}


@pytest.mark.parametrize("mode", sorted(WITHOUT_FORMATS))
async def test_modes_that_cannot_keep_a_format_refuse_it(mode: str) -> None:
    async with serving(make_runtime()) as (_, client):
        target, body = target_and_body("/v1/completions", mode, response_format=JSON_SCHEMA)
        answered = await client.post(target, json=body)
    assert (answered.status_code, answered.json()["error"]["param"]) == (422, "response_format")


async def test_any_json_object_and_any_text() -> None:
    async with serving(make_runtime()) as (_, client):
        target, body = target_and_body(
            "/v1/completions", "bon", response_format={"type": "json_object"}
        )
        found = (await client.post(target, json=body)).json()
        assert isinstance(json.loads(text_of(found)), dict)
        plain = await client.post(target, json={**body, "response_format": {"type": "text"}})
        del body["response_format"]
        assert text_of(plain.json()) == text_of((await client.post(target, json=body)).json())


@pytest.mark.parametrize("mode", ["ref", "bon"])
async def test_a_stream_fits_the_schema(mode: str) -> None:
    target, body = target_and_body(
        "/v1/completions", mode, response_format=JSON_SCHEMA, stream=True, max_tokens=200
    )
    async with serving(make_runtime()) as (app, _):
        seen = await stream(app, target, body)
    texts = [data["choices"][0]["text"] for _, data in seen.events if data != "[DONE]"]
    jsonschema.validate(json.loads("".join(texts)), SCHEMA)


@pytest.mark.parametrize(
    "changes",
    [{"response_format": JSON_SCHEMA}, {"frequency_penalty": 0.1}, {"presence_penalty": 1}],
)
async def test_a_mode_that_continues_partial_answers_refuses_what_looks_back(
    changes: dict[str, Any],
) -> None:
    (field,) = changes
    async with serving(make_runtime()) as (_, client):
        target, body = target_and_body("/v1/completions", "treebon", **changes)
        alone = await client.post(target, json=body)
        body = {"prompts": ["a"], "n": 4, "modes": ["ref", "treebon"], **changes}
        compared = await client.post("/compare", json=body)
    for response in (alone, compared):
        assert response.status_code == 422
        assert response.json()["error"]["param"] == field
        assert "use another mode" in response.json()["error"]["message"]


async def test_a_schema_that_cannot_be_generated_is_refused() -> None:
    wrong = {"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}}
    async with serving(make_runtime()) as (_, client):
        target, body = target_and_body("/v1/completions", "bon", response_format=wrong)
        response = await client.post(target, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (422, "response_format")


@pytest.mark.parametrize("mode", ["rbon-kl", "srbon-kl"])
async def test_log_p_is_told_to_be_the_policys_own_where_sampling_differs(mode: str) -> None:
    async with serving(make_runtime()) as (_, client):
        for changes in ({"min_p": 0.1}, {"logit_bias": {"1": 1}}, {"min_tokens": 2}):
            target, body = target_and_body("/v1/completions", mode, **changes)
            refused = (await client.post(target, json=body)).json()["error"]
            assert refused["param"] == "log_p"
            assert f"sampled with another {next(iter(changes))} than" in refused["message"]
            found = await client.post(target, json=body | {"log_p": "policy"})
            assert "log_p" in told(found.json())["details"]
        for changes in ({"stop_token_ids": [3]}, {"response_format": JSON_SCHEMA}):
            target, body = target_and_body("/v1/completions", mode, **changes)
            assert "log_p" not in told((await client.post(target, json=body)).json())["details"]


async def test_a_json_text_that_is_cut_is_chosen_only_if_all_are() -> None:
    """Instances have 27 characters and more, and a character is a token."""
    async with serving(make_runtime()) as (_, client):
        for model in (name for name in STRATEGIES if name not in WITHOUT_FORMATS):
            for max_tokens, whole in ((35, True), (20, False)):
                target, body = target_and_body(
                    "/v1/completions", model, best_of=16, n=16, max_tokens=max_tokens,
                    response_format=JSON_SCHEMA,
                )  # fmt: skip
                answer = (await client.post(target, json=body)).json()
                ends = [choice["finish_reason"] for choice in answer["choices"]]
                assert set(ends) == ({"stop", "length"} if whole else {"length"}), model
                assert ends == sorted(ends, reverse=True)  # stop before length


async def test_a_checkpoint_tells_that_it_was_trained_without(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"identity": {"max_new_tokens": 60}}')
    engines = {"ref": FakeEngine("ref"), "vbon": FakeEngine(str(tmp_path))}
    async with serving(make_runtime(engines=engines)) as (_, client):
        target, body = target_and_body("/v1/completions", "vbon", **GIVEN)
        found = told((await client.post(target, json=body)).json())["sampling_differences"]
        target, body = target_and_body("/v1/completions", "vbon")
        plain = told((await client.post(target, json=body)).json())["sampling_differences"]
    assert plain == []
    assert sorted(found) == sorted(
        f"{name} is set, but the checkpoint was trained and measured without" for name in GIVEN
    )


# The chat template


class Templated(FakeEngine):
    """A fake engine whose prompts go through a chat template."""

    tokenizer = Spoken(SPEAKS + "{% if enable_thinking %}think{% endif %}")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.prompts: list[str] = []

    async def encode(self, prompt: Prompt) -> list[int]:
        try:
            ids = encode_prompt(self.tokenizer, prompt)
        except ValueError as error:
            raise InvalidInputError(str(error), field="messages") from error
        self.prompts.append("".join(map(chr, ids)))
        return ids


@pytest.mark.parametrize("route", ["/generate", "/v1/chat/completions"])
async def test_variables_reach_the_chat_template(route: str) -> None:
    engine = Templated("ref")
    messages = [{"role": "user", "content": "hi"}]
    async with serving(make_runtime(engines={"ref": engine, "vbon": engine})) as (_, client):
        for variables in ({"enable_thinking": True}, {"enable_thinking": False}, {}, None):
            target, body = target_and_body(
                "/v1/chat/completions" if "v1" in route else route, "bon"
            )
            body = {**body, "messages": messages, "chat_template_kwargs": variables}
            body.pop("prompt", None)
            assert (await client.post(target, json=body)).status_code == 200
    assert engine.prompts == ["[user||hi|]think", *["[user||hi|]"] * 3]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"enable_thinkin": True}, "has no variable 'enable_thinkin'; leave it out"),
        ({"tokenize": True}, "cannot set 'tokenize'"),
        ({"tools": []}, "cannot set 'tools'"),
        ({"whose": "mine"}, "has no variable 'whose'"),
    ],
)
async def test_a_variable_without_effect_is_refused(variables: dict[str, Any], words: str) -> None:
    engine = Templated("ref")
    async with serving(make_runtime(engines={"ref": engine})) as (_, client):
        target, body = target_and_body(
            "/v1/chat/completions", "bon", chat_template_kwargs=variables
        )
        response = await client.post(target, json=body)
    assert response.status_code == 422
    assert words in response.json()["error"]["message"]


async def test_variables_without_a_chat_are_refused() -> None:
    async with serving(make_runtime()) as (_, client):
        target, body = target_and_body("/generate", "bon", chat_template_kwargs={"a": 1})
        response = await client.post(target, json=body)
    assert response.status_code == 422
    assert "need messages" in response.json()["error"]["message"]


class Marking(Spoken):
    """Begins with < where it adds special tokens."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return super().__call__(("<" if options["add_special_tokens"] else "") + text)


@pytest.mark.parametrize(
    ("asked", "text", "chat"), [(None, "<", ""), (True, "<", "<"), (False, "", "")]
)
async def test_special_tokens_are_added_as_asked(asked: bool | None, text: str, chat: str) -> None:
    engine = Templated("ref")
    engine.tokenizer = Marking(SPEAKS)
    async with serving(make_runtime(engines={"ref": engine})) as (_, client):
        for route in ("/v1/completions", "/v1/chat/completions", "/generate"):
            target, body = target_and_body(route, "bon", add_special_tokens=asked)
            assert (await client.post(target, json=body)).status_code == 200
    assert engine.prompts == [
        f"{text}the film was",
        f"{chat}[user||the film was|]",
        f"{text}the film was",
    ]


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        found = {"items": found}
    return found


@pytest.mark.parametrize("levels", [64, 70, 700])
async def test_objects_that_are_nested_too_deeply_are_refused(levels: int) -> None:
    """Deeper ones would exhaust the stack when they are echoed or compiled."""
    deep = nested(levels)
    changes: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": deep}}},
        {"chat_template_kwargs": {"a": deep}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep}}]},
    ]
    async with serving(make_runtime(engines={"ref": ChatEngine("ref")})) as (_, client):
        for change in changes:
            target, body = target_and_body("/v1/chat/completions", "bon", **change)
            response = await client.post(target, json=body)
            assert response.status_code == 422
            assert "nested at most 64 levels deep" in response.json()["error"]["message"]


async def test_parameters_are_as_deep_as_they_may_be_or_refused() -> None:
    """What is built around them is deeper still."""
    engines = {"ref": ChatEngine("ref", max_model_len=4000)}
    statuses = set()
    async with serving(make_runtime(engines=engines)) as (_, client):
        for levels in range(54, 66, 2):
            deep = {"type": "object", "properties": {"a": {"enum": [nested(levels)]}}}
            tools = [{"type": "function", "function": {"name": "f", "parameters": deep}}]
            for choice in ("required", {"function": {"name": "f"}}, "none"):
                target, body = target_and_body(
                    "/v1/chat/completions", "bon", tools=tools, tool_choice=choice
                )
                statuses.add((await client.post(target, json=body)).status_code)
    assert statuses == {200, 422}
