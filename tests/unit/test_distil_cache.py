"""Reward caches of collected answers: nothing lost, nothing selected, and checked like any other cache."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.unit.collected import answer, everything, identity
from training.cache.jsonl import parse
from training.cache.metadata import check_made_with
from vbon.cli.main import app
from vbon.distil import cache as cache_module
from vbon.distil.answer import CollectedAnswer, Identity
from vbon.distil.cache import CacheOptions, CacheReport, make_cache
from vbon.distil.directory import CollectedDirectory
from vbon.distil.shard import SealedShard
from vbon.distil.split import is_held_out
from vbon.errors import DataError
from vbon.prompt_files import read_prompts
from vbon.storage.cache_metadata import metadata_path


@pytest.fixture(autouse=True, scope="module")
def _quick_provenance() -> Iterator[None]:
    """The record of versions and git revision, which takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache_module, "provenance", lambda config: {"config": config})
        yield


def collect(path: Path, answers: list[CollectedAnswer], made_by: Identity | None = None) -> None:
    directory = CollectedDirectory(path)
    for one in answers:
        assert directory.append(made_by or identity(), one) is None
    directory.close()


def cache_of(tmp_path: Path, answers: list[CollectedAnswer], **changes: Any) -> CacheReport:
    collect(tmp_path / "kept", answers)
    values = {"heldout_share": 0.0, "min_samples": 1, **changes}
    return make_cache(CacheOptions(tmp_path / "kept", tmp_path / "cache.jsonl", **values))


