"""What OpenAI's clients send without meaning anything by it is taken; what would change the answer is not."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from service.schemas.messages import ChatMessage, TextPart
from service.schemas.neutral_fields import CHAT, COMMON, COMPLETION, MESSAGE, PART, Label, Neutral
from service.schemas.openai_requests import ChatRequest, CompletionRequest, StreamOptions
from service.strategies.request_fields import REPLACED
from tests.unit.fakes import ChatEngine, make_runtime, on_a_port, serving
from vbon.prompts import Message, Prompt, encode_prompt, for_template

COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"model": "ref", "prompt": "the film was", "max_tokens": 6, "seed": 3},
    CHATS: {
        "model": "ref",
        "messages": [{"role": "user", "content": "the film was"}],
        "max_tokens": 6,
        "seed": 3,
    },
}
TABLES = {COMPLETIONS: COMMON | COMPLETION, CHATS: COMMON | CHAT}
EXAMPLES: dict[Any, Any] = {
    str: "x",
    bool: False,
    dict[str, Any]: {"a": 1},
    list[Any]: [{"a": 1}],
    Any: {"a": 1},
}


def chats() -> Any:
    return serving(make_runtime(engines={"ref": ChatEngine(), "vbon": ChatEngine()}))


def neutral_values(row: Neutral | Label) -> list[Any]:
    return [None, EXAMPLES[row.kind]] if isinstance(row, Label) else [None, *row.values]


def text_of(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.mark.parametrize("route", BODIES)
async def test_neutral_values_change_no_answer_and_others_are_refused_with_the_remedy(
    route: str,
) -> None:
    async with chats() as (_, client):
        plain = text_of((await client.post(route, json=BODIES[route])).json())
        for name, row in TABLES[route].items():
            for value in neutral_values(row):
                response = await client.post(route, json={**BODIES[route], name: value})
                assert response.status_code == 200, (name, value, response.text)
                assert text_of(response.json()) == plain, (name, value)
            if isinstance(row, Label):
                continue
            other = await client.post(route, json={**BODIES[route], name: {"other": True}})
            error = other.json()["error"]
            assert (other.status_code, error["param"]) == (422, name)
            assert row.remedy in error["message"]


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest, ChatMessage, StreamOptions])
def test_null_is_the_same_as_absent_for_every_field(kind: Any) -> None:
    least: dict[Any, dict[str, Any]] = {
        CompletionRequest: {"model": "ref", "prompt": "a"},
        ChatRequest: {"model": "ref", "messages": [{"role": "user", "content": "a"}]},
        ChatMessage: {"role": "user"},
        StreamOptions: {},
    }
    body = least[kind]
    nulls = {name: None for name in kind.model_fields if name not in body}
    assert len(nulls) > 2
    assert kind.model_validate(body | nulls) == kind.model_validate(body)
    listed = kind.model_json_schema()["properties"]
    for name in nulls.keys() - REPLACED.keys():
        assert accepts_null(listed[name]), name


@pytest.mark.parametrize("route", BODIES)
async def test_fields_of_other_servers_may_be_null(route: str) -> None:
    """Dumps of clients write out what they leave empty, such as litellm's ``images`` of a message."""
    async with chats() as (_, client):
        plain = text_of((await client.post(route, json=BODIES[route])).json())
        nulls: dict[str, Any] = {"moderation": None, "prompt_embeds": None}
        if route == CHATS:
            part = {"type": "text", "text": "the film was", "image_url": None}
            nulls |= {
                "messages": [{"role": "user", "content": [part], "images": None}],
                "suffix": None,
            }
        found = await client.post(route, json={**BODIES[route], **nulls})
    assert found.status_code == 200, found.text
    assert text_of(found.json()) == plain


def accepts_null(schema: dict[str, Any]) -> bool:
    forms = schema.get("anyOf", [schema])
    return {"type": "null"} in forms or any(None in form.get("enum", ()) for form in forms)


@pytest.mark.parametrize("target", ["/generate?mode=bon", "/compare"])
async def test_null_is_absent_on_the_native_routes_too(target: str) -> None:
    source = {"prompts": ["a"]} if target == "/compare" else {"prompt": "a"}
    nulls = dict.fromkeys(("temperature", "top_p", "top_k", "stop", "ignore_eos", "priority"))
    async with chats() as (_, client):
        body = {**source, "n": 2, "max_tokens": 3, "seed": 1}
        response = await client.post(target, json=body | nulls)
        plain = await client.post(target, json=body)
    assert response.status_code == 200, response.text
    assert response.json()["sampling"] == plain.json()["sampling"]


