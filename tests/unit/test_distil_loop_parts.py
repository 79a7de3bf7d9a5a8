"""Parts of ``vbon distil run``: removal of old checkpoints, the recipe, and reports of progress."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.collected import identity
from tests.unit.distil_loop import Desk, FakeService, collect, prompts
from vbon.distil.loop import reporting
from vbon.distil.loop.prune import CHECKPOINT, REMOVED, needed_checkpoints, prune
from vbon.distil.loop.recipe import training_settings
from vbon.distil.loop.reporting import Reporter
from vbon.distil.loop.rounds import adapter_rank
from vbon.distil.loop.service import ServedCheckpoint, ServedRollout, Service
from vbon.distil.loop.state import LoopState, Round
from vbon.distil.loop.stream import Collected, SeenPrompt
from vbon.errors import DataError, ExportError

# -- removal of old checkpoints


def finished(rounds: Path, count: int, **verdicts: str) -> LoopState:
    """Finished rounds 0001, 0002 and so on with a checkpoint of 1,000 bytes each."""
    made = []
    for number in range(1, count + 1):
        one = Round(number=number, step="done", verdict="promote")
        one.verdict = verdicts.get(f"r{number}", "promote")  # type: ignore[assignment]
        made.append(one)
        (rounds / one.id / CHECKPOINT / "adapter").mkdir(parents=True)
        (rounds / one.id / CHECKPOINT / "adapter" / "model").write_bytes(b"w" * 1000)
        (rounds / one.id / "decision.json").write_text("{}")
    return LoopState(rounds=made)


def served(live: str | None = None, following: str | None = None, **statuses: str) -> ServedRollout:
    """A rollout of checkpoints r1, r2 and so on; those that are live or retired have been live."""
    found = [
        ServedCheckpoint(
            id=f"{int(name[1:]):04d}", status=status, was_live=status in ("live", "retired")
        )
        for name, status in statuses.items()
    ]
    return ServedRollout(
        policy="live", n=4, margin=0.05, live=live, next=following, checkpoints=found[::-1]
    )


def left(rounds: Path) -> list[str]:
    return sorted(path.parent.name for path in rounds.glob(f"*/{CHECKPOINT}"))


def test_the_newest_stay_and_what_is_removed_is_counted(tmp_path: Path) -> None:
    state = finished(tmp_path, 5)
    rollout = served("0005", r5="live", r4="refused", r3="refused")
    removed, freed = prune(tmp_path, state, rollout, 2)
    assert (removed, freed) == (["0001", "0002", "0003"], 3000)
    assert left(tmp_path) == ["0004", "0005"]
    assert all((tmp_path / f"000{i}" / "decision.json").is_file() for i in range(1, 6))
    assert prune(tmp_path, state, rollout, 2) == ([], 0)
    assert prune(tmp_path, state, rollout, None) == ([], 0)


@pytest.mark.parametrize(
    ("rollout", "needed"),
    [
        (served("0001", r1="live", r2="rolled_back", r3="refused"), {"0001"}),
        (served(None, "0002", r1="refused", r2="rolling", r3="refused"), {"0002"}),
        (served("0001", "0002", r1="live", r2="rolling"), {"0001", "0002"}),
        (served(None, r1="waiting", r2="waiting"), {"0001", "0002"}),
        # Of three that were live, a rollback goes to the newest but the live one.
        (served("0004", r1="retired", r2="retired", r3="refused", r4="live"), {"0002", "0004"}),
        (served("0001", r1="live", r2="retired", r3="retired"), {"0001", "0003"}),
        (served(None, r1="retired", r2="refused"), {"0001"}),
        (served(None), set()),
    ],
)
def test_checkpoints_that_answer_wait_or_are_gone_back_to_are_never_removed(
    rollout: ServedRollout, needed: set[str], tmp_path: Path
) -> None:
    state = finished(tmp_path, 6)
    assert needed_checkpoints(state, rollout) == needed
    prune(tmp_path, state, rollout, 1)
    assert set(left(tmp_path)) == needed | {"0006"}


def test_of_a_live_one_that_fell_both_the_good_one_before_it_and_it_stay(tmp_path: Path) -> None:
    """A live checkpoint that was rolled back has been live; a person goes back to the one before it."""
    rollout = served(None, r1="retired", r2="rolled_back")
    fell = rollout.checkpoints[0].model_copy(update={"was_live": True})
    rollout = rollout.model_copy(update={"checkpoints": [fell, rollout.checkpoints[1]]})
    assert needed_checkpoints(finished(tmp_path, 2), rollout) == {"0001", "0002"}


def test_without_a_service_the_newest_two_that_passed_stay(tmp_path: Path) -> None:
    state = finished(tmp_path, 6, r3="refuse", r5="undecided", r6="refuse")
    removed, _ = prune(tmp_path, state, None, 1)
    assert removed == ["0001", "0003", "0005"]
    assert left(tmp_path) == ["0002", "0004", "0006"]


def test_a_round_that_is_not_done_keeps_what_it_has(tmp_path: Path) -> None:
    state = finished(tmp_path, 3)
    state.rounds[0].step = "submit"
    prune(tmp_path, state, served(), 1)
    assert left(tmp_path) == ["0001", "0003"]


def test_a_killed_removal_leaves_no_half_checkpoint_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = finished(tmp_path, 3)

    def die(place: Path) -> None:
        (place / "adapter" / "model").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            monkeypatch.setattr(shutil, "rmtree", die)
            prune(tmp_path, state, served(), 1)
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert left(tmp_path) == ["0002", "0003"]  # none of them is half removed
    assert (tmp_path / "0001" / REMOVED).is_dir()
    removed, freed = prune(tmp_path, state, served(), 1)
    assert (removed, freed) == (["0002"], 1000)
    assert not list(tmp_path.glob(f"*/{REMOVED}"))


def test_a_directory_that_cannot_be_changed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = finished(tmp_path, 2)

    def refuses(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(ExportError, match="Permission denied"):
        prune(tmp_path, state, served(), 1)


# -- adapters


@pytest.mark.parametrize(
    ("given", "served_rank", "goes_on", "rank"),
    [
        ({}, None, False, None),
        ({}, 64, False, 16),
        ({}, 8, False, 8),
        ({"lora_rank": 32}, 64, False, 32),
        ({"lora_rank": "none"}, 64, False, "none"),
        ({}, 64, True, None),
    ],
)
def test_a_service_that_serves_adapters_gets_one_unless_the_user_wants_otherwise(
    given: dict[str, Any], served_rank: int | None, goes_on: bool, rank: int | str | None
) -> None:
    found = training_settings("vbon", given, goes_on=goes_on, lora_rank=served_rank)
    assert found.get("lora_rank") == rank


@pytest.mark.parametrize(
    ("settings", "rank"),
    [({"r": 8}, 8), ({"r": 8, "rank_pattern": {"q_proj": 32}}, 32), ({"rank_pattern": None}, 0)],
)
def test_the_rank_of_an_adapter_is_that_of_its_largest_layer(
    settings: dict[str, Any], rank: int
) -> None:
    assert adapter_rank(settings) == rank


# -- reports


def reporter(clock: list[float]) -> tuple[Reporter, list[dict[str, Any]]]:
    fake = FakeService(None)
    client = httpx.Client(base_url="http://service", transport=httpx.MockTransport(fake.answer))
    return Reporter(Service(client, print), lambda: clock[0]), fake.reported


def test_a_waiting_round_is_told_now_and_then() -> None:
    clock = [100.0]
    tells, told = reporter(clock)
    tells.waits("0001", 5, 20, 300.0, 10.0)
    clock[0] += 10
    tells.waits("0001", 6, 20, 290.0, 10.0)  # too soon
    clock[0] += 30
    tells.waits("0001", 9, 20, None, 60.0)
    assert told == [
        {"round": "0001", "phase": "collect", "done": 5.0, "of": 20.0, "left_s": 300.0,
         "next_within_s": 120.0},
        {"round": "0001", "phase": "collect", "done": 9.0, "of": 20.0, "next_within_s": 240.0},
    ]  # fmt: skip


def test_a_long_step_is_told_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "EVERY_S", 0.001)
    clock = [50.0]
    tells, told = reporter(clock)
    with tells.during("0002", "train", 100.0):
        while len(told) < 2:
            pass
        clock[0] += 130.0  # longer than expected
        before = len(told)
        while len(told) < before + 2:
            pass
    count = len(told)
    assert {one["phase"] for one in told} == {"train"}
    assert (told[0]["left_s"], told[-1]["left_s"]) == (100.0, 0.0)
    tells.stopped("0002")
    assert [one["phase"] for one in told[count:]] == ["stopped"]


@pytest.mark.parametrize("error", [DataError("no memory"), KeyboardInterrupt(), None])
def test_only_a_loop_that_ends_as_it_was_told_to_says_that_it_has_stopped(
    tmp_path: Path, error: BaseException | None
) -> None:
    """A loop that dies of an error must become stale, or nobody would be told."""
    desk = Desk(tmp_path)
    collect(desk.dir, prompts(40))

    def fail(place: str) -> None:
        if error is not None and place == "vbon begins":
            raise error

    desk.commands.at = fail
    desk.while_waiting = lambda: desk.service.change("0001", status="live")
    if error is None:
        desk.run()
    else:
        with pytest.raises(type(error)):
            desk.run()
    phases = [one["phase"] for one in desk.service.reported]
    assert ("stopped" in phases) is not isinstance(error, DataError)
    # Also while it only follows its checkpoint, the loop is not silent.
    assert ("done" in phases) is (error is None)


def test_a_loop_that_waits_for_the_first_answer_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.dir.mkdir()
    desk.while_waiting = lambda: collect(desk.dir, prompts(40))
    loop = desk.loop()
    assert loop._collect(Round(number=1))
    assert desk.service.reported == [
        {"round": "0001", "phase": "collect", "done": 0.0, "of": 20.0, "next_within_s": 120.0}
    ]


def test_a_checkpoint_that_waits_for_a_person_is_not_said_to_be_served(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.service.approve = True
    collect(desk.dir, prompts(40))
    said = desk.run()
    assert "checkpoint 0001 waits for a person" in said
    assert "is served" not in said
    assert "sent rounds/0001/checkpoint to the service" in said


def test_without_a_service_nothing_is_told() -> None:
    tells = Reporter(None)
    tells.waits("0001", 5, 20, None, 1.0)
    with tells.during("0001", "train", None):
        pass
    tells.stopped("0001")


# -- prompts with the same text


def test_the_share_of_the_most_asked_prompt() -> None:
    collected = Collected(identity())
    assert collected.largest_share == 0
    for i, text in enumerate([b"a", b"b", b"a", b"a"]):
        collected.add(text, SeenPrompt(text.decode(), float(i), 0.0, 4, held_out=False))
        collected.asked.append((float(i), text))
    assert collected.largest_share == 0.75