def lines_of(tmp_path: Path) -> list[dict[str, Any]]:
    text = (tmp_path / "cache.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def pairs_of(tmp_path: Path) -> dict[str, Counter[tuple[tuple[int, ...], float, str, str]]]:
    """(ids, reward, text, finish reason) of every sample in the cache, by prompt."""
    found: dict[str, Counter[Any]] = defaultdict(Counter)
    for line in lines_of(tmp_path):
        ids = map(tuple, line["response_ids"])
        columns = (ids, line["rewards"], line["responses"], line["finish_reasons"])
        found[line["prompt"]].update(zip(*columns, strict=True))
    return found


@st.composite
def streams(draw: st.DrawFn) -> list[CollectedAnswer]:
    """Answers to a few prompts, each sample with ids and a reward of its own."""
    found = []
    for number in range(draw(st.integers(1, 12))):
        count = draw(st.integers(1, 4))
        total = draw(st.integers(count, 6))
        seed = draw(st.sampled_from([None, None, 1, 2]))
        ids = tuple((number, index + 1, seed or 0) for index in range(count))
        found.append(
            answer(
                f"r-{number}",
                prompt=f"prompt {draw(st.integers(0, 3))}",
                responses=tuple(f" {one}" for one in ids),
                response_ids=ids,
                rewards=tuple(draw(st.sampled_from([0.1, 1 / 3, -2e-9])) for _ in range(count)),
                finish_reasons=("stop",) * count,
                indices=tuple(sorted(draw(st.permutations(range(total)))[:count])),
                independent=draw(st.sampled_from([0, 2, 6, 6, 6])),
                seed=seed,
            )
        )
    return found


@settings(max_examples=25)
@given(stream=streams())
def test_every_independent_sample_is_in_the_cache_once(
    tmp_path_factory: pytest.TempPathFactory, stream: list[CollectedAnswer]
) -> None:
    """The oracle walks the answers themselves: first come, first kept of those with the same seed."""
    expected: dict[str, Counter[Any]] = defaultdict(Counter)
    seen = set()
    for one in stream:
        assert one.response_ids is not None
        for i, index in enumerate(one.indices):
            drawn = (one.prompt, one.seed, index)
            if index >= one.independent or (one.seed is not None and drawn in seen):
                continue
            seen.add(drawn)
            sample = (one.response_ids[i], one.rewards[i], one.responses[i], "stop")
            expected[one.prompt][sample] += 1
    tmp_path = tmp_path_factory.mktemp("cache")
    if not expected:
        with pytest.raises(DataError, match="none of the"):
            cache_of(tmp_path, stream)
        return
    report = cache_of(tmp_path, stream)
    assert pairs_of(tmp_path) == expected
    assert report.samples == sum(counts.total() for counts in expected.values())
    assert report.prompts == len(expected) == len(lines_of(tmp_path))
    flat = sum(len({s[1] for s in samples}) == 1 for samples in expected.values())
    assert report.flat_prompts == flat
    kept_or_not = report.samples + report.stopped_samples + report.repeated_samples
    assert kept_or_not == sum(len(one.rewards) for one in stream)


def test_training_reads_it_and_checks_what_made_it(tmp_path: Path) -> None:
    chat = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    made_by = identity(eos_token_ids=(2, 7), max_new_tokens=8)
    collect(tmp_path / "kept", [answer(), answer(prompt="user: a", messages=chat)], made_by=made_by)
    make_cache(CacheOptions(tmp_path / "kept", tmp_path / "cache.jsonl", heldout_share=0.0))
    cache = tmp_path / "cache.jsonl"
    parsed = [parse(line, "here", 8) for line in cache.read_bytes().splitlines()]
    assert parsed[0].response_ids == [[1, 9], [2, 9]]
    assert parsed[0].truncated == [False, True]
    assert [one.prompt.messages for one in parsed] == [(), chat]
    run = {
        "policy_revision": "sha256:aa",
        "reward_revision": "sha256:bb",
        "max_new_tokens": 8,
        "temperature": 1.0,
        "missing_eos_reward": None,
    }
    check_made_with(cache, run, [2, 7])
    for name, other in (
        ("policy_revision", "sha256:cc"),
        ("reward_revision", "sha256:cc"),
        ("max_new_tokens", 9),
        ("temperature", 0.9),
        ("missing_eos_reward", -1.0),
    ):
        with pytest.raises(DataError, match=f"was sampled with {name}"):
            check_made_with(cache, {**run, name: other}, [2, 7])
    with pytest.raises(DataError, match="was sampled with eos_token_ids"):
        check_made_with(cache, run, None)
    cache.write_bytes(cache.read_bytes().replace(b"1.25", b"9.25"))
    with pytest.raises(DataError, match="its content is not what"):
        check_made_with(cache, run, [2, 7])


def test_the_newest_identity_is_taken_or_the_one_named(tmp_path: Path) -> None:
    hot = identity(temperature=1.5)
    collect(tmp_path / "kept", [answer(prompt="old", time=10.0)], made_by=hot)
    collect(tmp_path / "kept", [answer(prompt="new", time=20.0)])
    collect(tmp_path / "kept", [answer(prompt="older", time=5.0)], made_by=hot)
    options = CacheOptions(tmp_path / "kept", tmp_path / "cache.jsonl", heldout_share=0.0)
    make_cache(options)
    assert [line["prompt"] for line in lines_of(tmp_path)] == ["new"]
    make_cache(replace(options, identity=hot.digest[:4]))
    assert [line["prompt"] for line in lines_of(tmp_path)] == ["older", "old"]
    metadata = json.loads(metadata_path(options.output).read_text(encoding="utf-8"))
    assert metadata["identity"]["temperature"] == 1.5
    assert metadata["samples"] == {"scored": 4, "truncated": 2}
    with pytest.raises(DataError, match=f"names 0 of the identities.*{hot.digest}"):
        make_cache(replace(options, identity="xyz"))


def test_open_shards_are_not_used_and_the_message_says_so(tmp_path: Path) -> None:
    directory = CollectedDirectory(tmp_path)
    directory.append(identity(), answer())
    with pytest.raises(DataError, match=r"no sealed shards; its answers are in open shards"):
        make_cache(CacheOptions(tmp_path, tmp_path / "cache.jsonl"))
    directory.delete(["req-1"])
    directory.close()
    with pytest.raises(DataError, match=r"no sealed shards$"):
        make_cache(CacheOptions(tmp_path, tmp_path / "cache.jsonl"))
    with pytest.raises(DataError, match="is not a directory of collected answers"):
        make_cache(CacheOptions(tmp_path / "missing", tmp_path / "cache.jsonl"))


def test_held_out_prompts_never_train_and_always_are_the_same(tmp_path: Path) -> None:
    answers = [answer(f"r-{i}", prompt=f"prompt {i}") for i in range(200)]
    report = cache_of(tmp_path, answers, heldout_share=0.25)
    trained = {line["prompt"] for line in lines_of(tmp_path)}
    held_out = {prompt.text for prompt in read_prompts(tmp_path / "cache.heldout.jsonl")}
    assert not trained & held_out
    assert trained | held_out == {one.prompt for one in answers}
    # Binomial(200, 1/4) lies within 20..80 with probability 1 - 1e-6; the hash is fixed, so this is too.
    assert 20 < report.heldout_prompts == len(held_out) < 80
    more = {one.prompt for one in answers if is_held_out(one, 0.5)}
    assert held_out < more


def test_all_turns_of_a_conversation_are_on_one_side() -> None:
    system = {"role": "system", "content": "be brief"}
    for i in range(20):
        first = {"role": "user", "content": f"Question {i}"}
        turns = ({"role": "assistant", "content": "x"}, {"role": "user", "content": "and then?"})
        opening = answer(prompt="", messages=(system, first))
        later = answer(prompt="", messages=(system, first, *turns))
        spaced = replace(opening, messages=(system, {**first, "content": f"question  {i}\n"}))
        for share in (0.2, 0.5, 0.8):
            sides = {is_held_out(one, share) for one in (opening, later, spaced)}
            assert len(sides) == 1
    texts = [answer(prompt=f"{word} {i}") for i in range(99) for word in ("The  film", "the film")]
    assert all(
        is_held_out(a, 0.5) == is_held_out(b, 0.5)
        for a, b in zip(texts[::2], texts[1::2], strict=True)
    )


def test_too_few_or_too_many_samples_of_a_prompt_are_left_out(tmp_path: Path) -> None:
    answers = [answer(f"r-{i}", prompt="asked often") for i in range(10)]
    single = replace(
        answer(prompt="asked once"),
        responses=(" a",), response_ids=((3,),), rewards=(0.0,), finish_reasons=("stop",), indices=(0,),
    )  # fmt: skip
    report = cache_of(tmp_path, [*answers, single], min_samples=2, max_samples=7)
    (line,) = lines_of(tmp_path)
    assert (line["prompt"], len(line["rewards"])) == ("asked often", 7)
    assert (report.small_prompts, report.surplus_samples) == (1, 13)


def test_an_answer_whose_responses_were_redacted_keeps_its_texts(tmp_path: Path) -> None:
    hidden = answer("r-2", response_ids=None, responses=(" ***", " bad"), redacted=True)
    cache_of(tmp_path, [answer("r-1"), hidden])
    first, second = lines_of(tmp_path)
    assert first["response_ids"] == [[1, 9], [2, 9]]
    assert "response_ids" not in second
    assert second["responses"] == [" ***", " bad"]
    assert first["prompt"] == second["prompt"]  # one row, for whoever reads the cache


def test_the_reward_of_samples_that_were_cut_off_can_be_that_of_training(tmp_path: Path) -> None:
    cache_of(tmp_path, [answer()], missing_eos_reward=-3.0)
    (line,) = lines_of(tmp_path)
    assert line["rewards"] == [1.25, -3.0]
    metadata = json.loads((tmp_path / "cache.jsonl.meta.json").read_text(encoding="utf-8"))
    assert metadata["identity"]["missing_eos_reward"] == -3.0


def test_a_poisoned_stream_is_warned_about_with_figures(tmp_path: Path) -> None:
    same = {"rewards": (0.5, 0.5), "responses": (" yes", " yes")}
    answers = [answer(f"r-{i}", prompt="ping", key="k1", **same) for i in range(7)]
    answers += [
        answer(f"s-{i}", prompt=f"p {i}", key="k2", responses=(f" {i}", f" x{i}")) for i in range(3)
    ]
    warnings = list(cache_of(tmp_path, answers).suspicions.values())
    assert len(warnings) == 3
    assert "one API key sent 70% of the 10 answers" in warnings[0]
    assert "one prompt makes up 70% of the 10 answers" in warnings[1]
    assert "one response makes up 70% of 20 candidates" in warnings[2]
    for i in (0, 1):
        answers[i + 7] = replace(answers[i + 7], rewards=(2.0, 2.0))
    (tmp_path / "again").mkdir()
    assert (
        "the rewards of 3 of 4 prompts are all equal"
        in list(cache_of(tmp_path / "again", answers).suspicions.values())[-1]
    )


def test_usual_traffic_is_not_warned_about(tmp_path: Path) -> None:
    answers = [
        answer(f"r-{i}", prompt=f"p {chr(97 + i)}", key=f"k{i % 3}", responses=(f" {i}", f" x{i}"))
        for i in range(12)
    ]
    assert cache_of(tmp_path, answers).suspicions == {}


def test_prompts_that_differ_in_digits_and_punctuation_only_are_one_template(
    tmp_path: Path,
) -> None:
    texts = [f"say hello, no. {i}{'!' * (i % 3)}" for i in range(11)]
    texts += [f"tell me of {one}" for one in ("rain", "snow", "wind", "sun", "fog", "hail", "ice")]
    answers = [
        answer(f"r-{i}", prompt=text, responses=(f" {i}", f" x{i}")) for i, text in enumerate(texts)
    ]
    found = cache_of(tmp_path, answers).suspicions
    assert list(found) == ["template"]
    assert "61% of 18 prompts are the same text but for digits and punctuation" in found["template"]
    (tmp_path / "fewer").mkdir()
    assert cache_of(tmp_path / "fewer", answers[2:]).suspicions.keys() == {"template"}
    (tmp_path / "half").mkdir()
    assert cache_of(tmp_path / "half", answers[4:]).suspicions == {}  # 7 of 14


def test_a_damaged_shard_is_left_out_as_a_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "kept"
    collect(kept, [answer(prompt="good", time=1.0)])
    collect(kept, [answer(prompt="bad a", time=2.0), answer(prompt="bad b", time=2.0)])
    path = next(p for p in kept.glob("*.jsonl") if b"bad b" in p.read_bytes())
    path.write_bytes(path.read_bytes().replace(b"bad b", b"bad c"))
    report = make_cache(CacheOptions(kept, tmp_path / "cache.jsonl", heldout_share=0.0))
    assert [line["prompt"] for line in lines_of(tmp_path)] == ["good"]
    assert (report.damaged_shards, report.answers) == (1, 1)
    assert "not what was sealed" in caplog.text


def test_a_shard_that_is_removed_or_rewritten_meanwhile_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    collect(kept, [answer("gone", prompt="gone", time=1.0)])
    collect(kept, [answer("a", prompt="a", time=2.0), answer("b", prompt="b", time=2.0)])
    real, calls = SealedShard.answers, 0

    def answers(self: SealedShard, source: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:  # during the first reading of the first shard
            directory = CollectedDirectory(kept)
            assert directory.delete(["gone", "a"]) == 2
            directory.close()
        return real(self, source)

    monkeypatch.setattr(SealedShard, "answers", answers)
    make_cache(CacheOptions(kept, tmp_path / "cache.jsonl", heldout_share=0.0))
    prompts = [line["prompt"] for line in lines_of(tmp_path)]
    assert prompts == ["gone", "b"]  # what is read is read whole, and nothing is taken for damaged


def test_only_files_of_its_own_are_replaced(tmp_path: Path) -> None:
    cache_of(tmp_path, [answer()])
    options = CacheOptions(tmp_path / "kept", tmp_path / "cache.jsonl", heldout_share=0.0)
    make_cache(options)  # again
    metadata_path(options.output).unlink()
    with pytest.raises(DataError, match="was not made by this command"):
        make_cache(options)
    make_cache(replace(options, replace=True))
    (tmp_path / "mine.jsonl").write_text("my prompts", encoding="utf-8")
    with pytest.raises(DataError, match="choose another name"):
        make_cache(replace(options, output=tmp_path / "new.jsonl", heldout=tmp_path / "mine.jsonl"))
    with pytest.raises(DataError, match="are both"):
        make_cache(replace(options, heldout=options.output))


def test_a_failure_leaves_the_cache_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_of(tmp_path, [answer()])
    before = {path: path.read_bytes() for path in tmp_path.glob("cache*")}
    collect(tmp_path / "kept", [answer(prompt="another")])
    monkeypatch.setattr(cache_module, "_cache_lines", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_cache(CacheOptions(tmp_path / "kept", tmp_path / "cache.jsonl"))
    assert {path: path.read_bytes() for path in tmp_path.glob("cache*")} == before
    assert not list(tmp_path.glob("*.partial"))


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    answers = [answer(f"r-{i}", prompt=f"prompt {i}", key=f"k{i % 2}") for i in range(30)]
    collect(Path("kept"), answers)
    runner = CliRunner()
    shown = runner.invoke(app, ["distil", "status", "kept"])
    assert shown.exit_code == 0, shown.output
    assert "30 answers" in shown.output
    assert identity().digest in shown.output
    assert "2 API keys; one sent 50%" in shown.output
    removed = runner.invoke(app, ["distil", "delete", "kept", "r-3", "r-4", "r-3"])
    assert "removed 2 answers from kept" in removed.output
    assert b'"r-3"' not in everything(Path("kept"))
    made = runner.invoke(app, ["distil", "cache", "kept", "--heldout-share", "0.5"])
    assert made.exit_code == 0, made.output
    assert "from 28 answers" in made.output
    assert "held-out prompts" in made.output
    lines = len(Path("cache.jsonl").read_text(encoding="utf-8").splitlines())
    held_out = len(Path("cache.heldout.jsonl").read_text(encoding="utf-8").splitlines())
    assert lines + held_out == 28
    for command in (["status", "x"], ["delete", "x", "r"], ["cache", "x"]):
        failed = runner.invoke(app, ["distil", *command])
        assert failed.exit_code == 1
        assert "error: x is not a directory of collected answers" in failed.output
    taught = runner.invoke(app, ["distil", "cache", "--help"])
    assert "--heldout-share" in taught.output
    assert not Path("x").exists()
