"""Batching of scores across requests, and scores that are no longer awaited."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.runtime import batching_scorer as scoring
from service.runtime.batching_scorer import BatchingScorer
from tests.unit.fakes import FakeReward, score_text
from tests.unit.scorer_imitation import scoring as scoring_server
from vbon.errors import RewardError
from vbon.prompts import Prompt
from vbon.rewards.remote import RemoteReward

PROMPT = Prompt(text="p")


class HeldReward(FakeReward):
    """A reward model that tells when it has begun to score, and scores once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.let_go = threading.Event(), threading.Event()

    def score(self, items):  # type: ignore[no-untyped-def, override]
        self.begun.set()
        self.let_go.wait(60)
        return super().score(items)


async def test_each_caller_gets_its_own_score_from_shared_batches() -> None:
    reward = FakeReward(seconds=0.02)
    scorer = BatchingScorer(reward, max_batch=8)
    await scorer.start()
    texts = [f" good{' dull' * i}" for i in range(20)]
    scores = await asyncio.gather(*(scorer.score(PROMPT, text) for text in texts))
    await scorer.stop()
    assert scores == [score_text(text) for text in texts]
    assert max(reward.batches) == 8
    assert len(reward.batches) < 20
    assert reward.closed


async def test_what_nobody_waits_for_is_not_scored() -> None:
    reward = HeldReward()
    scorer = BatchingScorer(reward)
    await scorer.start()
    first = asyncio.create_task(scorer.score(PROMPT, "a"))
    await asyncio.to_thread(reward.begun.wait, 60)  # what comes now waits for the next batch
    gone = [asyncio.create_task(scorer.score(PROMPT, "b")) for _ in range(5)]
    kept = asyncio.create_task(scorer.score(PROMPT, "c"))
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    reward.let_go.set()
    await asyncio.gather(first, kept)
    await scorer.stop()
    assert reward.batches == [1, 1]


async def test_stopping_fails_what_still_waits() -> None:
    reward = HeldReward()
    scorer = BatchingScorer(reward)
    await scorer.start()
    running = asyncio.create_task(scorer.score(PROMPT, "a"))
    await asyncio.to_thread(reward.begun.wait, 60)
    waiting = asyncio.create_task(scorer.score(PROMPT, "b"))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(
        0.01, reward.let_go.set
    )  # once the scorer is being stopped
    await scorer.stop()
    for task in (running, waiting):
        with pytest.raises(RewardError, match="shutting down"):
            await asyncio.wait_for(task, 30)


async def test_a_wrong_number_of_scores_is_an_error() -> None:
    class Short(FakeReward):
        def score(self, items):  # type: ignore[no-untyped-def, override]
            return [1.0] * (len(items) - 1)

    scorer = BatchingScorer(Short())
    await scorer.start()
    with pytest.raises(RewardError, match="0 scores for 1"):
        await scorer.score(PROMPT, "a")
    await scorer.stop()


async def test_stopping_breaks_off_a_remote_call() -> None:
    async with scoring_server() as server:
        scorer = BatchingScorer(RemoteReward(server.url, timeout_s=60))
        await scorer.start()
        server.fault, server.calls = "hang", 0
        running = asyncio.create_task(scorer.score(PROMPT, "a"))
        while not server.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.wait_for(scorer.stop(), 30)
        with pytest.raises(RewardError, match="shutting down"):
            await running


async def test_stopping_does_not_wait_for_ever_for_a_model_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scoring, "_CLOSE_S", 0.1, raising=False)
    reward = HeldReward()
    scorer = BatchingScorer(reward)
    await scorer.start()
    running = asyncio.create_task(scorer.score(PROMPT, "a"))
    await asyncio.to_thread(reward.begun.wait, 60)
    await asyncio.wait_for(scorer.stop(), 30)
    assert "fake-reward did not end its running call" in caplog.text
    with pytest.raises(RewardError, match="shutting down"):
        await running
    reward.let_go.set()
    async with asyncio.timeout(30):
        while not reward.closed:  # noqa: ASYNC110  (it is closed once it can be)
            await asyncio.sleep(0.01)
