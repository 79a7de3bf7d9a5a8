"""The reward cache: its forms, its columns, the estimate of F, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.cache import jsonl as cache_lines
from training.cache import write_columns as columns_writer
from training.cache.open_columns import source_digest
from training.cache.reward_cache import RewardCache
from vbon.errors import DataError, ExportError
from vbon.prompts import Prompt

EOS = 0
ROOT = Path(__file__).resolve().parents[2]


class Letters:
    """A tokenizer of one token a letter, in which upper and lower case are one token."""

    eos_token_id = EOS
    chat_template: str | None = "of sorts"

    def get_vocab(self) -> dict[str, int]:
        return {"a": ord("a")}

    def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else text
        ids = [[ord(letter) for letter in text.lower()] for text in texts]
        return {"input_ids": ids[0] if isinstance(text, str) else ids}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"<{message['content']}>" for message in messages)


def ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def write(path: Path, *records: object) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(path: Path, *records: object, max_new_tokens: int = 4) -> RewardCache:
    if records:
        write(path, *records)
    return RewardCache.open(path, Letters(), max_new_tokens=max_new_tokens)


def cache_of(rewards: Sequence[float]) -> RewardCache:
    return RewardCache.from_rewards({(1,): rewards})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.jsonl"


# --- what the lines become ---


def test_both_forms_are_read_and_pooled_in_the_order_of_the_file(path: Path) -> None:
    cache = opened(
        path,
        {"prompt": "a", "responses": ["x", "y"], "rewards": [2.0, 1.0]},
        {"prompt": "b", "text": "z", "reward": 5},
        {"prompt": "b", "text": "", "reward": 4.5},
        {"prompt": "a", "responses": ["vv"], "rewards": [0.0]},
    )
    assert (len(cache), cache.smallest, cache.has_responses) == (2, 2, True)
    assert [cache.prompt(row) for row in range(2)] == [Prompt(text="a"), Prompt(text="b")]
    assert cache.prompt_ids(1) == ids("b")
    np.testing.assert_array_equal(cache.rewards(0), [2.0, 1.0, 0.0])
    np.testing.assert_array_equal(cache.sorted_rewards(0), [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(cache.rewards(1), [5.0, 4.5])
    assert cache.responses(0) == [[*ids("x"), EOS], [*ids("y"), EOS], [*ids("vv"), EOS]]
    assert cache.responses(1) == [[*ids("z"), EOS], [EOS]]
    assert cache.response(0, 2) == cache.response(0, -1) == [*ids("vv"), EOS]
    with pytest.raises(IndexError):
        cache.response(0, 3)


def test_prompts_of_the_same_tokens_are_one_row(path: Path) -> None:
    cache = opened(
        path,
        {"prompt": "ab", "rewards": [2.0]},
        {"prompt": "cd", "rewards": [7.0, 8.0]},
        {"prompt": "AB", "rewards": [1.0]},
        {"prompt": "ab", "rewards": [0.0]},
    )
    assert (len(cache), cache.smallest) == (2, 2)
    assert cache.prompt(0).text == "ab"
    np.testing.assert_array_equal(cache.rewards(cache.row_of(ids("ab"))), [2.0, 1.0, 0.0])
    np.testing.assert_array_equal(cache.rewards(cache.row_of(ids("cd"))), [7.0, 8.0])


def test_a_chat_keeps_its_turns_and_is_not_the_text_of_the_same_words(path: Path) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "é"}]
    chat = {"prompt": "user: hi\nassistant: é", "messages": turns, "rewards": [1, 2]}
    cache = opened(path, chat, {"prompt": chat["prompt"], "rewards": [3]})
    assert len(cache) == 2
    assert cache.prompt(0).messages == tuple(turns)
    assert cache.prompt_ids(0) == ids("<hi><é>")
    assert cache.prompt(1) == Prompt(text=chat["prompt"])


@pytest.mark.parametrize(
    ("reason", "text", "expected"),
    [
        ("stop", "abcd", [*ids("abcd"), EOS]),
        ("length", "abcdef", ids("abcd")),
        ("length", "ab", ids("ab")),  # decoding may have dropped special tokens
        (None, "abc", [*ids("abc"), EOS]),
        (None, "abcd", ids("abcd")),
    ],
)
def test_eos_follows_what_was_not_cut_off(
    path: Path, reason: str | None, text: str, expected: list[int]
) -> None:
    record: dict[str, object] = {"prompt": "a", "responses": [text], "rewards": [1]}
    if reason is not None:
        record["finish_reasons"] = [reason]
    assert opened(path, record).responses(0) == [expected]


def test_sampled_ids_are_taken_as_they_are(path: Path) -> None:
    drawn = [[7, 8, EOS], [9, 9, 9, 9]]
    record = {"prompt": "a", "responses": ["x", "y"], "rewards": [1, 2], "response_ids": drawn}
    assert opened(path, record).responses(0) == drawn


def test_a_cache_of_rewards_only_serves_all_but_responses(path: Path) -> None:
    cache = opened(path, {"prompt": "a", "rewards": [1, 2]})
    assert not cache.has_responses
    assert cache.log_cdf(0, np.array([1.5])) == pytest.approx(math.log(2 / 3))
    for ask in (lambda: cache.responses(0), lambda: cache.response(0, 0)):
        with pytest.raises(DataError, match="'a' of the reward cache has rewards but no responses"):
            ask()


def test_a_prompt_with_some_responses_missing_does_not_spoil_the_others(path: Path) -> None:
    cache = opened(
        path,
        {"prompt": "a", "responses": ["x"], "rewards": [1]},
        {"prompt": "b", "responses": ["y"], "rewards": [2]},
        {"prompt": "a", "rewards": [3]},
    )
    assert not cache.has_responses
    assert cache.responses(1) == [[*ids("y"), EOS]]
    with pytest.raises(DataError, match="no responses"):
        cache.responses(0)


def test_rows_handed_out_may_be_written_to(path: Path) -> None:
    cache = opened(path, {"prompt": "a", "rewards": [2, 1]})
    cache.rewards(0)[:] = 0
    cache.sorted_rewards(0)[:] = 0
    np.testing.assert_array_equal(cache.rewards(0), [2, 1])
    np.testing.assert_array_equal(cache.sorted_rewards(0), [1, 2])


# --- the estimate of F ---


def test_log_cdf_is_the_smoothed_strict_rank() -> None:
    cache = cache_of([3.0, 1.0, 1.0, 2.0])
    values = np.array([0.0, 1.0, 1.5, 2.0, 9.0])
    expected = np.log(np.array([1, 1, 3, 3, 5]) / 5)
    np.testing.assert_allclose(cache.log_cdf(0, values), expected)
    inclusive = np.log(np.array([1, 3, 3, 4, 5]) / 5)
    np.testing.assert_allclose(cache.log_cdf(0, values, inclusive=True), inclusive)


def test_quantiles_of_cached_rewards_are_middles_of_their_steps() -> None:
    cache = cache_of([3.0, 1.0, 4.0, 2.0])
    found = np.exp(cache.log_quantile(0, np.array([1.0, 2.0, 3.0, 4.0])))
    np.testing.assert_allclose(found, [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    tied = np.exp(cache_of([3.0, 1.0, 1.0, 2.0]).log_quantile(0, np.array([1.0, 2.0, 3.0])))
    np.testing.assert_allclose(tied, [2 / 8, 5 / 8, 7 / 8])  # ranks 1 and 2 share 3/2


@pytest.mark.parametrize(("m", "mean"), [(4, -0.65), (16, -0.86), (64, -0.95), (300, -0.987)])
def test_mean_log_cdf_under_the_reference_tends_to_minus_one(m: int, mean: float) -> None:
    """Derived: a fresh sample's rank among M is uniform on 0..M, so the mean is a finite sum."""
    expected = sum(math.log((rank + 1) / (m + 1)) for rank in range(m + 1)) / (m + 1)
    assert expected == pytest.approx(mean, abs=0.01)
    fresh = np.arange(m + 1) - 0.5  # one in each gap between the cached rewards
    assert cache_of(np.arange(m, dtype=float)).log_cdf(0, fresh).mean() == pytest.approx(expected)


