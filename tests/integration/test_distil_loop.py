"""Rounds of ``vbon distil run``: steps, resume after a kill, the service, poisoned and drifting traffic."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.unit.collected import identity
from tests.unit.distil_loop import Desk, by_prompt, collect, prompts
from vbon.config import load_settings
from vbon.distil.commands import distil_cli
from vbon.distil.loop.config import DistilRunConfig
from vbon.distil.loop.run import run_loop
from vbon.distil.loop.service import ServiceRefusedError
from vbon.distil.loop.state import ROUNDS, STATE, LoopState
from vbon.errors import DataError, ExportError
from vbon.study.steps import StepFailedError, command

OTHER_WORDS = [
    "invoice", "tax", "refund", "account", "login", "password",
    "router", "cable", "billing", "address", "order", "delay",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _has_an_n(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbon.distil.loop.rounds.takes_n", lambda _: True)  # asks a process


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    collect(made.dir, prompts(60))
    return made


def live_at_once(desk: Desk) -> None:
    """The service makes live whatever rolls."""
    for one in desk.service.state()["checkpoints"]:
        if one["status"] == "rolling":
            desk.service.change(one["id"], status="live", share=1.0)


def test_a_round_trains_compares_decides_and_submits(desk: Desk) -> None:
    desk.while_waiting = lambda: live_at_once(desk)
    said = desk.run()
    assert desk.commands.ran == ["vbon", "evaluate"]
    (one,) = desk.state.rounds
    assert (one.id, one.step, one.verdict, one.n) == ("0001", "done", "promote", 4)
    assert one.status == "live, 100% of the traffic"
    assert "checkpoint 0001: live" in said
    trained, compared = desk.commands.settings["vbon"], desk.commands.settings["evaluate"]
    assert (trained["policy"], trained["reward"]) == ("ref-dir", "reward-dir")
    assert (trained["max_new_tokens"], trained["temperature"]) == (8, 1.0)
    assert trained["flags"][-3:] == ("--num-samples", "4", "--replace")
    assert compared["checkpoints"] == {
        "candidate": str(desk.dir / "rounds" / "0001" / "checkpoint")
    }
    assert (compared["num_samples"], compared["reference_samples"], compared["seed"]) == (4, 16, 1)
    (served,) = desk.service.state()["checkpoints"]
    assert served["decision"] == desk.read("0001/decision.json")
    assert served["decision"]["figures"]["live"] is None
    # 1,000 drawn in training; 16 and 16 samples of each of 40 prompts of 10 tokens in the comparison.
    assert served["decision"]["spent"]["tokens"] == 1000 + 2 * 16 * 40 * 10
    assert desk.service.asked.index("POST /distil/seal") < desk.service.asked.index(
        "POST /distil/checkpoints"
    )


def test_prompts_stay_only_as_long_as_a_round_needs_them(desk: Desk) -> None:
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    left = sorted(path.name for path in (desk.dir / ROUNDS / "0001").iterdir())
    assert left == ["checkpoint", "decision.json", "per-prompt.json", "settings"]
    collect(desk.dir, prompts(60, seed=1), begin_s=2000)
    desk.run(keep_caches=True)
    assert (desk.dir / ROUNDS / "0002" / "cache.jsonl").is_file()


def test_the_next_round_waits_for_new_prompts_and_is_compared_with_the_live_checkpoint(
    desk: Desk,
) -> None:
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    collect(desk.dir, prompts(60), begin_s=2000)  # the same prompts again are not new
    collect(desk.dir, prompts(30, seed=7), begin_s=3000)
    waited: list[int] = []

    def more() -> None:
        waited.append(len(desk.slept))
        collect(desk.dir, prompts(60, seed=8), begin_s=4000)
        desk.while_waiting = lambda: live_at_once(desk)

    desk.while_waiting = more
    desk.run(every=40, drift_alpha=1e-9)
    assert waited == [1]
    second = desk.state.rounds[1]
    assert (second.id, second.compared_with, second.verdict) == ("0002", "0001", "promote")
    assert second.why is None
    compared = desk.commands.settings["evaluate"]
    assert compared["checkpoints"]["live"] == str(desk.dir / "rounds" / "0001" / "checkpoint")
    assert desk.commands.settings["vbon"]["seed"] == 1
    assert "initial" not in desk.commands.settings["vbon"]
    decision = desk.read("0002/decision.json")
    assert decision["figures"]["live"]["win_rate"]["mean"] == pytest.approx(0.8)
    assert decision["figures"]["difference"]["win_rate"]["mean"] == pytest.approx(0.0)


@pytest.mark.parametrize("with_service", [True, False])
def test_training_goes_on_from_the_live_checkpoint_if_asked(
    tmp_path: Path, with_service: bool
) -> None:
    desk = Desk(tmp_path, with_service=with_service)
    collect(desk.dir, prompts(60))
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run(start="last")
    assert not {"initial", "steps"} & desk.commands.settings["vbon"].keys()  # there was none
    collect(desk.dir, prompts(60, seed=1), begin_s=2000)
    desk.run(start="last")
    checkpoint = str(desk.dir / "rounds" / "0001" / "checkpoint")
    assert desk.commands.settings["vbon"]["initial"] == checkpoint
    assert desk.commands.settings["vbon"]["steps"] == 100  # fewer than from the reference
    # Without a service, the one that passed counts as live.
    assert desk.commands.settings["evaluate"]["checkpoints"]["live"] == checkpoint


def test_a_checkpoint_that_was_not_promoted_is_not_what_training_goes_on_from(desk: Desk) -> None:
    desk.commands.candidate = by_prompt(win_rate=0.5, kl=0.01)
    assert "refuse:" in desk.run(start="last")
    assert desk.service.state()["checkpoints"][0]["status"] == "refused"
    collect(desk.dir, prompts(60, seed=1), begin_s=2000)
    desk.run(start="last")
    assert "initial" not in desk.commands.settings["vbon"]
    assert "live" not in desk.commands.settings["evaluate"]["checkpoints"]


# -- kills

COMMANDS = ["vbon begins", "vbon ends", "evaluate begins", "evaluate ends"]
REQUESTS = [
    f"{place} {when}"
    for place in ("POST /distil/seal", "GET /distil/checkpoints", "POST /distil/checkpoints")
    for when in ("begins", "ends")
]


@pytest.mark.parametrize(
    "place", [*COMMANDS, *REQUESTS, "cache", "decide", *[f"write {i}" for i in range(8)]]
)
def test_a_killed_loop_goes_on_from_where_it_was(
    desk: Desk, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed (-9) at a place, started again, and has then done the same as one that was not."""

    def kill_at(reached: str) -> None:
        if reached == place:
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        desk.commands.at = desk.service.at = kill_at
        write = LoopState.write
        written = [0]

        def counted(state: LoopState, directory: Path) -> None:
            kill_at(f"write {written[0]}")
            written[0] += 1
            write(state, directory)

        monkeypatch.setattr(LoopState, "write", counted)
        for name in ("make_cache", "decide"):
            module = "vbon.distil.loop.rounds"
            made = __import__(module, fromlist=[name]).__dict__[name]

            def then_killed(*given: Any, name: str = name, made: Any = made) -> Any:
                result = made(*given)
                kill_at(name.removeprefix("make_"))
                return result

            monkeypatch.setattr(f"{module}.{name}", then_killed)
        desk.run()

    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL, f"{place} was not reached"
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    (one,) = desk.state.rounds
    assert (one.id, one.step, one.verdict) == ("0001", "done", "promote")
    assert [c["id"] for c in desk.service.state()["checkpoints"]] == ["0001"]
    assert desk.service.state()["live"] == "0001"
    # Steps before the kill are not done again.
    later = COMMANDS.index(place) if place in COMMANDS else None
    expected = {None: None, 0: 2, 1: 2, 2: 1, 3: 1}[later]
    assert expected is None or len(desk.commands.ran) == expected


