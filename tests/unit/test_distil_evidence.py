"""Evidence of a checkpoint: bounded shares of conversations and keys, and failures to answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from service.distil.evidence_shares import ALONE, WINDOW, EvidenceShares
from tests.unit.rolling import (
    ANN_KEY,
    Speaker,
    SpeakerBuilder,
    bearer,
    rolling,
)
from tests.unit.test_live_rollout import on_arm
from vbon.errors import EngineError


@pytest.mark.parametrize(("share", "decides"), [(0.05, False), (1.0, True)])
async def test_one_prompt_asked_again_and_again_decides_nothing(
    tmp_path: Path, share: float, decides: bool
) -> None:
    """With a share of 1, which is no bound, the same requests carry the checkpoint."""
    async with rolling(tmp_path, evidence_per_conversation=share) as service:
        await service.submitted("0001")
        asked = await on_arm(service, "next")
        for number in range(60):  # the same but for case and spaces
            await service.ask(asked.upper() if number % 2 else f" {asked}")
        found, skipped = await service.checkpoint("0001"), service.live.shadows.skipped
        assert (found["status"] == "live") is decides
        if not decides:
            assert skipped["conversation_share"] == 60
            assert found["evidence"]["shadows"] == service.asked - 60
            metrics = await service.metrics()
            name = 'vbon_distil_shadows_skipped_total{reason="conversation_share"}'
            assert metrics[name] == 60


async def test_one_of_several_keys_has_half_of_the_evidence_at_most(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        await service.submitted("0001")
        for _ in range(3):
            await service.ask()  # of the only key so far
        headers = bearer(ANN_KEY)
        body = {"max_tokens": 3}

        async def ann(number: int) -> None:
            answer = await service.client.post(
                "/generate?mode=auto", json={"prompt": f"ann {number}", **body}, headers=headers
            )
            assert answer.status_code == 200
            await service.until(lambda: not service.live.shadows._tasks)

        for number in range(20):
            await ann(number)
        skipped = service.live.shadows.skipped
        assert skipped["key_share"] == 19
        await service.ask()  # of the other key
        await ann(20)
        await ann(21)
        assert skipped["key_share"] == 20
        found = await service.checkpoint("0001")
        assert found["evidence"]["shadows"] == 3 + 1 + 1 + 1


def test_shares_are_kept_at_every_moment_whatever_comes() -> None:
    rng = random.Random(4)
    shares = EvidenceShares(0.1, 0.5)
    conversations: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for _ in range(900):
        conversation = "hot" if rng.random() < 0.6 else f"c{rng.randrange(300)}"
        key = "a" if rng.random() < 0.9 else "b"
        excess = shares.take("0001", 0, conversation, key)
        if excess is not None:
            refused[excess] += 1
            continue
        conversations[conversation] += 1
        keys[key] += 1
        total = conversations.total()
        assert conversations[conversation] <= max(1, -(-0.1 * total // 1))
        # Those before the second key are not counted.
        assert keys[key] <= max(20, 0.5 * total + 20)
    assert min(refused.values()) > 100
    # Twenty conversations that take turns are never refused at a twentieth each.
    fair = EvidenceShares(0.05, 0.5)
    for number in range(3 * WINDOW):
        assert fair.take("0001", 0, f"c{number % 20}", f"k{number % 2}") is None
    # A long good time gives nobody a long turn.
    turn = sum(fair.take("0001", 0, "new", f"k{i % 2}") is None for i in range(WINDOW))
    assert turn == WINDOW // 20 + 1
    # Another test begins anew, and what came to nothing does not count.
    for _ in range(3):
        assert fair.take("0001", 1, "new", "k") is None
        fair.give_back("0001", 1, "new", "k")
    assert fair.take("0001", 1, "new", "k") is None
    assert fair.take("0001", 1, "new", "k") == "conversation_share"


def test_one_request_of_another_key_does_not_end_the_watch() -> None:
    """A key that has nearly all requests would be refused for ever, and a fall would never be noticed."""
    shares = EvidenceShares(0.05, 0.5)
    number = 0

    def asked(key: str, count: int) -> int:
        """The number of requests of new conversations that are compared."""
        nonlocal number
        number += count
        found = (shares.take("0001", 0, f"c{number - i}", key) for i in range(count))
        return sum(excess is None for excess in found)

    assert asked("a", 50) == 50
    assert asked("b", 1) == 1
    assert asked("a", ALONE) == 2  # as many as the other and one more
    assert asked("a", 300) == 300
    assert asked("b", 1) == 1
    assert asked("a", 10) == 1  # the bound holds as soon as there are two again


@pytest.mark.parametrize("how", ["other models", "another promotion"])
async def test_tests_that_begin_anew_count_shares_anew(tmp_path: Path, how: str) -> None:
    """Else the many comparisons before would let one prompt decide the few of the new test."""
    async with rolling(tmp_path, shares=[0.999, 1.0], alpha=1e-9) as service:
        await service.submitted("0001")
        keeper = service.live.keeper
        for _ in range(60):
            await service.ask()
        assert keeper.rollout.checkpoint("0001").shadows > 50
        if how == "other models":
            assert service.runtime.reward is not None
            service.runtime.reward._model.revision = "second"
        else:
            await service.post("checkpoints/0001/refuse")
            await service.promote("0001")
            await service.until(lambda: "0001" in service.live.served.alive)
        await service.until(lambda: keeper.rollout.checkpoint("0001").shadows == 0)
        for _ in range(8):
            await service.ask("the same")
        assert keeper.rollout.checkpoint("0001").shadows == 1


class Failing(Speaker):
    """An engine of a checkpoint that fails or hangs instead of answering, once it is told to."""

    how = ""

    async def generate(self, *args: Any, **options: Any) -> Any:
        await self._fail()
        async for candidate in super().generate(*args, **options):
            yield candidate

    async def stream(self, *args: Any, **options: Any) -> Any:
        await self._fail()
        async for part in super().stream(*args, **options):
            yield part

    async def _fail(self) -> None:
        if self.how == "fails":
            raise EngineError("the engine says no")
        if self.how == "hangs":
            await asyncio.sleep(60)


async def test_a_checkpoint_that_fails_is_rolled_back_and_its_requests_are_answered(
    tmp_path: Path,
) -> None:
    builder = SpeakerBuilder(Failing)
    async with rolling(tmp_path, builder) as service:
        await service.submitted("0001")
        asked = await on_arm(service, "next")
        before = (await service.checkpoint("0001"))["evidence"]
        builder.built[0].how = "fails"  # type: ignore[attr-defined]
        answer = await service.ask(asked + "!")
        found = await service.checkpoint("0001")
        if answer["routing"]["arm"] == "bon":
            assert found["evidence"]["bad"] > before["bad"]
        arms = await service.ask_until(lambda: service.live.keeper.rollout.rolling is None)
        assert set(arms) == {"bon"}  # answers of best-of-N, not errors
        found, state = await service.checkpoint("0001"), await service.state()
        assert (found["status"], found["why"]) == ("rolled_back", "win_rate")
        by_arm = {one["arm"]: one for one in state["arms"]}
        assert by_arm["next"]["failures"] == found_failures(state) > 0
        metrics = await service.metrics()
        assert metrics['vbon_distil_failures_total{arm="next"}'] == by_arm["next"]["failures"]
        assert 'vbon:request_errors_total{kind="engine",mode="auto"}' not in metrics


def found_failures(state: dict[str, Any]) -> int:
    """The comparisons that a rollback of a failing checkpoint was decided on, less those of good answers."""
    event = state["events"][0]["detail"]
    return round(event["shadows"] * (1 - event["win_rate"]))


async def test_a_time_limit_counts_only_if_the_checkpoint_s_engine_took_it(tmp_path: Path) -> None:
    builder = SpeakerBuilder(Failing)
    async with rolling(tmp_path, builder, shares=[0.999, 1.0]) as service:
        await service.submitted("0001")

        settings = service.runtime.settings
        limits = settings.limits.model_copy(update={"timeout_s": 0.05})
        service.runtime.settings = settings.model_copy(update={"limits": limits})

        async def timed_out(prompt: str, **limit: float) -> None:
            body = {"prompt": prompt, "max_tokens": 3, **limit}
            answer = await service.client.post("/generate?mode=auto", json=body)
            assert answer.status_code == 504

        def failures() -> tuple[int, int]:
            keeper = service.live.keeper
            return keeper.totals.failures["next"], keeper.rollout.checkpoint("0001").shadows

        async with service.runtime.admission.enter(512):  # all of it
            await timed_out("waits for room")
        assert failures() == (1, 0)
        reward = service.runtime.reward
        assert reward is not None
        whole = reward.score

        async def slow(*args: Any) -> Any:
            await asyncio.sleep(60)

        reward.score = slow  # type: ignore[method-assign]
        await timed_out("waits for its reward")
        assert failures() == (2, 0)
        reward.score = whole  # type: ignore[method-assign]
        builder.built[0].how = "hangs"  # type: ignore[attr-defined]
        await timed_out("its client waits too short a time", timeout_s=0.04)
        assert failures() == (3, 0)
        assert service.live.shadows.skipped["own_limit"] == 1
        await timed_out("waits for the engine")
        assert failures() == (4, 1)
        assert (await service.checkpoint("0001"))["evidence"]["win_rate"] == 0.0


async def test_failures_count_as_often_as_answers_are_compared(tmp_path: Path) -> None:
    """Not at all where nothing is compared, since failures alone would then be evidence."""
    builder = SpeakerBuilder(Failing)
    async with rolling(tmp_path, builder, shadow_share=1e-9) as service:
        await service.submitted("0001")
        builder.built[0].how = "fails"  # type: ignore[attr-defined]
        for _ in range(20):
            await service.ask()
        assert (await service.checkpoint("0001"))["evidence"]["shadows"] == 0
        assert service.live.keeper.totals.failures["next"] > 0
        assert service.live.keeper.totals.fallbacks == service.live.keeper.totals.failures["next"]
    (tmp_path / "busy").mkdir()
    async with rolling(tmp_path / "busy", SpeakerBuilder(Failing), shares=[0.999, 1.0]) as service:
        await service.submitted("0001")
        service.runtime.policies["live-next"].how = "fails"  # type: ignore[attr-defined]
        async with service.runtime.admission.enter(400):  # of 512: too many for comparisons
            await service.ask()
        assert service.live.shadows.skipped["busy"] == 1
        assert (await service.checkpoint("0001"))["evidence"]["shadows"] == 0


@pytest.mark.parametrize("why", ["no_reward", "sampling", "at_once"])
async def test_failures_do_not_count_where_answers_would_not_be_compared(
    tmp_path: Path, why: str
) -> None:
    """Else a reward model that is down would leave failures as the only evidence."""
    async with rolling(tmp_path, SpeakerBuilder(Failing), shares=[0.999, 1.0]) as service:
        await service.submitted("0001")
        service.runtime.policies["live-next"].how = "fails"  # type: ignore[attr-defined]
        body: dict[str, Any] = {"prompt": "p", "max_tokens": 6}
        others = [asyncio.create_task(asyncio.sleep(60)) for _ in range(2)]
        if why == "no_reward":
            service.runtime.reward = None
        elif why == "sampling":
            body["temperature"] = 0
        else:
            service.live.shadows._tasks.update(dict.fromkeys(others))  # type: ignore[arg-type]
        await service.client.post("/generate?mode=auto", json=body)
        for other in others:
            service.live.shadows._tasks.pop(other, None)  # type: ignore[call-overload]
            other.cancel()
        assert service.live.keeper.totals.failures["next"] == 1
        assert service.live.shadows.skipped[why] >= 1  # type: ignore[index]
        assert service.live.keeper.rollout.checkpoint("0001").shadows == 0


async def test_best_of_n_s_candidates_count_up_to_the_n_of_the_tests(tmp_path: Path) -> None:
    """All tied, best-of-N gives up 4/5 - 1/2 for N = 4: that is what is added, whatever n a request has.

    With the ties of other numbers of candidates, an answer as good as best-of-N would be judged 2/3 with 2
    and 10/11 with 10, where 3/4 is needed.
    """
    async with rolling(tmp_path, shares=[1e-9, 1.0]) as service:
        assert service.runtime.reward is not None
        await service.submitted("0001")
        keeper = service.live.keeper

        def seen() -> tuple[int, float]:
            found = keeper.rollout.checkpoint("0001")
            return found.shadows, found.wins

        constant = service.runtime.reward._model
        constant.score = lambda items: [0.25 for _ in items]  # type: ignore[method-assign]
        await service.ask(n=2)
        assert seen() == (0, 0.0)
        assert service.live.shadows.skipped["fewer_samples"] == 1
        for count, n in enumerate((4, 10), 1):
            await service.ask(n=n)
            assert seen() == (count, pytest.approx(count * 4 / 5))
