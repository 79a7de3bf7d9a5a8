"""Record files in every form: what they hold is read, and what they cannot hold is named by its place."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbon.errors import DataError
from vbon.record_files.encoding import decode_text
from vbon.record_files.read import read_records
from vbon.record_files.records import describe_value

# Characters at which str.splitlines splits, and which texts and JSON strings may hold.
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)
LINE = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff"), min_size=1).filter(
    lambda text: text.strip() and not text.lstrip().startswith(("{", "["))
)


def values(path: Path, *wanted: str, **options: Any) -> list[Any]:
    return [record.value for record in read_records(path, wanted or ("prompt",), **options).records]


def form(path: Path) -> str:
    return read_records(path, ("prompt",)).form


def refusal(path: Path, *wanted: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        values(path, *wanted, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert str(path) in said
    return said


# --- what is written is read ---


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(LINE, min_size=1), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_of_text_round_trip(
    tmp_path_factory: pytest.TempPathFactory, encoding: str, texts: list[str], end: str, last: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "prompts.txt"
    path.write_bytes((end.join(texts) + end * last).encode(encoding))
    assert values(path) == texts
    assert form(path) == "lines of text"


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(TEXT, min_size=1), escaped=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_json_of_every_kind_round_trips(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], escaped: bool, end: str
) -> None:
    folder = tmp_path_factory.mktemp("json")
    rows = [{"prompt": text, "n": i} for i, text in enumerate(texts)]
    dumped = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    written = {
        "lines.jsonl": end.join(dumped),
        "lines": end.join(dumped),
        "array.json": json.dumps(rows, ensure_ascii=escaped),
        "array.jsonl": json.dumps(rows, indent=2, ensure_ascii=escaped).replace("\n", end),
        "array": json.dumps(rows, indent=1, ensure_ascii=escaped),
        "after_each_other.json": end.join(json.dumps(row, indent=4) for row in rows),
    }
    for name, text in written.items():
        (folder / name).write_bytes(text.encode())
        assert values(folder / name) == rows, name


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(TEXT, min_size=1), delimiter=st.sampled_from(",\t;|"))
def test_tables_round_trip(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("tables") / ("t.tsv" if delimiter == "\t" else "t.csv")
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([["prompt", "n"], *([text, str(i)] for i, text in enumerate(texts))])
    assert values(path) == [{"prompt": text, "n": str(i)} for i, text in enumerate(texts)]


def test_separators_of_unicode_end_no_record(tmp_path: Path) -> None:
    for name, text in {
        "a.txt": "one{}two",
        "a.jsonl": '"one{}two"',
        "a.json": '["one{}two"]',
    }.items():
        for separator in SEPARATORS if name == "a.txt" else SEPARATORS[:3]:
            (tmp_path / name).write_text(text.format(separator), encoding="utf-8")
            assert values(tmp_path / name) == [f"one{separator}two"]
    (tmp_path / "a.csv").write_text("prompt,n\none\u2028two\x85three,1\n", encoding="utf-8")
    assert values(tmp_path / "a.csv") == [{"prompt": "one\u2028two\x85three", "n": "1"}]


@pytest.mark.parametrize("name", ["p.jsonl.gz", "p.jsonl.bz2", "p.jsonl.xz", "p.jsonl", "p"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_told_by_their_content(
    tmp_path: Path, name: str, compress: Any
) -> None:
    path = tmp_path / name
    whole = compress(b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n')
    path.write_bytes(whole)
    assert values(path) == [{"prompt": "a"}, {"prompt": "b"}]
    path.write_bytes(whole[:-9])
    assert "damaged or truncated" in refusal(path)


def test_long_lines_and_cells_are_read(tmp_path: Path) -> None:
    long = "x" * 300_000
    (tmp_path / "a.txt").write_text(long)
    assert values(tmp_path / "a.txt") == [long]
    (tmp_path / "a.csv").write_text(f"prompt,n\n{long},1\n")
    before = csv.field_size_limit()
    assert values(tmp_path / "a.csv") == [{"prompt": long, "n": "1"}]
    assert csv.field_size_limit() == before


def test_a_mark_is_left_out_wherever_files_were_joined(tmp_path: Path) -> None:
    path = tmp_path / "joined.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert values(path) == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("prompt,topic\na,b\n", [{"prompt": "a", "topic": "b"}]),
        ("topic\tPrompt\nb\ta\n", [{"topic": "b", "Prompt": "a"}]),
        ("prompt\nis a word\n", ["prompt", "is a word"]),
        ("a prompt, for example\nb\n", ["a prompt, for example", "b"]),
        ("[INST] hello [/INST]\n", ["[INST] hello [/INST]"]),
        ('["a", "b"]', ["a", "b"]),
        ("[]", []),
        ("", []),
        ("\n \n\t\n", []),
        ('text\n{"prompt": "a"}\n', ["text", {"prompt": "a"}]),
    ],
)
def test_a_pipe_without_a_name_is_told_by_its_content(
    monkeypatch: pytest.MonkeyPatch, text: str, found: list[Any]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert values(Path("-")) == found


# --- what cannot be read is named ---


def test_a_closed_standard_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python starts under `<&-` and some schedulers
    with pytest.raises(DataError, match="standard input is closed; give a file"):
        read_records(Path("-"), ("prompt",))


def test_bytes_in_a_table_are_no_object() -> None:
    assert describe_value(b"abc") == "bytes"


@pytest.mark.parametrize(
    ("text", "encoding", "words"),
    [
        ("good\nthe film was great \u2026 don\u2019t ask", "cp1252",
         ("a:2 is not UTF-8: byte 0x85 at offset 24", "'the film was great \u2026 don\u2019t ask'",
          "--encoding cp1252")),
        ("le caf\xe9 \xe9tait ferm\xe9\n", "latin-1", ("a:1 is not UTF-8", "--encoding cp1252")),
        ("\u0444\u0438\u043b\u044c\u043c \u0431\u044b\u043b \u0445\u043e\u0440\u043e\u0448\u0438\u0439 "
         "\u0438 \u0434\u043e\u0431\u0440\u044b\u0439\n", "cp1251",
         ("a:1 is not UTF-8", "--encoding cp1251")),
        ("go\non", "utf-16-le", ("a:1 contains NUL bytes", "--encoding utf-16-le")),
        ("go\non", "utf-16-be", ("a:1 contains NUL bytes", "--encoding utf-16-be")),
        ("go\non", "utf-32-le", ("a:1 contains NUL bytes", "--encoding utf-32-le")),
        ("go\non", "utf-32-be", ("a:1 contains NUL bytes", "--encoding utf-32-be")),
        ("go\ncaf\xe9", "utf-16-le", ("a:1 contains NUL bytes", "--encoding utf-16-le")),
        ("go\ncaf\xe9", "utf-16-be", ("a:1 contains NUL bytes", "--encoding utf-16-be")),
        ("go\ncaf\xe9", "utf-32-le", ("a:1 contains NUL bytes", "--encoding utf-32-le")),
        ("go\ncaf\xe9", "utf-32-be", ("a:1 contains NUL bytes", "--encoding utf-32-be")),
        ("one\ntwo\0", "utf-8", ("a:2 contains NUL bytes; the file may be damaged",)),
    ],
)  # fmt: skip
def test_other_encodings_are_refused_with_line_offset_and_remedy(
    tmp_path: Path, text: str, encoding: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "a"
    path.write_bytes(text.encode(encoding))
    said = refusal(path)
    for word in words:
        assert word in said
    if "--encoding" in said:  # the remedy works
        named = said.rpartition("--encoding ")[2]
        assert values(path, encoding=named) == text.splitlines()


def test_a_mark_and_a_named_encoding_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("one\ntwo".encode(encoding))
        plain = encoding.removesuffix("-sig")
        assert values(path, encoding=encoding) == values(path, encoding=plain) == ["one", "two"]
        assert "byte order mark" in refusal(path, encoding="latin-1")
    path.write_bytes(codecs.BOM_UTF16_LE + b"a\0b")
    assert "is not UTF-16-LE: byte 0x62 at offset 4" in refusal(path)
    with pytest.raises(DataError, match="unknown encoding 'utf-ate'"):
        values(path, encoding="utf-ate")


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60), suffix=st.sampled_from([".txt", ".json", ".jsonl", ".csv", ""]))
def test_any_bytes_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(data)
    said = ""
    try:
        values(path)
    except DataError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"a": 1}\nplain\n', ":2 is not a JSON object (Expecting value at column 1); if the"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', ":2 is not a JSON object"),
        ("a.json", '[\n {"a": 1},\n {"a": 2\n]', ":4 is not valid JSON (Expecting ',' delimiter"),
        ("a.json", '[{"a": 1}', ":1 is not valid JSON"),
        ("a", "{name}, tell me\n", ":1 is not a JSON object"),
        ("a", '[{"a": 1}\n', ":2 is not valid JSON"),
        ("a.json", "[" * 200_000, "nests too deeply"),
        ("a.json", "1" * 5000, "is not valid JSON"),
        ("a.csv", "prompt,n\na,1\nb\n", ":3 has fewer columns than the header: 1, not 2"),
        ("a.csv", 'prompt\n"x\ny"\nHello, world\n', ":4 has more columns than the header: 2, not 1"),
        ("a.csv", 'prompt,n\na,1\n"b,2\nc,3\n', ", after line 2: unexpected end of data"),
        ("a.csv", "prompt,prompt\na,1\n", "has column 'prompt' twice"),
        ("a.txt", "one\rtwo\r", "carriage returns and no line feeds"),
        ("a.parquet", "prompt\na\n", "is not a Parquet file"),
        ("a.xlsx", "PK\x03\x04", "an Excel workbook; unpack it, or save the sheet as CSV"),
        ("a.zst", b"\x28\xb5\x2f\xfd\0", "compressed with Zstandard"),
    ],
)  # fmt: skip
def test_damage_is_named_by_its_place(
    tmp_path: Path, name: str, text: str | bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refusal(path)


def test_paths_that_are_not_files_are_named(tmp_path: Path) -> None:
    assert "file with spaces.txt does not exist" in refusal(tmp_path / "file with spaces.txt")
    assert "is a directory; give a file" in refusal(tmp_path)
    (tmp_path / "train.jsonl").write_text("{}")
    assert "give one of its files: train.jsonl" in refusal(tmp_path)


# --- Parquet, Arrow and datasets ---

ROWS = [
    {"prompt": "one\u2028two", "messages": None, "n": 1},
    {"prompt": "", "messages": [{"role": "user", "content": "h\xe9"}], "n": 2},
]
READ = [{name: row[name] for name in ("prompt", "messages")} for row in ROWS]


def test_parquet_and_arrow_are_read_by_their_content(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table, tmp_path / "b")
    feather.write_feather(table, str(tmp_path / "c.feather"))
    for name in ("a.parquet", "b", "c.feather"):
        assert values(tmp_path / name, "messages", "prompt") == [
            {"messages": row["messages"], "prompt": row["prompt"]} for row in ROWS
        ]
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert "is damaged or truncated" in refusal(tmp_path / "a.parquet")


def test_a_column_twice_is_refused_in_parquet_as_in_csv(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    one, two = pyarrow.array(["a"]), pyarrow.array(["b"])
    for names in (["prompt", "prompt"], ["n", "n"]):
        table = pyarrow.table([one, two, one], names=[*names, "prompt" if "n" in names else "n"])
        parquet.write_table(table, tmp_path / "a.parquet")
        if "n" not in names[:1]:
            assert "has column 'prompt' twice" in refusal(tmp_path / "a.parquet")
        else:  # nobody asks for the other
            assert values(tmp_path / "a.parquet") == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"},\n{"prompt": "b"},\n', "no comma after the last item"),
        ('{"prompt": "a",}\n', "no comma after the last item"),
        ('[{"prompt": "a"},\n]', "no comma after the last item"),
        ('{"prompt": ["a",]}', "no comma after the last item"),
        ("{'prompt': 'a'}\n", "keys in double quotes"),
        ('// c\n{"prompt": "a"}\n', "no comments"),
        ('[{"prompt": "a"} {"prompt": "b"}]', "commas between items"),
        ('[{"prompt": "a"}', "may be truncated"),
        ('[{"prompt": "a', "may be truncated"),
        ('[{"prompt": ', "may be truncated"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_the_remedy_for_json_says_what_is_wrong_with_it(
    tmp_path: Path, suffix: str, text: str, words: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(text)
    assert words in refusal(path)


@pytest.mark.parametrize("row", ['"a" ,1', '"a"b,1', r'"a \"b\"",1'])
def test_odd_quotes_in_csv_are_refused_with_the_rule(tmp_path: Path, row: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,n\n{row}\n")
    assert "quotes within it are doubled" in refusal(path)


def test_a_dataset_on_disk_and_its_json_are_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "one"))
    assert values(tmp_path / "one", "prompt", "messages") == READ
    dataset.select([1]).save_to_disk(str(tmp_path / "part"), num_shards=1)
    assert values(tmp_path / "part", "prompt", "messages") == READ[1:]
    datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(str(tmp_path / "two"))
    assert f"the splits train, test; give one, such as {tmp_path / 'two' / 'train'}" in refusal(
        tmp_path / "two"
    )
    assert values(tmp_path / "two" / "train", "prompt", "messages") == READ
    for name, options in {"a.json": {}, "b.json": {"lines": False, "indent": 2}}.items():
        dataset.to_json(str(tmp_path / name), **options)
        assert values(tmp_path / name) == ROWS
    (tmp_path / "one" / "state.json").write_text("{")
    assert "is damaged" in refusal(tmp_path / "one")


def test_parquet_without_pyarrow_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "needs pyarrow; install it" in refusal(tmp_path / "a.parquet")


def test_messages_without_an_option_name_none() -> None:
    for data in ("caf\xe9".encode("latin-1"), b"a\0b\0"):
        with pytest.raises(DataError, match=r"save the file as UTF-8$"):
            decode_text(data, "configuration", option=None)