def test_a_child_ends_with_a_killed_loop(tmp_path: Path) -> None:
    """A real child of a process that is killed is gone, so that the next start does not meet it."""
    (tmp_path / "sleeper.py").write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    pid = os.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(tmp_path)
        try:
            command("sleeper", niceness=5)
        finally:
            os._exit(1)
    file = tmp_path / "pid"
    for _ in _patiently():
        if file.exists() and file.read_text():
            break
    child = int(file.read_text())
    assert os.getpriority(os.PRIO_PROCESS, child) == os.getpriority(os.PRIO_PROCESS, 0) + 5
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for _ in _patiently():
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
    pytest.fail("the child outlives its parent")


def _patiently() -> Iterator[int]:
    import time

    for i in range(400):
        yield i
        time.sleep(0.05)


def test_a_second_loop_on_the_directory_is_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbon.storage.locks import sole_writer

    monkeypatch.setattr("vbon.storage.locks.PATIENCE_S", 0.1)
    (desk.dir / ROUNDS).mkdir(parents=True)
    with (
        sole_writer(desk.dir / ROUNDS / STATE),
        pytest.raises(ExportError, match="stop that loop"),
    ):
        run_loop(DistilRunConfig(dir=desk.dir))


@pytest.mark.parametrize("error", [StepFailedError("status 1"), KeyboardInterrupt()])
def test_a_failed_or_interrupted_training_ends_the_loop_and_the_next_start_trains_again(
    desk: Desk, error: BaseException
) -> None:
    def fails(place: str) -> None:
        if place == "vbon ends":
            raise error

    desk.commands.at = fails
    with pytest.raises(type(error)):
        desk.run()
    assert desk.state.rounds[0].step == "train"
    desk.commands.at = lambda place: None
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    assert desk.commands.ran == ["vbon", "vbon", "evaluate"]


