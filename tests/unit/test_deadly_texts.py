"""A text that ends the process of a reward model has no reward; all others of its batch have theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.runtime.batching_scorer import BatchingScorer
from vbon.errors import CheckpointError, RewardDeadError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import Scorable
from vbon.rewards.deaths import MOST_DEADLY_IN_A_BATCH, DeathIsolator, open_unsupervised

PROMPT = Prompt(text="p")


def say(*words: str) -> list[Scorable]:
    return [Scorable(PROMPT, word) for word in words]


class Imitation:
    """A worker whose process is imitated: it ends at the words "die", and at any text if it is ``broken``."""

    name = "imitation"

    def __init__(self) -> None:
        self.revision, self.alive, self.broken = "1", True, False
        self.starts, self.loads = 0, True
        self.calls: list[list[str]] = []
        self.scored = False  # by this process

    def load(self) -> None:
        if not self.loads:
            raise CheckpointError("no weights here")
        self.starts, self.alive, self.scored = self.starts + 1, True, False

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        if not self.alive:
            raise RewardDeadError("is not running")
        texts = [item.completion for item in items]
        self.calls.append(texts)
        if self.broken or any(text.startswith("die") for text in texts):
            self.alive = False
            raise RewardDeadError("died")
        if texts == ["bad"] and not self.scored:
            raise RewardError("raised IndexError")  # as a model does until it has scored a text
        self.scored = True
        return [None if text == "bad" else float(len(text)) for text in texts]

    def close(self) -> None:
        self.alive = False


def isolated(*, supervised: bool = False) -> tuple[Any, DeathIsolator]:
    worker: Any = Imitation()
    return worker, DeathIsolator(worker, supervised=supervised)


@pytest.mark.parametrize("known", [False, True], ids=["first batch", "later batch"])
@pytest.mark.parametrize(
    ("texts", "scores"),
    [
        (["a", "die", "bbb"], [1, None, 3]),
        (["die", "a", "bad"], [None, 1, None]),
        (["a", "bb", "die"], [1, 2, None]),
        (["bad", "die", "a"], [None, None, 1]),
        (["die", "a", "die", "die 2", "die"], [None, 1, None, None, None]),
    ],
)
def test_only_the_deadly_text_has_no_reward(
    known: bool, texts: list[str], scores: list[float | None], caplog: pytest.LogCaptureFixture
) -> None:
    worker, model = isolated()
    if known:
        assert model.score(say("good")) == [4]
    with caplog.at_level(logging.WARNING):
        assert model.score(say(*texts)) == scores
    assert "gets no reward and is not scored again" in caplog.text
    assert worker.alive
    deaths = 1 + len({text for text in texts if text.startswith("die")})
    assert worker.starts == deaths
    # It is remembered: the same batch ends no process again, and neither do its deadly texts alone.
    assert model.score(say(*texts)) == scores
    assert model.score(say("die", "die")) == [None, None]
    assert worker.starts == deaths


def test_a_batch_of_a_deadly_text_alone_decides_by_the_text_that_was_scored_before() -> None:
    worker, model = isolated()
    with pytest.raises(RewardDeadError, match="died"):  # the model may be at fault
        model.score(say("die"))
    assert model.score(say("a")) == [1]
    assert model.score(say("die")) == [None]
    assert worker.calls[-1] == ["a"]  # the new process has been tried


def test_a_model_that_ends_at_every_text_fails_the_batch_and_blames_no_text() -> None:
    worker, model = isolated()
    assert model.score(say("a")) == [1]
    worker.broken = True
    before = len(worker.calls)
    with pytest.raises(RewardDeadError):
        model.score(say("b", "c", "d"))
    assert worker.calls[before:] == [["b", "c", "d"], ["a"]]
    worker.broken = False
    assert model.score(say("b", "c", "d")) == [1, 1, 1]


def test_a_batch_with_too_many_deadly_texts_fails() -> None:
    _, model = isolated()
    assert model.score(say("a")) == [1]
    deadly = [f"die {i}" for i in range(MOST_DEADLY_IN_A_BATCH + 1)]
    assert model.score(say("a", *deadly[1:])) == [1, *[None] * MOST_DEADLY_IN_A_BATCH]
    _, model = isolated()
    assert model.score(say("a")) == [1]
    with pytest.raises(RewardDeadError):
        model.score(say("a", *deadly))


def test_an_unlucky_death_costs_no_text_its_reward() -> None:
    """A process that something else ended, such as the lack of memory, scores all in the next one."""
    worker, model = isolated()
    assert model.score(say("a")) == [1]
    score, worker.unlucky = worker.score, True

    def once(items: Sequence[Scorable]) -> list[float | None]:
        if worker.unlucky:
            worker.alive = worker.unlucky = False
            raise RewardDeadError("was ended by signal SIGKILL")
        return score(items)

    worker.score = once
    assert model.score(say("b", "cc")) == [1, 2]


def test_who_starts_a_process_again_that_ended_between_batches() -> None:
    worker, model = isolated(supervised=True)
    worker.alive = False
    with pytest.raises(RewardDeadError, match="is not running"):
        model.score(say("a"))
    assert worker.starts == 0
    worker, model = isolated()
    worker.alive = False
    assert model.score(say("a")) == [1]
    assert worker.starts == 1


def test_a_model_that_does_not_load_again_fails_the_batch() -> None:
    worker, model = isolated()
    assert model.score(say("a")) == [1]
    worker.loads = False
    with pytest.raises(RewardDeadError, match="cannot be started again: no weights here"):
        model.score(say("die", "a"))


def test_another_model_at_the_path_is_judged_anew() -> None:
    worker, model = isolated()
    assert model.score(say("a", "die")) == [1, None]
    worker.revision = "2"
    model.load()
    assert model.revision == "2"
    with pytest.raises(RewardDeadError):
        model.score(say("die"))


def test_a_model_that_is_being_stopped_is_not_started_again() -> None:
    worker, model = isolated()
    assert model.score(say("a")) == [1]
    model.interrupt()
    with pytest.raises(RewardDeadError, match="is being stopped"):
        model.score(say("die", "a"))
    assert worker.starts == 0


CALLABLE = """
import os, signal