@pytest.mark.parametrize(
    "body", [{"top_k": -1}, {"seed": -1}, {"stop": ""}, {"stop": []}, {"stop": ["", ""]}]
)
async def test_minus_one_and_empty_mean_none(body: dict[str, Any]) -> None:
    plain = {**BODIES[COMPLETIONS], "seed": None}
    async with chats() as (_, client):
        used = (await client.post(COMPLETIONS, json=plain | body)).json()["vbon"]["sampling"]
        usual = (await client.post(COMPLETIONS, json=plain)).json()["vbon"]["sampling"]
    assert used == usual


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([{"role": "user", "content": 5}], "messages.0.content", "valid string"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "content.0.text", "string"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages.0.content.0",
            "only parts of type 'text', not 'image_url'; send the content as text",
        ),
        ([{"role": "user", "content": "a", "mood": "x"}], "messages.0.mood", "no such field"),
        ([{"role": "function", "content": "a"}], "messages.0.role", "'tool'"),
        ([{"role": "assistant", "refusal": "no"}], "messages.0.refusal", "as content"),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], "tool_calls.0.function", "required"),
        (
            [{"role": "user", "content": "a\ud800"}],
            "messages.0.content",
            "half of a surrogate pair",
        ),
        ([{"role": "user", "content": "a", "name": "\udfff"}], "messages.0.name", "surrogate pair"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}],
            "messages.0.content.0.text",
            "character 0 is half of a surrogate pair, which UTF-8 cannot encode; leave it out",
        ),
        ([], "messages", "at least 1"),
    ],
)
async def test_errors_name_fields_as_the_client_wrote_them(
    messages: list[Any], param: str, words: str
) -> None:
    async with chats() as (_, client):
        written = json.dumps({**BODIES[CHATS], "messages": messages})
        response = await client.post(
            CHATS, content=written, headers={"content-type": "application/json"}
        )
    error = response.json()["error"]
    assert response.status_code == 422
    assert error["param"].endswith(param)
    assert error["message"].startswith(error["param"] + ": ")
    assert words in error["message"]
    for inner in ("constrained", "one", "several", "Value error", "list[", "Extra inputs"):
        assert inner not in error["message"].replace("one of", "")


@pytest.mark.parametrize("field", ["stop", "prompt", "n"])
@pytest.mark.parametrize("value", [1.5, {"a": 1}, [[]]])
async def test_fields_of_several_forms_are_named_plainly(field: str, value: Any) -> None:
    target = "/generate" if field == "n" else COMPLETIONS
    body = {"prompt": "a"} if field == "n" else BODIES[COMPLETIONS]
    async with chats() as (_, client):
        error = (await client.post(target, json={**body, field: value})).json()["error"]
    assert error["param"] == (f"{field}.0" if value == [[]] and field != "prompt" else field)


# Messages


class Spoken:
    """A tokenizer whose chat template speaks every message, and one that knows only two roles."""

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        from jinja2 import Environment

        environment = Environment()
        environment.globals["raise_exception"] = refuse
        environment.filters["tojson"] = json.dumps
        return environment.from_string(self.chat_template).render(messages=messages, **options)

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}


def refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


SPEAKS = (
    "{% for m in messages %}[{{ m.role }}|{{ m.name }}|{{ m.content }}|"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}]"
    "{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('only user and assistant') }}{% endif %}{{ m.content }}{% endfor %}"
)
KNOWS = (
    "{% for m in messages %}{% if m.role == 'developer' %}D{% endif %}{{ m.content }}{% endfor %}"
)


def spoken(template: str, *messages: dict[str, Any]) -> str:
    turns = tuple(ChatMessage.model_validate(m).to_message() for m in messages)
    return "".join(map(chr, encode_prompt(Spoken(template), Prompt(messages=turns))))


CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
}


def test_the_template_gets_every_role_name_and_call() -> None:
    found = spoken(
        SPEAKS,
        {"role": "developer", "content": ""},
        {"role": "user", "content": "hi", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_1"},
        {"role": "assistant", "content": ""},
    )
    assert found == (
        "[system|||][user|Ann|hi|][assistant|||weather(Bern)][tool||rain|][assistant|||]"
    )


def test_a_template_that_knows_developers_gets_them() -> None:
    assert spoken(KNOWS, {"role": "developer", "content": "x"}) == "Dx"


@pytest.mark.parametrize("role", ["system", "developer", "tool"])
def test_a_template_without_a_way_is_the_only_reason_to_refuse_a_role(role: str) -> None:
    with pytest.raises(ValueError, match="rejects the messages: only user and assistant"):
        spoken(STRICT, {"role": role, "content": "x"})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [('{"a": 1}', {"a": 1}), ("", {}), ("{oops", "{oops"), ("[1]", "[1]"), ({"a": 1}, {"a": 1})],
)
def test_arguments_of_calls_are_objects_in_the_template(arguments: Any, wanted: Any) -> None:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    message: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    (turn,) = for_template([message], "")
    assert turn["tool_calls"][0]["function"]["arguments"] == wanted
    assert call["function"]["arguments"] == arguments  # the request itself is left alone


def test_two_calls_make_two_prompts() -> None:
    """A prompt's key is its identity, so what an assistant called is part of it."""
    other = {**CALL, "id": "call_2"}
    keys = {
        Prompt(messages=({"role": "assistant", "content": "", "tool_calls": [c]},)).key
        for c in (CALL, other)
    }
    assert len(keys) == 2