def test_a_damaged_state_is_named(desk: Desk) -> None:
    (desk.dir / ROUNDS).mkdir()
    (desk.dir / ROUNDS / STATE).write_text('{"version": 1, "rounds": [{"number": 0}]}')
    with pytest.raises(DataError, match=r"state.json cannot be read"):
        desk.loop()
    (desk.dir / ROUNDS / STATE).write_text('{"version": 9, "rounds": []}')
    with pytest.raises(DataError, match=r"has version 9 of another release"):
        desk.loop()


# -- the service


def test_a_service_that_is_away_is_waited_for(desk: Desk) -> None:
    desk.service.away = [0, 503, 0]
    desk.while_waiting = lambda: live_at_once(desk)
    said = desk.run()
    assert desk.slept[:3] == [1.0, 2.0, 4.0]
    assert said.count("is away") == 1
    assert "connection refused" in said
    assert desk.state.rounds[0].status == "live, 100% of the traffic"


def test_a_refusal_of_the_service_ends_the_loop_with_its_words(desk: Desk) -> None:
    desk.service.away = [403]
    with pytest.raises(ServiceRefusedError, match=r"HTTP 403\): not now; give an admin's key"):
        desk.run()


def test_a_service_without_a_rollout_leaves_the_decision_here(desk: Desk) -> None:
    desk.service.file = None
    assert "kept here" in desk.run()
    assert desk.read("0001/decision.json")["verdict"] == "promote"
    assert desk.state.rounds[0].status is None


def test_a_checkpoint_that_needs_a_person_does_not_hold_up_the_loop(desk: Desk) -> None:
    desk.service.approve = True
    assert "waits for a person (vbon distil promote 0001)" in desk.run()
    collect(desk.dir, prompts(60, seed=1), begin_s=2000)
    desk.service.change("0001", status="live", share=1.0)  # a person promotes
    said = desk.run()
    assert "checkpoint 0001: live" in said
    assert desk.state.rounds[1].compared_with == "0001"


