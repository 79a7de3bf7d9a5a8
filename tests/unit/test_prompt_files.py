"""Prompt files: which prompts their records are, and what is said of them."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from vbon.errors import DataError
from vbon.prompt_files import (
    BUILT_IN_PROMPTS,
    PromptFile,
    built_in_prompts,
    read_prompt_file,
    read_prompts,
    write_prompts,
)
from vbon.prompts import Prompt

CHAT = [{"role": "user", "content": "hi"}]
CALLS = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def texts(path: Path, **options: Any) -> list[str | None]:
    return [prompt.text for prompt in read_prompt_file(path, **options).prompts]


def written(path: Path, content: str | bytes | list[Any]) -> Path:
    if isinstance(content, list):
        content = "".join(json.dumps(record) + "\n" for record in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_prompt_files_in_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "p"
    path.write_text('{"prompt": "a"}\n\nplain text\n')
    assert texts(path) == ["a", "plain text"]
    path.write_text('{"prmpt": "a"}\n')
    with pytest.raises(DataError, match="p:1"):
        read_prompt_file(path)
    with pytest.raises(DataError, match="does not exist"):
        read_prompt_file(tmp_path / "none")


def test_files_keep_duplicates_and_prompts_drop_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A load test sends a file as it is; training and sampling use each prompt once."""
    path = written(tmp_path / "p.txt", "b\na\nb\nc\n")
    file = read_prompt_file(path)
    assert [prompt.text for prompt in file.first(3)] == ["b", "a", "b"]
    kept = f"{path}: 4 prompts from lines of text, 1 duplicate kept; the first 3 are used"
    assert file.describe(keeps_duplicates=True, limit=3) == kept
    with caplog.at_level(logging.INFO, "vbon.prompt_files"):
        assert [prompt.text for prompt in read_prompts(path)] == ["b", "a", "c"]
    assert caplog.messages == [f"{path}: 4 prompts from lines of text, 1 duplicate dropped"]
    limited = file.describe(keeps_duplicates=False, limit=3)
    assert limited.endswith("1 duplicate dropped")  # three are left, and three are used


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([Prompt(text="a")], "f: 1 prompt from JSON lines"),
        ([Prompt(messages=tuple(CHAT))], "f: 1 prompt from JSON lines, all chats"),  # type: ignore[arg-type]
        ([Prompt(text="a"), Prompt(messages=tuple(CHAT))],  # type: ignore[arg-type]
         "f: 2 prompts from JSON lines, 1 of them chats"),
    ],
)  # fmt: skip
def test_a_file_is_described(prompts: list[Prompt], words: str) -> None:
    assert (
        PromptFile("f", "JSON lines", tuple(prompts), "").describe(keeps_duplicates=True) == words
    )


def test_chats_that_end_with_an_answer_are_told(tmp_path: Path) -> None:
    answered = [*CHAT, {"role": "assistant", "content": "hello"}]
    path = written(tmp_path / "p.jsonl", [{"messages": CHAT}, {"messages": answered}])
    assert "all chats (1 end with an assistant's message" in read_prompt_file(path).describe(
        keeps_duplicates=True
    )


def test_without_a_file_the_built_in_prompts_are_used() -> None:
    assert [p.text for p in built_in_prompts().first(2)] == list(BUILT_IN_PROMPTS[:2])
    assert [p.text for p in built_in_prompts().first(100)] == list(BUILT_IN_PROMPTS)
    assert built_in_prompts().describe(keeps_duplicates=True) == "built-in prompts: 16 prompts"


