"""The file of API keys, and the commands that edit it."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.auth import keys as keys_module
from service.auth import watch
from service.auth.commands import keys_cli
from service.auth.keys import ApiKey, Keyring, change_keys, new_key, read_keys, write_keys
from vbon.errors import DataError
from vbon.storage import locks
from vbon.storage.locks import sole_writer


def command(*arguments: str, fails: bool = False) -> str:
    done = CliRunner().invoke(keys_cli, list(arguments))
    assert done.exit_code == (1 if fails else 0), done.output
    return done.stderr if fails else done.stdout


def test_the_file_holds_no_token_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    token = command("add", "ann", "--file", str(file), "--role", "admin").strip()
    assert token not in file.read_text()
    assert token.split("-", 2)[2] not in file.read_text()
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
    secret = other.split("-", 2)[2]
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


def test_a_key_taken_back_is_refused_and_a_spoilt_file_locks_nobody_out(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    (ann, first), (bob, second) = new_key("ann"), new_key("bob")
    write_keys(file, [ann, bob])
    keyring = Keyring(file)
    file.write_text('{"name": "ann"')
    keyring.look_again()
    assert keyring.find(first.encode()) is not None
    assert keyring.trouble is not None
    assert ":1:" in keyring.trouble
    write_keys(file, [bob])
    keyring.look_again()
    assert keyring.find(first.encode()) is None
    assert keyring.find(second.encode()) is not None
    assert keyring.trouble is None
    write_keys(file, [])  # the last one
    keyring.look_again()
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


@pytest.mark.parametrize("limit", ["max_sequences", "tokens_per_minute"])
def test_a_limit_that_is_no_number_of_computers_is_refused(tmp_path: Path, limit: str) -> None:
    """Each request with a key of 10^400 tokens a minute was an unexpected error."""
    file, flag = tmp_path / "keys.jsonl", f"--{limit.replace('_', '-')}"
    command("add", "ann", "--file", str(file), flag, str(2**53))
    assert getattr(read_keys(file)[0], limit) == 2**53
    done = CliRunner().invoke(keys_cli, ["add", "bob", "--file", str(file), flag, str(10**400)])
    assert (done.exit_code, "Traceback" in done.output) == (2, False)
    file.write_text(file.read_text().replace(str(2**53), str(10**400)))
    with pytest.raises(DataError, match=f":1: {limit}: .*{2**53}"):
        Keyring(file)


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


class Later:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_deleted_file_ends_all_keys_after_a_grace_and_a_restored_one_brings_them_back(
    tmp_path: Path,
) -> None:
    """Programs that replace a file by deleting it first have ten seconds."""
    file, clock = tmp_path / "keys.jsonl", Later()
    ann, token = new_key("ann")
    write_keys(file, [ann])
    keyring = Keyring(file, clock)
    content = file.read_bytes()
    for missing_s, valid in ((0.0, True), (9.5, True), (10.0, False), (60.0, False)):
        file.unlink(missing_ok=True)
        clock.now_s = missing_s
        keyring.look_again()
        assert (keyring.find(token.encode()) is not None) == valid
        assert "missing" in (keyring.trouble or "")
    file.write_bytes(content)
    keyring.look_again()
    assert keyring.find(token.encode()) is not None
    assert keyring.trouble is None
    file.unlink()
    keyring.look_again()  # the grace begins anew
    assert keyring.find(token.encode()) is not None


def test_a_key_removed_before_the_file_was_deleted_stays_removed(tmp_path: Path) -> None:
    file, clock = tmp_path / "keys.jsonl", Later()
    (ann, first), (bob, _) = new_key("ann"), new_key("bob")
    write_keys(file, [ann, bob])
    keyring = Keyring(file, clock)
    file.unlink()
    keyring.look_again()
    clock.now_s = 60.0
    keyring.look_again()
    file.write_text("damaged")  # must not bring back what the deletion ended
    keyring.look_again()
    assert keyring.find(first.encode()) is None
    write_keys(file, [bob])
    keyring.look_again()
    assert keyring.find(first.encode()) is None


@pytest.mark.parametrize("moment", ["mtime", "size"])
def test_a_change_that_keeps_size_or_time_is_seen(tmp_path: Path, moment: str) -> None:
    file = tmp_path / "keys.jsonl"
    (ann, first), (bob, second) = new_key("ann"), new_key("bob")
    write_keys(file, [ann])
    keyring, found = Keyring(file), file.stat()
    copied = file.read_text().replace(ann.id, bob.id).replace(ann.sha256, bob.sha256)
    file.write_text(copied + ("" if moment == "mtime" else "\n"))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    keyring.look_again()
    assert keyring.find(first.encode()) is None
    assert keyring.find(second.encode()) is not None


def test_commands_at_once_lose_no_change(tmp_path: Path) -> None:
    """Each command has a lock file of its own open, as in a process of its own."""
    file = tmp_path / "keys.jsonl"
    command("add", "bad", "--file", str(file))
    together = threading.Barrier(9)

    def change(name: str) -> None:
        together.wait()
        if name == "bad":
            change_keys(file, lambda keys: [key for key in keys if key.name != name])
        else:
            change_keys(file, lambda keys: [*keys, new_key(name)[0]])

    names = [f"key{i}" for i in range(8)]
    with ThreadPoolExecutor(9) as pool:
        list(pool.map(change, [*names, "bad"]))
    assert sorted(key.name for key in read_keys(file)) == names
    assert os.listdir(tmp_path) == ["keys.jsonl"]


def test_commands_read_the_file_only_while_no_other_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    file = tmp_path / "keys.jsonl"
    command("add", "ann", "--file", str(file))
    before = file.read_bytes()
    with sole_writer(file):
        for arguments in (("add", "bob"), ("remove", "ann")):
            words = command(*arguments, "--file", str(file), fails=True)
            assert "being written by another process" in words
            assert "--out" not in words
    assert file.read_bytes() == before


@pytest.mark.parametrize("arguments", [("add", "new"), ("remove", "ann")])
def test_a_command_says_so_when_an_editor_undoes_its_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str]
) -> None:
    file = tmp_path / "keys.jsonl"
    command("add", "ann", "--file", str(file))
    before = file.read_bytes()

    def write_and_lose(path: Path, keys: list[ApiKey]) -> None:
        write_keys(path, keys)
        file.write_bytes(before)

    monkeypatch.setattr(keys_module, "write_keys", write_and_lose)
    done = CliRunner().invoke(keys_cli, [*arguments, "--file", str(file)])
    assert done.exit_code == 1
    assert "at the same time" in done.stderr
    assert done.stdout == ""  # no token that is not valid


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "keys.jsonl", tmp_path / "link.jsonl"
    command("add", "ann", "--file", str(file))
    link.symlink_to(file)
    command("add", "bob", "--file", str(link))
    assert link.is_symlink()
    assert [key.name for key in read_keys(file)] == ["ann", "bob"]


def test_many_keys_are_read_in_proportion_to_their_number(tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    write_keys(file, [new_key(f"key{i}")[0] for i in range(8000)])
    begun = time.thread_time()
    assert len(read_keys(file)) == 8000
    # CPU time: a twentieth of a second; comparing each key with all before took 8 s.
    assert time.thread_time() - begun < 2.0


async def test_the_file_is_followed_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOK_AGAIN_S", 0.001)
    file = tmp_path / "keys.jsonl"
    (ann, token), (bob, _) = new_key("ann"), new_key("bob")
    write_keys(file, [ann, bob])
    keyring = Keyring(file)
    readers: set[int] = set()

    def read(path: Path) -> list[ApiKey]:
        readers.add(threading.get_ident())
        return read_keys(path)

    monkeypatch.setattr(keys_module, "read_keys", read)
    following = asyncio.create_task(watch.follow_keys(keyring))
    write_keys(file, [bob])
    async with asyncio.timeout(30):
        while keyring.find(token.encode()) is not None:  # noqa: ASYNC110  (until it is gone)
            await asyncio.sleep(0.001)
    following.cancel()
    assert readers
    assert threading.get_ident() not in readers