def test_a_new_directory_takes_no_id_that_the_service_knows(desk: Desk) -> None:
    desk.service.file.write_text(  # type: ignore[union-attr]
        '{"policy": "live", "n": 4, "margin": 0.05, "live": null, "checkpoints": '
        '[{"id": "0007", "status": "refused"}, {"id": "other", "status": "retired"}]}'
    )
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    assert desk.state.rounds[0].id == "0008"


def test_a_live_checkpoint_of_another_directory_is_named(desk: Desk) -> None:
    desk.service.file.write_text(  # type: ignore[union-attr]
        '{"policy": "live", "n": 4, "margin": 0.05, "live": "0003", "checkpoints": '
        '[{"id": "0003", "status": "live"}]}'
    )
    with pytest.raises(DataError, match=r"serves checkpoint 0003, but .* does not exist"):
        desk.run()


def test_the_margin_against_best_of_n_is_the_service_s(desk: Desk) -> None:
    desk.commands.candidate = by_prompt(win_rate=0.7)
    desk.service.margin = 0.2
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    assert desk.state.rounds[0].verdict == "promote"
    collect(desk.dir, prompts(60, seed=1), begin_s=2000)
    desk.commands.live = by_prompt(win_rate=0.7)
    desk.run(bon_margin=0.05)
    assert desk.state.rounds[1].verdict == "refuse"


@pytest.mark.parametrize(("objective", "trained"), [("vbon", True), ("bon-sft", False)])
def test_prompts_with_half_of_n_samples_are_enough_for_vbon_and_not_for_imitation(
    tmp_path: Path, objective: str, trained: bool
) -> None:
    desk = Desk(tmp_path)
    collect(desk.dir, prompts(60), n=4)
    desk.while_waiting = lambda: live_at_once(desk)
    if not trained:
        with pytest.raises(AssertionError, match="waits for ever"):
            desk.run(n=8, objective=objective)
        return
    desk.run(n=8, objective=objective)
    assert desk.state.rounds[0].prompts > 40
    assert desk.commands.settings["vbon"]["flags"][-3:] == ("--num-samples", "8", "--replace")


# -- adapters


@pytest.mark.parametrize(
    ("served_rank", "settings", "pattern", "path", "words"),
    [
        (None, {"lora_rank": 8}, {}, "checkpoint", ""),
        (8, {}, {}, "checkpoint/adapter", ""),
        (32, {}, {}, "checkpoint/adapter", ""),
        (
            8,
            {"lora_rank": 16},
            {},
            "checkpoint",
            "the adapter has rank 16 and the service serves 8",
        ),
        (8, {}, {"q_proj": 9}, "checkpoint", "the adapter has rank 9 and the service serves 8"),
        (8, {"lora_rank": "none"}, {}, "checkpoint", "the training made no adapter"),
    ],
)
def test_a_service_with_room_for_adapters_gets_the_adapter(
    desk: Desk,
    served_rank: int | None,
    settings: dict[str, Any],
    pattern: dict[str, int],
    path: str,
    words: str,
) -> None:
    desk.service.lora_rank, desk.commands.rank_pattern = served_rank, pattern
    desk.while_waiting = lambda: live_at_once(desk)
    said = desk.run(training=settings).replace("\n", " ")
    (served,) = desk.service.state()["checkpoints"]
    assert served["path"] == f"rounds/0001/{path}"
    assert words in said
    trained = desk.commands.settings["vbon"].get("lora_rank")
    default = None if served_rank is None else min(16, served_rank)
    assert trained == settings.get("lora_rank", default)
    # Comparisons take whole weights, which are the same policy.
    compared = desk.commands.settings["evaluate"]["checkpoints"]["candidate"]
    assert compared == str(desk.dir / "rounds" / "0001" / "checkpoint")