@pytest.mark.parametrize(
    ("name", "content"),
    [("p", ""), ("p", "\n \n"), ("p.json", "[]"), ("p.csv", "prompt\n"), ("p.jsonl", b"\xef\xbb\xbf")],
)  # fmt: skip
def test_files_without_prompts_are_refused(tmp_path: Path, name: str, content: str | bytes) -> None:
    with pytest.raises(DataError, match="contains no prompts"):
        read_prompts(written(tmp_path / name, content))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "a"}, Prompt(text="a")),
        ("a", Prompt(text="a")),
        ({"prompt": CHAT}, Prompt(messages=tuple(CHAT))),  # type: ignore[arg-type]
        ({"prompt": "ignored", "messages": CHAT}, Prompt(messages=tuple(CHAT))),  # type: ignore[arg-type]
        ({"prompt": "a", "messages": None}, Prompt(text="a")),
        ({"prompt": "a", "messages": ""}, Prompt(text="a")),
        ({"Prompt ": "a"}, Prompt(text="a")),
        ({"prompt": "a", "PROMPT": "b"}, Prompt(text="a")),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": t} for t in "hi"]}
                ]
            },
            Prompt(messages=tuple(CHAT)),  # type: ignore[arg-type]
        ),
        (
            {"messages": [{**CHAT[0], "name": "ann", "tool_calls": None, "id": 7}]},
            Prompt(messages=({**CHAT[0], "name": "ann"},)),  # type: ignore[typeddict-item]
        ),
        (
            {"messages": [*CHAT, {"role": "assistant", "content": None, "tool_calls": CALLS}]},
            Prompt(messages=(*CHAT, {"role": "assistant", "content": "", "tool_calls": CALLS})),  # type: ignore[arg-type]
        ),
    ],
)
def test_a_record_is_a_prompt(tmp_path: Path, record: Any, expected: Prompt) -> None:
    assert read_prompts(written(tmp_path / "p.json", json.dumps([record]))) == [expected]
    assert read_prompts(written(tmp_path / "p.jsonl", [record])) == [expected]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": None}, '"prompt" must be a non-empty string, but is null'),
        ({"prompt": ""}, "\"prompt\" must be a non-empty string, but is ''"),
        ({"prompt": 5}, '"prompt" must be a non-empty string, but is the number 5'),
        ({"prompt": {"text": "a"}}, "but is an object"),
        ({"text": "a", "label": 1}, "but has 'text', 'label'; name the key of the prompts with"),
        ({}, "but has nothing"),
        ({"messages": []}, "each message must have"),
        ({"messages": [{"role": "user"}]}, "each message must have"),
        ({"messages": [{"role": "user", "content": 5}]}, "each message must have"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "each message must have"),
        ({"prompt": ["a", "b"]}, "each message must have"),
        ({"messages": [{"role": "user", "content": None}]}, "each message must have"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "\"messages\" has a part of type 'image_url', but only parts of type 'text' can be read",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "each message must have",
        ),
        ({"messages": "hi"}, '"messages" is not JSON'),
        ({"messages": [{**CHAT[0], "tool_calls": "x"}]}, "each message must have"),
        ({"messages": [{**CHAT[0], "tool_calls": [5]}]}, "each message must have"),
        ({"messages": [{**CHAT[0], "tool_calls": [{"id": "a"}]}]}, "each message must have"),
        ({"prompt": "\ud800"}, "half a character"),
        (5, 'is not a JSON object with "prompt" or "messages"'),
        (None, 'is not a JSON object with "prompt" or "messages"'),
    ],
)
def test_a_record_that_is_not_a_prompt_is_named(tmp_path: Path, record: Any, words: str) -> None:
    for name, content, where in (
        ("p.json", json.dumps(["first", record]), "p.json, record 2"),
        ("p.jsonl", ["first", record], "p.jsonl:2"),
    ):
        with pytest.raises(DataError) as caught:
            read_prompts(written(tmp_path / name, content))
        assert where in str(caught.value)
        assert words in str(caught.value)


TURNS = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "a"},
    {"from": "human", "value": "r"},
    {"from": "gpt", "value": "b"},
]
TURNED = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "r")]


def turns_of(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in prompt.messages]