def test_tied_share_counts_pairs_and_is_a_mean_over_prompts() -> None:
    # 1 of 3 pairs; all 1 pair; no pair to look at.
    cache = RewardCache.from_rewards({(1,): [1, 2, 1], (2,): [5, 5], (3,): [9]})
    assert cache.tied_share() == pytest.approx((1 / 3 + 1) / 2)
    assert cache_of([1.0]).tied_share() == 0.0


def test_warnings() -> None:
    assert cache_of(np.arange(64.0)).warn_about(16) == []
    flat = RewardCache.from_rewards({(1,): np.ones(64), (2,): np.arange(64.0)})
    assert "1 of 2 prompts have all-equal rewards (first: '1')" in flat.warn_about(16)[0]
    small = cache_of(np.arange(63.0))
    assert "M = 63" in small.warn_about(16)[0]
    assert small.warn_about(None) == []


def test_a_cache_that_tells_nothing_apart_is_refused() -> None:
    RewardCache.from_rewards({(1,): [1, 1], (2,): [1, 2]}).check_informative()
    for rewards in ({(1,): [1, 1], (2,): [2, 2, 2]}, {(1,): [1.0]}):
        with pytest.raises(DataError, match="all equal, so there is nothing to learn from"):
            RewardCache.from_rewards(rewards).check_informative()


