"""``vbon bench reward`` on sides without models: texts, turns, agreement, and sides that fail."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.bench.processes import cpu_seconds, descendants, peak_mib
from service.bench.rewards import command, run
from service.bench.rewards.cells import Agreement, Cell, Contest
from service.bench.rewards.config import RewardBenchSettings
from service.bench.rewards.pooling import PoolingReward
from service.bench.rewards.sides import Side, classifier_of
from service.bench.rewards.texts import texts_of
from vbon.config import load_settings
from vbon.errors import CheckpointError, DataError, InvalidInputError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import Scorable

LIMIT = 64


def words_of(items: Sequence[Scorable]) -> list[int]:
    """A tokenizer with a token for each word and two special ones."""
    return [len((item.prompt.key + item.completion).split()) + 2 for item in items]


def letters_of(items: Sequence[Scorable]) -> list[int]:
    """A tokenizer with a token for each three letters, so that a length can be missed by a token."""
    return [-(-len(item.prompt.key + item.completion) // 3) for item in items]


@pytest.mark.parametrize("length", [8, 32, 128])
def test_texts_have_the_tokens_that_are_asked_for(length: int) -> None:
    rng = np.random.default_rng(0)
    items = texts_of([length] * 20, words_of, rng)
    assert words_of(items) == [length] * 20
    assert len({item.completion for item in items}) == 20
    counts = letters_of(texts_of([length] * 20, letters_of, rng))
    assert max(counts) <= length
    assert min(counts) >= length - 4  # the longest word has 6 letters and its space


class FakeModel:
    """A reward model that counts its calls, and scores by the words of a text."""

    revision = "fake"

    def __init__(self, name: str, off_by: float = 0.0, dies_at: int | None = None) -> None:
        self.name, self._off_by, self._dies_at = name, off_by, dies_at
        self.calls: list[list[Scorable]] = []

    def load(self) -> None: ...

    def close(self) -> None: ...

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        self.calls.append(list(items))
        if self._dies_at is not None and len(self.calls) >= self._dies_at:
            raise RewardError("the worker died")
        counts = words_of(items)
        return [n + self._off_by / len(items) if n <= LIMIT else None for n in counts]


def settings_of(**changes: Any) -> RewardBenchSettings:
    values = {"batches": [4], "lengths": [16], "pairs": 3, "seconds": 1e-9, "threads": 1}
    return RewardBenchSettings(**{**values, **changes})


def contest_of(*models: FakeModel, **changes: Any) -> Contest:
    sides = [Side(model.name, model, None) for model in models]  # type: ignore[arg-type]
    return Contest(settings_of(sides=[m.name for m in models], **changes), words_of, sides)


async def measured(contest: Contest, batch: int = 4, length: int = 16) -> Cell:
    cell = Cell(batch, length)
    await contest.measure(cell, np.random.default_rng(0))
    return cell


async def test_all_sides_score_the_same_new_texts_in_turns() -> None:
    one, other = FakeModel("worker"), FakeModel("vllm", off_by=0.5)
    contest = contest_of(one, other)
    cell = await measured(contest)
    assert one.calls == other.calls
    assert len(one.calls) == 5  # two before the three turns
    texts = [item.completion for call in one.calls[1:] for item in call]
    assert len(set(texts)) == len(texts)  # only the first call is repeated, as the trial
    assert [len(cell.rates[name]) for name in ("worker", "vllm")] == [3, 3]
    assert min(cell.rates["worker"]) > 0
    assert (cell.calls, cell.tokens) == (1, 16)
    # Every score of a call of 4 is off by 0.5 / 4; the untimed second call is not compared.
    assert contest.agreement == {("worker", "vllm"): Agreement(16, 0.125, 0)}


async def test_texts_of_a_call_may_differ_in_length() -> None:
    model = FakeModel("worker")
    cell = await measured(contest_of(model, spread=0.5), batch=64, length=32)
    lengths = [count for call in model.calls for count in words_of(call)]
    assert (min(lengths), max(lengths)) == (16, 32)
    assert 20 < cell.tokens < 28


async def test_a_side_that_fails_is_left_out_and_the_others_go_on() -> None:
    for dies_at in (1, 2, 4):  # in the first call, in the trial, in the second turn
        good, bad = FakeModel("worker"), FakeModel("vllm", dies_at=dies_at)
        contest = contest_of(bad, good)
        cell = await measured(contest)
        assert contest.excluded == {"vllm": "the worker died"}
        assert [side.name for side in contest.sides] == ["worker"]
        assert list(cell.rates) == ["worker"]
        assert len(cell.rates["worker"]) == 3
        await measured(contest)
        assert len(bad.calls) == dies_at


async def test_cells_beyond_the_model_or_the_memory_bound_are_left_out() -> None:
    model = FakeModel("worker")
    contest = contest_of(model, max_call_tokens=100)
    cell = await measured(contest, batch=8, length=16)
    assert "more than 100 tokens" in cell.why_not
    assert not model.calls
    cell = await measured(contest, batch=1, length=LIMIT + 1)
    assert "longer than the model's limit" in cell.why_not
    assert not cell.rates


async def test_a_cell_ends_when_its_time_is_over() -> None:
    cell = await measured(contest_of(FakeModel("worker"), pairs=50, cell_seconds=1e-9))
    assert len(cell.rates["worker"]) == 2


def test_agreement_counts_texts_that_only_one_side_scores() -> None:
    found = Agreement()
    found.add([1.0, None, None, 2.0], [1.25, None, 3.0, None])
    assert found == Agreement(texts=1, largest=0.25, one_sided=2)


class FakeClassifier:
    revision = "fake"

    def load_tokenizer(self) -> None: ...

    def encode(self, items: Sequence[Scorable]) -> list[list[int]]:
        return [[0] * count for count in words_of(items)]


def test_a_logit_of_vllm_that_is_no_number_is_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    # NaN differs from no number by more than 0, so that the scores would be found to agree.
    class Logit(SimpleNamespace):
        def float(self) -> Any:
            return self

        def flatten(self) -> Any:
            return self

        def tolist(self) -> list[float]:
            return [self.value]

    answers = [
        SimpleNamespace(outputs=SimpleNamespace(data=Logit(value=value)))
        for value in (1.5, math.nan, math.inf)
    ]
    fake = SimpleNamespace(PoolingParams=dict, TokensPrompt=dict)
    monkeypatch.setitem(sys.modules, "vllm", fake)  # type: ignore[arg-type]
    classifier: Any = FakeClassifier()
    classifier.name, classifier.revision = "fake", "1"
    side = PoolingReward(classifier, {}, 1)
    side._llm = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=8), encode=lambda *_, **__: answers
    )
    items = [Scorable(Prompt(text="a"), f" {word}") for word in "bcd"]
    assert side.score(items) == [1.5, None, None]


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeModel | Exception]:
    """The sides that the bench finds, by name."""
    sides: dict[str, FakeModel | Exception] = {}

    @asynccontextmanager
    async def started(name: str, _: RewardBenchSettings) -> AsyncGenerator[Side, None]:
        found = sides[name]
        if isinstance(found, Exception):
            raise found
        yield Side(name, found, os.getpid())  # type: ignore[arg-type]

    monkeypatch.setattr(run, "classifier_of", lambda _: FakeClassifier())
    monkeypatch.setattr(run, "started", started)
    return sides


def test_a_side_that_cannot_start_is_named_and_left_out(
    fakes: dict[str, FakeModel | Exception], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes |= {
        "worker": FakeModel("worker"),
        "vllm": CheckpointError("vLLM has no such model"),
        "vllm-serve": FakeModel("vllm-serve", off_by=1e-4),
    }
    out = tmp_path / "bench.json"
    settings = settings_of(batches=[1, 4], lengths=[16, 80], json_file=out)
    assert command._run(settings) == 0
    said = capsys.readouterr()
    assert "vllm could not start and is left out: vLLM has no such model" in said.err
    assert "vllm is left out: vLLM has no such model" in said.out
    assert "worker and vllm-serve agree: scores of 20 texts differ by 0.0001 at most" in said.out
    assert "1 texts of 80 tokens are left out: no side scores such texts" in said.out
    assert "most resident memory: worker" in said.out
    assert "load average" in said.out
    result = json.loads(out.read_text())
    assert result["excluded"] == {"vllm": "vLLM has no such model"}
    assert [cell["left_out"] is None for cell in result["cells"]] == [True, True, False, False]
    cell = result["cells"][1]
    assert (cell["batch"], cell["length"], cell["mean_tokens"]) == (4, 16, 16)
    rates = {name: found["values"] for name, found in cell["texts_per_second"].items()}
    by_hand = sorted(a / b for a, b in zip(rates["worker"], rates["vllm-serve"], strict=True))
    assert list(cell["ratios"]) == ["worker / vllm-serve"]
    assert list(cell["cpu_ms_per_text"]) == list(rates)
    found = cell["ratios"]["worker / vllm-serve"]
    assert [found["low"], found["median"], found["high"]] == by_hand
    assert result["versions"]["python"]
    assert result["config"]["pairs"] == 3


def test_different_scores_are_an_exit_status(
    fakes: dict[str, FakeModel | Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    fakes |= {"worker": FakeModel("worker"), "vllm": FakeModel("vllm", off_by=4.0)}
    settings = settings_of(sides=["worker", "vllm"])
    assert command._run(settings) == command.DISAGREE
    assert "worker and vllm DISAGREE" in capsys.readouterr().out
    assert command._run(settings.model_copy(update={"tolerance": 1.5})) == 0


def test_without_any_side_the_bench_fails_with_the_reason(
    fakes: dict[str, FakeModel | Exception],
) -> None:
    fakes |= {"worker": CheckpointError("the file is damaged")}
    with pytest.raises(DataError, match="no side could be measured: the file is damaged"):
        command._run(settings_of(sides=["worker"]))


@pytest.mark.parametrize(
    ("stored", "asked", "types", "told"),
    [
        ({"dtype": "float32"}, "auto", ["float32", "float32"], "worker float32, vllm float32"),
        (
            {"torch_dtype": "float32"},
            "bfloat16",
            ["float32", "bfloat16"],
            "worker float32, vllm bfloat16; the sides compute with different types",
        ),
        ({}, "auto", ["as stored", "as stored"], "worker as stored, vllm as stored"),
    ],
)
def test_the_type_of_each_side_is_told(
    fakes: dict[str, FakeModel | Exception],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    stored: dict[str, str],
    asked: Any,
    types: list[str],
    told: str,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stored))
    fakes |= {"worker": FakeModel("worker"), "vllm": FakeModel("vllm")}
    out = tmp_path / "bench.json"
    settings = settings_of(
        sides=["worker", "vllm"], reward=str(tmp_path), dtype=asked, json_file=out
    )
    assert command._run(settings) == 0
    assert f"type: {told}\n" in capsys.readouterr().out
    assert list(json.loads(out.read_text())["types"].values()) == types


def test_only_a_classifier_can_be_measured() -> None:
    with pytest.raises(InvalidInputError, match="python:some:function is not a classifier"):
        classifier_of(settings_of(reward="python:some:function"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine-args", '{"runner": "generate"}'], "measures the pooling runner"),
        (["--sides", "worker,worker"], "named twice"),
        (["--lengths", "0"], "at least 1"),
        (["--pairs", "1"], "greater than or equal to 2"),
    ],
)
def test_wrong_settings_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_settings(RewardBenchSettings, arguments, program="vbon bench reward")
    assert words in capsys.readouterr().err


def test_memory_is_that_of_a_process_and_its_children() -> None:
    assert os.getpid() in descendants(os.getpid())
    peak = peak_mib([os.getpid()])
    assert peak is not None
    assert peak > 10
    assert peak_mib([2**30]) is None
    # The kernel counts in hundredths of a second, and so may this process's own clock round.
    assert cpu_seconds([os.getpid()]) == pytest.approx(process_time(), abs=0.05)
    assert cpu_seconds([2**30]) == 0