@pytest.mark.parametrize("key", ["conversations", "messages", "prompt"])
def test_a_sharegpt_conversation_is_a_chat_up_to_its_last_human_turn(
    tmp_path: Path, key: str
) -> None:
    record = {"id": "x_0", key: TURNS}
    for name, content in (("p.json", json.dumps([record])), ("p.jsonl", [record])):
        [prompt] = read_prompts(written(tmp_path / name, content))
        assert turns_of(prompt) == TURNED
    table = tmp_path / "p.csv"
    with table.open("w", newline="") as handle:
        csv.writer(handle).writerows([["id", "conversations"], ["1", json.dumps(TURNS)]])
    assert [turns_of(prompt) for prompt in read_prompts(table)] == [TURNED]


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([{"from": "gpt", "value": "a"}], "has no human turn"),
        ([{"from": "wizard", "value": "a"}], "a turn from 'wizard'; the speakers are human, user"),
        ([{"from": "human"}], 'must have "from" and "value" as texts'),
        ([{"from": "human", "value": None}], 'must have "from" and "value" as texts'),
        ([{"from": "human", "value": "a"}, "b"], 'must have "from" and "value" as texts'),
        ([], "each message must have"),
    ],
)
def test_a_conversation_that_is_no_prompt_is_named(
    tmp_path: Path, turns: list[Any], words: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_prompts(written(tmp_path / "p.jsonl", [{"conversations": turns}]))
    assert "p.jsonl:1" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["p.json", "p"])
def test_records_in_data_are_the_records(tmp_path: Path, name: str, indent: int | None) -> None:
    whole = {"version": 1, "data": [{"prompt": "a"}, "b", {"conversations": TURNS}]}
    path = written(tmp_path / name, json.dumps(whole, indent=indent))
    first, second, third = read_prompts(path)
    assert (first.text, second.text, turns_of(third)) == ("a", "b", TURNED)
    assert read_prompt_file(path).form == 'a JSON object with the records in "data"'
    for data in ({"x": 1}, ["x"]):  # of a record that is a prompt itself
        one = written(tmp_path / name, json.dumps({"prompt": "a", "data": data}, indent=indent))
        assert texts(one) == ["a"]


def test_a_column_can_be_named(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    with table.open("w", newline="") as handle:
        rows = [["id", "question", "chat"], ["1", "why?", json.dumps(CHAT)], ["2", "how?", "[]"]]
        csv.writer(handle).writerows(rows)
    assert texts(table, column="question") == ["why?", "how?"]
    records = written(tmp_path / "p.jsonl", [{"question": "why?"}, {"question": CHAT}])
    assert texts(records, column="question") == ["why?", None]
    with pytest.raises(
        DataError, match=r'no column "messages", "conversations" or "prompt"; its columns'
    ):
        texts(table)
    with pytest.raises(DataError, match=r"its columns are 'id', 'question', 'chat': name the one"):
        texts(table, column="answer")
    with pytest.raises(DataError, match=r'p\.jsonl:1 is not a JSON object with "answer"'):
        texts(records, column="answer")


def test_chats_of_tables_are_json_cells(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    with table.open("w", newline="") as handle:
        csv.writer(handle).writerows([["messages"], [json.dumps(CHAT)]])
    assert read_prompts(table) == [Prompt(messages=tuple(CHAT))]  # type: ignore[arg-type]


def test_an_empty_cell_of_messages_leaves_the_prompt(tmp_path: Path) -> None:
    table = tmp_path / "p.csv"
    with table.open("w", newline="") as handle:
        rows = [["prompt", "messages"], ["a", ""], ["b", json.dumps(CHAT)]]
        csv.writer(handle).writerows(rows)
    assert read_prompts(table) == [Prompt(text="a"), Prompt(messages=tuple(CHAT))]  # type: ignore[arg-type]


def test_prompts_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"prompt": "a", "messages": None}, {"prompt": None, "messages": CHAT}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert texts(tmp_path / "p.parquet") == ["a", None]
    parquet.write_table(pyarrow.table({"prompt": ["a", None]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet, record 2: .*null"):
        texts(tmp_path / "p.parquet")
    parquet.write_table(pyarrow.table({"prompt": [1]}), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet, record 1: .* is the number 1"):
        texts(tmp_path / "p.parquet")


def test_written_prompts_are_read(tmp_path: Path) -> None:
    prompts = [Prompt(text="one\u2028\n two"), Prompt(messages=tuple(CHAT))]  # type: ignore[arg-type]
    write_prompts(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl") == prompts