# --- what is refused ---

OK = {"prompt": "a", "responses": ["x"], "rewards": [1]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ('{"prompt": "a", "rew', "not valid JSON"),
        ({"rewards": [1]}, "no string"),
        ("[" * 200_000, "not valid JSON"),
        ({"prompt": "caf\ud83d", "rewards": [1]}, "half a character"),
        ({"prompt": "a", "responses": ["\ude00"], "rewards": [1]}, "half a character"),
        ({"prompt": "a", "text": "\ude00", "reward": 1}, "half a character"),
        ({"prompt": "a"}, "neither"),
        ({"prompt": "a", "rewards": []}, "at least one"),
        ({"prompt": "a", "rewards": ["x"]}, "'x' is not a number"),
        ({"prompt": "a", "rewards": [1.0, True]}, "True is not a number"),
        ('{"prompt": "a", "rewards": [1, NaN]}', "nan is not finite"),
        ('{"prompt": "a", "text": "b", "reward": Infinity}', "inf is not finite"),
        ({"prompt": "a", "rewards": [10**400]}, "too large for a float"),
        ({"prompt": "a", "responses": ["x"], "rewards": [1, 2]}, "1 responses but 2 rewards"),
        ({"prompt": "a", "responses": "x", "rewards": [1]}, '"responses" must be a list'),
        ({"prompt": "a", "responses": [1], "rewards": [1]}, "not a text"),
        (OK | {"finish_reasons": ["stop", "stop"]}, "2 finish_reasons but 1 rewards"),
        (OK | {"response_ids": [[1], [2]]}, "2 response_ids but 1 rewards"),
        (OK | {"response_ids": [[]]}, "non-empty lists of token ids"),
        (OK | {"response_ids": [["1"]]}, "non-empty lists of token ids"),
        (OK | {"response_ids": [[-1]]}, "non-empty lists of token ids"),
        (OK | {"response_ids": [[1] * 5]}, "5 tokens, over max_new_tokens = 4"),
        (OK | {"messages": [{"role": "user"}]}, '"messages" must be turns'),
        (OK | {"messages": [{"role": "user", "content": 1}]}, '"messages" must be turns'),
        (OK | {"messages": [{"role": "user", "content": "\ud83d"}]}, "half a character"),
    ],
)
def test_a_bad_line_is_named(path: Path, record: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        opened(path, {"prompt": "ok", "rewards": [1.0]}, record)
    assert "cache.jsonl:2" in str(caught.value)
    assert list(path.parent.iterdir()) == [path]


def test_a_token_beyond_the_policys_vocabulary_is_named_by_line(path: Path) -> None:
    write(path, *(OK | {"prompt": name, "response_ids": [[7, 9]]} for name in "ab"))
    for size in (8, 9):
        with pytest.raises(DataError, match=rf"jsonl:1 has token id 9, .* ends at {size - 1}"):
            RewardCache.open(path, Letters(), max_new_tokens=4, vocab_size=size)
    assert len(RewardCache.open(path, Letters(), max_new_tokens=4, vocab_size=10)) == 2
    with pytest.raises(DataError, match="token id 9"):  # what was compiled for another policy
        RewardCache.open(path, Letters(), max_new_tokens=4, vocab_size=9)


def test_a_cache_that_may_not_be_read_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, OK)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    for ask in (lambda: source_digest(path), lambda: opened(path)):
        with pytest.raises(DataError, match=r"cannot read .*cache\.jsonl: Permission denied"):
            ask()


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        opened(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is empty"):
        opened(tmp_path / "empty.jsonl", "")


def test_a_prompt_never_sampled_is_named(path: Path) -> None:
    cache = opened(path, {"prompt": "a", "rewards": [1]}, {"prompt": "b", "rewards": [1]})
    with pytest.raises(DataError, match=r"ids \[1, 2, .*8, \.\.\.\] is not in .* \(2 prompts\)"):
        cache.row_of(range(1, 20))
    for token in range(200, 240):  # keys before, between and after those that are there
        with pytest.raises(DataError, match="not in the reward cache"):
            cache.row_of([token])


def test_a_prompt_that_cannot_be_encoded_is_named(path: Path) -> None:
    with pytest.raises(DataError, match="'' has no tokens"):
        opened(path, {"prompt": "", "rewards": [1]})


# --- the columns on disk ---


def no_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("parsed again")

    monkeypatch.setattr(cache_lines, "parse", fail)


def columns(path: Path) -> Path:
    return path.with_name(path.name + ".columns")


def test_compiled_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(path, OK)
    assert not list(columns(path).glob("*.spool"))
    assert len(first.sha256) == 64
    no_parsing(monkeypatch)
    again = opened(path)
    assert again.responses(0) == [[*ids("x"), EOS]]
    assert again.sha256 == first.sha256
    assert isinstance(again._columns.rewards.base, np.memmap)


def test_a_copied_file_is_read_but_not_compiled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(path, OK)
    os.utime(path, ns=(1, 1))
    no_parsing(monkeypatch)
    opened(path)
    monkeypatch.setattr("hashlib.file_digest", None)  # the new time was written down
    opened(path)


def test_digest_is_taken_once_for_a_file_and_again_when_it_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = opened(path, OK).sha256
    assert compiled == hashlib.sha256(path.read_bytes()).hexdigest()
    with monkeypatch.context() as patched:
        patched.setattr("hashlib.file_digest", None)
        assert source_digest(path) == compiled
    path.write_text(path.read_text() + "\n")
    assert source_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest() != compiled
    shutil.rmtree(columns(path))
    assert source_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_compiled_again_when_what_it_was_made_from_changes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(path, OK)
    assert len(opened(path, OK, OK | {"prompt": "b"})) == 2
    assert opened(path, OK | {"rewards": [3]}).rewards(0) == [3]
    long = OK | {"responses": ["abcdef"]}
    assert opened(path, long).responses(0) == [ids("abcd")]
    assert opened(path, max_new_tokens=5).responses(0) == [ids("abcde")]
    monkeypatch.setattr(Letters, "eos_token_id", 99)
    assert opened(path, max_new_tokens=9).responses(0) == [[*ids("abcdef"), 99]]
    monkeypatch.setattr(Letters, "eos_token_id", 98)
    assert opened(path, max_new_tokens=9).responses(0) == [[*ids("abcdef"), 98]]


@pytest.mark.parametrize("name", ["rewards.npy", "keys.npy", "prompts.jsonl", "index.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short", "other bytes"])
def test_damaged_columns_are_mended(path: Path, name: str, damage: str) -> None:
    opened(path, OK, OK | {"prompt": "b"})
    file = columns(path) / name
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-3] if damage == "cut short" else b"{}")
    cache = opened(path)
    assert [cache.prompt(row).text for row in (0, 1)] == ["a", "b"]
    assert cache.row_of(ids("b")) == 1
    assert file.read_bytes() == whole