def test_training_that_goes_on_from_a_checkpoint_makes_no_adapter(desk: Desk) -> None:
    desk.service.lora_rank = 8
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run(start="last")
    collect(desk.dir, prompts(60, seed=1), begin_s=2000)
    desk.run(start="last")
    assert "lora_rank" not in desk.commands.settings["vbon"]
    paths = [one["path"] for one in desk.service.state()["checkpoints"]]
    assert paths == ["rounds/0002/checkpoint", "rounds/0001/checkpoint/adapter"]


# -- old checkpoints


def test_old_checkpoints_are_removed_and_the_loop_says_which(desk: Desk) -> None:
    """Each of four takes over from the one before; the third is live while the fourth is rolled out."""
    desk.while_waiting = lambda: live_at_once(desk)
    for number in (1, 2, 3, 4):
        collect(desk.dir, prompts(60, seed=number), begin_s=10_000.0 * number)
        said = desk.run(keep_rounds=1, drift_alpha=1e-9).replace("\n", " ")
    assert desk.service.state()["live"] == "0004"
    left = sorted(path.parent.name for path in (desk.dir / ROUNDS).glob("*/checkpoint"))
    assert left == ["0002", "0003", "0004"]  # 0002 was what a rollback of 0003 would have gone to
    assert said.count("removed old checkpoints") == 1
    assert "removed old checkpoints (0001; 0.0 MB); the newest 1 stay (--keep-rounds)" in said
    assert desk.read("0001/decision.json")["verdict"] == "promote"
    desk.while_waiting = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):  # a later start looks again
        desk.run(keep_rounds=1)
    assert not (desk.dir / ROUNDS / "0002" / "checkpoint").exists()


# -- reports to the service


def test_the_service_is_told_each_step_and_the_end(desk: Desk) -> None:
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    phases = [one["phase"] for one in desk.service.reported]
    assert list(dict.fromkeys(phases)) == [
        "seal", "cache", "train", "compare", "decide", "submit", "done", "stopped",
    ]  # fmt: skip
    assert {one["round"] for one in desk.service.reported} == {"0001"}


def test_an_interrupted_loop_has_stopped_and_a_waiting_one_tells_how_long(desk: Desk) -> None:
    desk.while_waiting = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        desk.run(min_prompts=100)
    waits, stopped = desk.service.reported
    assert (waits["phase"], waits["of"], stopped["phase"]) == ("collect", 100.0, "stopped")
    assert 0 < waits["done"] < 60
    # Of prompts that came since second 1,000, at second 5,000.
    assert waits["left_s"] == pytest.approx((100 - waits["done"]) * 4000 / waits["done"])


# -- poisoned and drifting traffic


def test_prompts_with_the_same_text_start_no_round_and_the_loop_says_why(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    collect(desk.dir, ["are you there"] * 300)
    desk.while_waiting = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        desk.run()
    said = desk.output.getvalue().replace("\n", " ")
    assert "warning: one prompt makes up 100% of the 300 answers, and counts once" in said
    assert desk.commands.ran == []
    assert [one.step for one in desk.state.rounds] == ["collect"]


def poisoned(desk: Desk, kind: str) -> None:
    texts = prompts(60)
    if kind == "key":
        collect(desk.dir, texts, key=lambda i: "one" if i % 10 else f"other-{i}")
    elif kind == "reward":
        collect(desk.dir, texts, reward=lambda text, i: 0.25)
    elif kind == "prompt":
        collect(desk.dir, [*texts, *["are you there"] * 70])
    elif kind == "template":
        collect(desk.dir, [*texts[:30], *[f"are you there ({i})?" for i in range(50)]])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("key", "one API key sent 90% of the 60 answers"),
        ("reward", "are all equal, so nothing can be learned"),
        ("prompt", "one prompt makes up 54% of the 130 answers"),
        ("template", "are the same text but for digits"),
    ],
)
def test_a_poisoned_stream_is_not_trained_on(tmp_path: Path, kind: str, words: str) -> None:
    desk = Desk(tmp_path)
    poisoned(desk, kind)
    said = desk.run()
    (one,) = desk.state.rounds
    assert (one.step, one.verdict, desk.commands.ran) == ("done", None, [])
    assert len(one.refused) == 1
    assert words in one.refused[0]
    assert words in said.replace("\n", " ")
    assert "POST /distil/checkpoints" not in desk.service.asked
    # Its answers count as seen: the next round waits for others, and trains on all if that is accepted.
    desk.settings["accept"] = [kind]

    def more() -> None:
        collect(desk.dir, prompts(80, seed=9), begin_s=9000)
        desk.while_waiting = lambda: live_at_once(desk)

    desk.while_waiting = more
    desk.run()
    assert [one.step for one in desk.state.rounds] == ["done", "done"]
    assert desk.commands.ran == ["vbon", "evaluate"]