def f(prompts, completions):
    for text in completions:
        if text == "exit":
            os._exit(3)
        if text == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if text == "raise":
            raise ValueError(f"cannot score {text}")
    return [float(len(text)) for text in completions]
"""


@contextmanager
def opened(tmp_path: Path) -> Iterator[DeathIsolator]:
    (tmp_path / "deadly.py").write_text(CALLABLE)
    model = open_unsupervised(f"python:{tmp_path}/deadly.py:f")
    assert isinstance(model, DeathIsolator)
    model.load()
    try:
        yield model
    finally:
        model.close()


def test_a_function_of_users_in_a_command(tmp_path: Path) -> None:
    with opened(tmp_path) as model:
        found = model.score(say("a", "exit", "bb", "raise", "segfault", "ccc"))
        assert found == [1, None, 2, None, None, 3]
        model.load()  # until a process has scored a text, its error is the model's, and is shown in full
        with pytest.raises(RewardError, match="ValueError: cannot score raise"):
            model._worker.score(say("raise"))


async def test_the_service_scores_the_others_and_supervision_finds_it_running() -> None:
    worker, model = isolated(supervised=True)
    scorer = BatchingScorer(model, runs=lambda: worker.alive)
    await scorer.start()
    try:
        assert await scorer.score(PROMPT, "a") == 1
        found = await asyncio.gather(*(scorer.score(PROMPT, t) for t in ("bb", "die", "ccc")))
        assert found == [2, None, 3]
        starts = worker.starts
        await scorer.start()  # as the supervisor does that saw the process ended
        assert worker.starts == starts
        worker.alive = False
        await scorer.start()
        assert worker.starts == starts + 1
    finally:
        await scorer.stop()