@pytest.mark.parametrize("table", [MESSAGE, PART], ids=["message", "part"])
def test_parts_of_messages_have_neutral_values_too(table: Any) -> None:
    kind: Any = ChatMessage if table is MESSAGE else TextPart
    body = {"role": "user", "content": "a"} if table is MESSAGE else {"type": "text", "text": "a"}
    for name, row in table.items():
        for value in neutral_values(row):
            assert kind.model_validate({**body, name: value}).model_dump() == (
                kind.model_validate(body).model_dump()
            )


@pytest.mark.parametrize("place", ["call", "function"])
def test_null_in_a_call_is_absent(place: str) -> None:
    call: dict[str, Any] = {"id": "a", "function": {"name": "f"}}
    nulls = dict.fromkeys(("id", "type", "index", "custom"))
    if place == "call":
        call = {"function": call["function"]}
        found = {**nulls, **call}
    else:
        found = {**call, "function": {"name": "f", "arguments": None, "parsed_arguments": None}}
    dumps = [
        ChatMessage.model_validate({"role": "assistant", "tool_calls": [one]}).model_dump()
        for one in (call, found)
    ]
    assert dumps[0] == dumps[1]


async def test_a_wrong_argument_of_a_call_is_named_once() -> None:
    call = {"id": "a", "function": {"name": "f", "arguments": 5}}
    body = {**BODIES[CHATS], "messages": [{"role": "assistant", "tool_calls": [call]}]}
    async with chats() as (_, client):
        error = (await client.post(CHATS, json=body)).json()["error"]
    assert error["message"].count("messages.0.tool_calls.0.function.arguments") == 1


class Film(BaseModel):
    """The structure that the official client parses in the next test."""

    title: str


async def test_a_parsed_answer_goes_in_again() -> None:
    """The client's own object and its dump, which has the parsed form besides the content."""
    async with (
        on_a_port(make_runtime(engines={"ref": ChatEngine(), "vbon": ChatEngine()})) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        user: Any = {"role": "user", "content": "a"}
        found = await client.chat.completions.parse(
            model="ref", messages=[user], max_tokens=64, response_format=Film
        )
        said: Any = found.choices[0].message
        assert isinstance(said.parsed, Film)
        for turn in (said, said.model_dump()):
            again = await client.chat.completions.create(
                model="ref", messages=[user, turn, user], max_tokens=4
            )
            assert again.choices


async def test_the_official_clients_chat_loop() -> None:
    """What came back goes in again: the client's own object, and its dump with every null."""
    engines = {"ref": ChatEngine(), "vbon": ChatEngine()}
    async with (
        on_a_port(make_runtime(engines=engines)) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        messages: list[Any] = [
            {"role": "developer", "content": ""},
            {"role": "user", "content": "a"},
        ]
        for turn in range(3):
            found = await client.chat.completions.create(
                model="bon", messages=messages, max_tokens=4, extra_body={"best_of": 2}
            )
            said = found.choices[0].message
            messages += [
                said if turn else said.model_dump(),
                {"role": "user", "content": [{"type": "text", "text": "more"}]},
            ]
    assert found.choices[0].message.content


SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_every_neutral_field_is_documented_with_its_values() -> None:
    document = runpy.run_path(str(SCRIPTS / "reference_pages.py"))["openai_fields_page"]()
    prose = (SCRIPTS.parent / "docs" / "openai.md").read_text(encoding="utf-8")
    assert "(reference/openai-fields.md)" in prose
    owners = {
        "both": COMMON,
        "`/v1/completions`": COMPLETION,
        "`/v1/chat/completions`": CHAT,
        "a message": MESSAGE,
        "a part of its content": PART,
    }
    rows = [
        f"| `{name}` | {owner} | {documented(row)} |"
        for owner, table in owners.items()
        for name, row in table.items()
    ]
    listed = [line for line in document.splitlines() if line.startswith("| `")]
    assert sorted(listed) == sorted(rows)


def documented(row: Neutral | Label) -> str:
    if isinstance(row, Label):
        return "any"
    return ", ".join(f"`{json.dumps(value)}`" for value in row.values) or "only null"


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        ("/generate", {"temperature": False}),
        ("/generate", {"n": True}),
        ("/generate", {"max_tokens": True}),
        (COMPLETIONS, {"best_of": True}),
        (COMPLETIONS, {"min_p": False}),
        (COMPLETIONS, {"logit_bias": {"3": True}}),
        (COMPLETIONS, {"stop_token_ids": [True]}),
    ],
)
async def test_true_and_false_are_no_numbers(target: str, changes: dict[str, Any]) -> None:
    body = {"prompt": "a", "n": 2, "max_tokens": 3} if target == "/generate" else BODIES[target]
    async with chats() as (_, client):
        response = await client.post(target, json={**body, **changes})
        flag = await client.post(target, json={**body, "ignore_eos": False})
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith(next(iter(changes)))
    assert flag.status_code == 200