def test_a_drift_of_the_prompts_starts_the_next_round_early_and_says_what_changed(
    desk: Desk,
) -> None:
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    collect(desk.dir, prompts(60, seed=3, words=OTHER_WORDS), begin_s=2000)
    said = desk.run(every=120).replace("\n", " ")
    second = desk.state.rounds[1]
    assert second.why is not None
    assert second.why.startswith("the prompts have changed since the last training: the word")
    assert second.looked == 3
    assert "of 120 new prompts" in said


def test_the_same_kind_of_prompts_is_no_drift(desk: Desk) -> None:
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    collect(desk.dir, prompts(140, seed=4), begin_s=2000)
    desk.run(every=100)
    assert desk.state.rounds[1].why is None


def test_a_fall_of_the_live_quality_starts_the_next_round_early(desk: Desk) -> None:
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    collect(desk.dir, prompts(60, seed=5), begin_s=2000)

    def falls() -> None:
        desk.service.change("0001", status="rolled_back", why="fall", share=0.0)
        desk.while_waiting = lambda: live_at_once(desk)

    desk.while_waiting = falls
    said = desk.run(every=200, drift_alpha=1e-9)
    assert "rolled back because its win rate has fallen" in said
    assert desk.state.rounds[1].why == "the win rate of the live checkpoint has fallen"


def test_another_reward_model_begins_anew(desk: Desk) -> None:
    """Answers of another identity are not compared with those of the last round."""
    desk.while_waiting = lambda: live_at_once(desk)
    desk.run()
    made = identity(reward_revision="sha256:cc")
    collect(desk.dir, prompts(60), begin_s=2000, made=made)
    desk.run(every=1000)
    second = desk.state.rounds[1]
    assert second.identity == made.digest
    assert second.step == "done"


# -- settings


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "give the same command again to go on"),
        (DataError("no"), 1, "error: no"),
    ],
)
def test_the_command_ends_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: int,
    words: str,
) -> None:
    def ends(config: DistilRunConfig) -> None:
        raise error

    monkeypatch.setattr("vbon.distil.loop.run.run_loop", ends)
    result = CliRunner().invoke(distil_cli, ["run", str(tmp_path), "--once"])
    assert result.exit_code == status
    assert words in result.stderr


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(distil_cli, ["run", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert "is not a directory of collected answers (vbon serve --distil.dir)" in result.stderr


def test_the_directory_is_the_first_argument_and_the_file_has_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('url = "http://host"\nfrom = "last"\n[training]\nsteps = 9\n')
    config = load_settings(
        DistilRunConfig, [str(tmp_path), "--config", str(file), "--every", "50"], program="x"
    )
    assert (config.dir, config.start, config.every) == (tmp_path, "last", 50)
    assert config.training == {"steps": 9}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "k", "url": None}, "a key is for a service"),
        ({"key": "k", "key_file": Path("f")}, "give one of them"),
        ({"training": {"cache": "x"}}, "training has cache, which the loop sets itself"),
        ({"evaluation": {"prompts": "x"}}, "evaluation has prompts, which the loop sets itself"),
        ({"url": "localhost:8000"}, "url"),
    ],
)
def test_contradictory_settings_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        DistilRunConfig(**{"dir": tmp_path, "url": "http://s", **changes})