def test_any_flipped_bit_of_the_columns_is_mended(path: Path) -> None:
    """Flipped bits of values are noticed too, although the files still fit together."""
    first = opened(path, OK, {"prompt": "b", "responses": ["y", "z"], "rewards": [1.5, 2.5]})
    rewards, drawn = first.rewards(1), first.responses(1)
    for file in sorted(columns(path).iterdir()):
        whole = file.read_bytes()
        spoilt = bytearray(whole)
        spoilt[len(whole) * 3 // 4] ^= 8
        file.write_bytes(spoilt)
        cache = opened(path)
        np.testing.assert_array_equal(cache.rewards(1), rewards)
        assert cache.responses(1) == drawn
        if file.name != "index.json":  # which says when the file was last looked at
            assert file.read_bytes() == whole
    assert source_digest(path) == first.sha256


def test_freshness_does_not_trust_times_of_modification(path: Path) -> None:
    """Other content of the same size, with the very times of the old: as after a clock's jump."""
    opened(path, OK | {"rewards": [1.5]})
    times = path.stat()
    write(path, OK | {"rewards": [2.5]})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert source_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert opened(path).rewards(0) == [2.5]


def test_a_column_of_another_length_is_mended(path: Path) -> None:
    opened(path, OK)
    np.save(columns(path) / "distinct.npy", np.full(100, 2, dtype=np.int32))
    with pytest.raises(DataError, match="all equal"):
        opened(path).check_informative()


def test_two_at_once_compile_once(path: Path) -> None:
    encoded = []

    class Slow(Letters):
        def __call__(self, text: str | list[str], add_special_tokens: bool = True) -> Any:
            if text == "a":
                encoded.append(text)
                time.sleep(0.1)
            return super().__call__(text, add_special_tokens)

    write(path, OK)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(RewardCache.open, path, Slow(), max_new_tokens=4) for _ in range(2)]
        assert [len(run.result()) for run in runs] == [1, 1]
    assert encoded == ["a"]


