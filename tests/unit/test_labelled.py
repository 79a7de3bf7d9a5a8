"""Labelled texts of every form: one text and one label a record, and nothing is decided silently."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.sandbox.labelled import read_labelled
from vbon.errors import DataError

WORDS = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff"), min_size=1, max_size=12
).filter(lambda text: bool(text.strip()))


def read(path: Path, content: str | bytes | list[Any], spec: str = "") -> list[tuple[str, int]]:
    """The pairs of a file beside a liked and a disliked text."""
    if isinstance(content, list):
        content = "".join(json.dumps(record) + "\n" for record in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    both = path.parent / "both.jsonl"
    both.write_text('{"text": "liked one", "label": 1}\n{"text": "other one", "label": 0}\n')
    return read_labelled([str(both), f"{path}{spec}"], None)[2:]


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.dictionaries(WORDS.map(lambda text: " ".join(text.split())), st.sampled_from([0, 1]))
)
def test_labelled_texts_round_trip(
    tmp_path_factory: pytest.TempPathFactory, pairs: dict[str, int]
) -> None:
    folder = tmp_path_factory.mktemp("labelled")
    pairs = {text: label for text, label in pairs.items() if text not in ("liked one", "other one")}
    rows = [{"text": text, "label": label} for text, label in pairs.items()]
    expected = list(pairs.items())
    assert read(folder / "a.jsonl", rows) == expected
    assert read(folder / "a.json", json.dumps(rows, indent=2)) == expected
    with (folder / "a.csv").open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.DictWriter(handle, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    assert read(folder / "a.csv", (folder / "a.csv").read_bytes()) == expected
    liked = [text for text in pairs if not text.lstrip().startswith(("{", "["))]
    text = "\r\n".join(liked)
    assert read(folder / "a.txt", text.encode("utf-16"), "=1") == [(one, 1) for one in liked]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        *[(label, 1) for label in (1, 1.0, True, "1", "1.0", "true", "positive", "POS", " True ")],
        *[(label, 0) for label in (0, 0.0, False, "0", "false", "Negative", "neg")],
    ],
)
def test_a_label_has_several_spellings(tmp_path: Path, label: Any, expected: int) -> None:
    assert read(tmp_path / "a.jsonl", [{"text": "a", "label": label}]) == [("a", expected)]
    assert read(tmp_path / "a.csv", f"label,text\n{label},a\n") == [("a", expected)]


@pytest.mark.parametrize(
    ("label", "words"),
    [(2, "the number 2"), (0.5, "the number 0.5"), (-1, "the number -1"), (None, "null"), ("", "''"),
     ("good", "'good'"), ([1], "a list"), (float("nan"), "the number nan")],
)  # fmt: skip
def test_another_label_is_refused(tmp_path: Path, label: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:1: label {words} is neither 0 nor 1"):
        read(tmp_path / "a.jsonl", [{"text": "a", "label": label}])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": None, "label": 1}, '"text" must be a string, but is null'),
        ({"text": 5, "label": 1}, '"text" must be a string, but is the number 5'),
        ({"label": 1}, "but has 'label'"),
        ({"text": "a"}, "but has 'text'"),
        (["a", 1], 'is not a JSON object with "text" and "label"'),
        ("a", "cannot tell the labels"),
    ],
)
def test_a_record_without_text_or_label_is_named(tmp_path: Path, record: Any, words: str) -> None:
    for name, content, where in (
        ("a.jsonl", [{"text": "b", "label": 1}, record], "a.jsonl:2"),
        ("a.json", json.dumps([{"text": "b", "label": 1}, record]), "a.json, record 2"),
    ):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name, content)
        assert where in str(caught.value)
        assert words in str(caught.value)


def test_a_text_with_both_labels_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [("fine", 1), ("so so", 1), ("so  so", 0), ("so so", 1), ("fine", 1), ("dull", 0)]
    path = tmp_path / "a.jsonl"
    with caplog.at_level(logging.INFO, "training.sandbox.labelled"):
        found = read(path, [{"text": text, "label": label} for text, label in rows])
    assert found == [("fine", 1), ("dull", 0)]
    assert caplog.messages[1:] == [
        f"{path}: 6 texts from JSON lines, 4 liked and 2 disliked",
        "2 duplicates dropped",
        f"1 text with both labels left out; the first is 'so so', at {path}:2 and {path}:3",
    ]


def test_blank_texts_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": text, "label": 1} for text in ("fine", "", " \u2028\n")]
    with caplog.at_level(logging.INFO, "training.sandbox.labelled"):
        assert read(path, rows) == [("fine", 1)]
    assert caplog.messages[1:] == [
        f"{path}: 1 text from JSON lines, 1 liked and 0 disliked; 2 blank texts left out"
    ]


def test_the_same_file_with_both_labels_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    with pytest.raises(DataError, match="every text has both labels; give each file one label"):
        read_labelled([f"{path}=1", f"{path}=0"], None)


def test_separators_and_windows_encodings_split_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.pos"
    odd = "one\u2028two\x85three\x0bfour"
    assert read(path, f"{odd}\r\nfive\r\n") == [("one two three four", 1), ("five", 1)]
    path.write_bytes("fine \u2026 caf\xe9\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.pos:1 is not UTF-8: byte 0x85 at offset 5 .*cp1252"):
        read_labelled([str(path)], None)
    (tmp_path / "a.neg").write_text("dull")
    both = [str(path), str(tmp_path / "a.neg")]
    assert read_labelled(both, "cp1252") == [("fine \u2026 caf\xe9", 1), ("dull", 0)]


def test_a_file_of_one_label_may_hold_records(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", 'text,source\n"one\ntwo",x\n', "=0") == [("one two", 0)]
    assert read(tmp_path / "a.jsonl", [{"text": "a"}, "b"], "=1") == [("a", 1), ("b", 1)]
    with pytest.raises(DataError, match=r"a\.jsonl:1 has a label of its own.* leave out =1"):
        read(tmp_path / "a.jsonl", [{"text": "a", "label": 0}], "=1")
    with pytest.raises(DataError, match="must have a header with text and label, but has 'text'"):
        read(tmp_path / "a.csv", "text\na\n")


def test_a_file_may_be_named_like_a_label(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl=1", [{"text": "a", "label": 0}]) == [("a", 0)]


def test_labelled_parquet_and_datasets_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
    )
    rows = [{"text": "fine", "label": 1}, {"text": "dull", "label": 0}]
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.save_to_disk(str(tmp_path / "disk"))
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    dataset.to_json(str(tmp_path / "a.json"))
    dataset.to_csv(str(tmp_path / "a.csv"))
    for name in ("disk", "a.parquet", "a.json", "a.csv"):
        assert read_labelled([str(tmp_path / name)], None) == [("fine", 1), ("dull", 0)]


def test_a_directory_stands_for_its_labelled_files(tmp_path: Path) -> None:
    (tmp_path / "b.pos").write_text("liked\nalso liked\n")
    (tmp_path / "a.neg").write_text("disliked\n")
    (tmp_path / "notes.txt").write_text("not one of them\n")
    assert read_labelled([str(tmp_path)], None) == [
        ("disliked", 0),
        ("liked", 1),
        ("also liked", 1),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        read_labelled([str(tmp_path / "empty")], None)
