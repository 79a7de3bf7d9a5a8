"""The file of API keys, and the commands that edit it."""

from __future__ import annotations

import hmac
import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.auth import keys as keys_module
from service.auth.commands import keys_cli
from service.auth.keys import Keyring, new_key, read_keys, write_keys
from vbon.errors import DataError


def command(*arguments: str, fails: bool = False) -> str:
    done = CliRunner().invoke(keys_cli, list(arguments))
    assert done.exit_code == (1 if fails else 0), done.output
    return done.stderr if fails else done.stdout


def test_the_file_holds_no_token_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    token = command("add", "ann", "--file", str(file), "--role", "admin").strip()
    assert token not in file.read_text()
    assert token.rsplit("-", 1)[1] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    caller = Keyring(file).find(token.encode())
    assert caller is not None
    assert (caller.name, caller.is_admin) == ("ann", True)


def test_a_file_that_an_editor_of_windows_saved_is_read(tmp_path: Path) -> None:
    key, token = new_key("ann")
    file = tmp_path / "keys.jsonl"
    write_keys(file, [key])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert Keyring(file).find(token.encode()) is not None


def test_commands_add_list_and_remove(tmp_path: Path) -> None:
    file = str(tmp_path / "keys.jsonl")
    first = command("add", "ann", "--file", file, "--max-sequences", "8").strip()
    second = command("add", "bob", "--file", file, "--tokens-per-minute", "1000").strip()
    assert first != second
    listed = [json.loads(line) for line in command("list", "--file", file).splitlines()]
    assert [(key["name"], key["role"]) for key in listed] == [("ann", "user"), ("bob", "user")]
    assert (listed[0]["max_sequences"], listed[1]["tokens_per_minute"]) == (8, 1000)
    assert all("sha256" not in key for key in listed)
    assert "already" in command("add", "ann", "--file", file, fails=True)
    assert "must be" in command("add", "a b", "--file", file, fails=True)
    command("remove", "ann", "--file", file)
    assert [key.name for key in read_keys(Path(file))] == ["bob"]
    assert "no key 'ann'" in command("remove", "ann", "--file", file, fails=True)


def test_wrong_tokens_find_nobody(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    (ann, token), (bob, other) = new_key("ann"), new_key("bob")
    write_keys(file, [ann, bob])
    keyring = Keyring(file)
    secret = other.rsplit("-", 1)[1]
    wrong = [
        "",
        "bok",
        token[:-1],
        token + "x",
        token.upper(),
        f"bok-{ann.id}-{secret}",
        f"bok-{'0' * 16}-{secret}",
        ann.sha256,
        f"bok-{ann.id}-{ann.sha256[:43]}",
        token + "\n",
    ]
    assert [keyring.find(text.encode()) for text in wrong] == [None] * len(wrong)
    assert keyring.find(b"bok-\xff\x00") is None


def test_every_look_up_compares_once_in_constant_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.jsonl"
    key, token = new_key("ann")
    write_keys(file, [key])
    keyring = Keyring(file)
    compared: list[tuple[str, str]] = []
    really = hmac.compare_digest

    def compare(a: str, b: str) -> bool:
        compared.append((a, b))
        return really(a, b)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)  # type: ignore[attr-defined]
    unknown = f"bok-{'0' * 16}-{'a' * 43}"
    for text in (token, unknown, "nonsense"):
        keyring.find(text.encode())
    assert len(compared) == 3
    assert all(len(a) == len(b) == 64 for a, b in compared)


def test_a_key_taken_back_is_refused_and_a_spoilt_file_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_module, "_LOOK_AGAIN_S", 0.0)
    file = tmp_path / "keys.jsonl"
    (ann, first), (bob, second) = new_key("ann"), new_key("bob")
    write_keys(file, [ann, bob])
    keyring = Keyring(file)
    file.write_text('{"name": "ann"')
    assert keyring.find(first.encode()) is not None
    assert keyring.trouble is not None
    assert ":1:" in keyring.trouble
    write_keys(file, [bob])
    assert keyring.find(first.encode()) is None
    assert keyring.find(second.encode()) is not None
    assert keyring.trouble is None
    write_keys(file, [])  # the last one
    assert keyring.find(second.encode()) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "contains no keys"),
        ("not json", ":1: "),
        ('{"name": "ann", "id": "0123456789abcdef", "sha256": "SECRET"}', "sha256"),
        ('{"name": "ann", "id": "0123456789abcdef", "sha256": "%s", "x": 1}' % ("a" * 64), "x: "),
        ('{"name": "ann", "id": "0123456789abcdef", "sha256": "%s"}\n' % ("a" * 64) * 2, "twice"),
    ],
)
def test_a_bad_file_is_named_by_line_without_showing_what_it_holds(
    tmp_path: Path, content: str, words: str
) -> None:
    file = tmp_path / "keys.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        Keyring(file)
    assert "SECRET" not in str(caught.value)
    assert "a" * 64 not in str(caught.value)


def test_a_missing_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keys add"):
        Keyring(tmp_path / "none.jsonl")


def test_no_repr_shows_a_hash() -> None:
    key, _ = new_key("ann")
    assert key.sha256 not in repr(key)


def test_a_look_up_costs_microseconds(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    pairs = [new_key(f"key{i}") for i in range(1000)]
    write_keys(file, [key for key, _ in pairs])
    keyring, token = Keyring(file), pairs[-1][1].encode()
    begun = time.thread_time()
    for _ in range(1000):
        keyring.find(token)
    # CPU time: about 5 microseconds each; a slow hash would take minutes.
    assert time.thread_time() - begun < 1.0