def test_an_error_in_the_middle_keeps_the_old_columns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(path, OK)
    before = sorted(columns(path).iterdir())
    with pytest.raises(DataError):
        opened(path, OK, "{")
    assert sorted(columns(path).iterdir()) == before
    monkeypatch.setattr(os, "posix_fallocate", disk_full)
    with pytest.raises(ExportError, match="No space left"):
        opened(path, OK, OK)
    assert sorted(columns(path).iterdir()) == before
    assert sorted(path.parent.iterdir()) == [path, columns(path)]


def disk_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_kill_in_the_middle_leaves_no_half_directory(path: Path) -> None:
    write(path, *(OK | {"prompt": "p" * n} for n in range(1, 9)))
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from training.cache.reward_cache import RewardCache; from tests.unit.test_cache import Letters\n"
        "class Killed(Letters):\n"
        "    def __call__(self, text, **options):\n"
        "        if text == 'p' * 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().__call__(text, **options)\n"
        "RewardCache.open(Path(sys.argv[1]), Killed(), max_new_tokens=4)\n"
    )
    run = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(run, cwd=ROOT, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not columns(path).exists()
    assert len(opened(path)) == 8
    assert sorted(path.parent.iterdir()) == [path, columns(path)]


def test_two_thousand_prompts_are_never_in_memory(path: Path) -> None:
    prompts, samples = 2000, 256
    generator = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(prompts):
            rewards = generator.normal(size=samples).round(4).tolist()
            file.write(json.dumps({"prompt": f"prompt {number}", "rewards": rewards}) + "\n")
    size = prompts * samples * 8
    tracemalloc.start()
    try:
        opened(path)
        compiling = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        cache = opened(path)
        for number in (0, 7, 1999):
            row = cache.row_of(ids(f"prompt {number}"))
            assert row == number
            assert cache.log_cdf(row, cache.rewards(row)).shape == (samples,)
        assert cache.warn_about(16) == []
        cache.check_informative()
        opening = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert compiling < size / 2
    assert opening < size / 4  # but for the blocks through which columns are checked
    # Among them keys that end in a zero byte, which numpy's byte strings do not tell from padding.
    assert all(cache.row_of(cache.prompt_ids(row)) == row for row in range(prompts))


def test_samples_are_pooled_across_blocks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaved single-response lines, with blocks far smaller than the file."""
    monkeypatch.setattr(cache_lines, "BLOCK", 3)
    monkeypatch.setattr(columns_writer, "BLOCK", 2)
    records = [
        {"prompt": "abc"[n % 3], "text": "y" * (n % 4), "reward": n, "response_ids": [[n, n + 1]]}
        if n % 2 else {"prompt": "abc"[n % 3], "text": "y" * (n % 4), "reward": n}
        for n in range(20)
    ]  # fmt: skip
    cache = opened(path, *records)
    for row in range(3):
        drawn = range(row, 20, 3)
        assert cache.rewards(row).tolist() == list(drawn)
        assert cache.responses(row) == [
            [n, n + 1] if n % 2 else [*ids("y" * (n % 4)), EOS] for n in drawn
        ]


# --- log-probabilities of the reference ---


def test_log_probabilities_are_kept_by_key(path: Path) -> None:
    records = [{"prompt": "a", "rewards": [1, 2]}, {"prompt": "b", "rewards": [3]}]
    cache = opened(path, *records)
    assert not cache.load_ref_logprob("rev/1.0")
    assert cache.ref_logprob(0) is None
    cache.store_ref_logprob((np.array(row) for row in ([-1.0, -2.0], [-3.0])), "rev/1.0")
    for kept in (cache, opened(path)):
        assert kept.load_ref_logprob("rev/1.0")
        assert not kept.load_ref_logprob("rev/0.5")
        np.testing.assert_array_equal(kept.ref_logprob(0), [-1, -2])
        np.testing.assert_array_equal(kept.ref_logprob(1), [-3])
    in_memory = RewardCache.from_rewards({(1,): [1, 2]})
    in_memory.store_ref_logprob([np.array([-1.0, -2.0])], "any")
    np.testing.assert_array_equal(in_memory.ref_logprob(0), [-1, -2])


@pytest.mark.parametrize("values", [[[-1.0]], [[-1.0], [-2.0]], [[-1.0, -2.0], [-3.0], [-4.0]]])
def test_log_probabilities_that_do_not_fit_are_not_written(
    path: Path, values: list[list[float]]
) -> None:
    cache = opened(path, {"prompt": "a", "rewards": [1, 2]}, {"prompt": "b", "rewards": [3]})
    before = sorted(columns(path).iterdir())
    with pytest.raises(ValueError, match=r"for 2 samples|argument"):
        cache.store_ref_logprob((np.array(row) for row in values), "key")
    assert sorted(columns(path).iterdir()) == before


def test_damaged_log_probabilities_are_not_taken(path: Path) -> None:
    cache = opened(path, {"prompt": "a", "rewards": [1, 2]})
    cache.store_ref_logprob([np.array([-1.0, -2.0])], "key")
    [file] = columns(path).glob("ref_logprob-*.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not opened(path).load_ref_logprob("key")


def test_log_probabilities_are_not_mixed_up_with_another_file(path: Path) -> None:
    old = opened(path, {"prompt": "a", "rewards": [1, 2]})
    old.store_ref_logprob([np.array([-1.0, -2.0])], "key")
    new = opened(path, {"prompt": "a", "rewards": [2, 1]})
    assert not new.load_ref_logprob("key")
    with pytest.raises(ExportError, match="it changed; run again"):
        old.store_ref_logprob([np.array([-1.0, -2.0])], "key")


def test_a_full_disk_leaves_no_half_column(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = opened(path, {"prompt": "a", "rewards": [1, 2]})
    before = sorted(columns(path).iterdir())
    monkeypatch.setattr(os, "posix_fallocate", disk_full)
    with pytest.raises(ExportError, match="No space left"):
        cache.store_ref_logprob([np.array([-1.0, -2.0])], "key")
    assert sorted(columns(path).iterdir()) == before
