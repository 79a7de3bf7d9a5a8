"""``vbon sample`` ends cleanly however it ends: no traceback, no engine left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm")

from tests.forks import ForkedTraining

pytestmark = [pytest.mark.vllm, pytest.mark.train]

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 300.0
REWARDS = """
import pathlib, time

def lengths(prompts, completions):
    return [float(len(text)) for text in completions]

def nothing(prompts, completions):
    return [None] * len(completions)

def slow(prompts, completions):
    pathlib.Path("scoring").touch()
    time.sleep(1)
    return lengths(prompts, completions)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "some_rewards.py").write_text(REWARDS)
    return tmp_path


def start_sampling(
    sandbox: Path, folder: Path, reward: str, *more: str, forked: bool = True
) -> ForkedTraining | psutil.Popen:
    """Start ``vbon sample``; what it prints is written to ``log`` in the folder."""
    arguments = [
        *("sample", "--policy", str(sandbox / "policy"), "--out", "cache.jsonl"),
        *("--reward", f"python:some_rewards:{reward}"),
        *("--prompts", str(sandbox / "prompts" / "train.jsonl")),
        *("--num-samples", "4", "--max-new-tokens", "8", "--concurrency", "1"),
        *("--engine-args", '{"enforce_eager": true}'),
        *more,
    ]
    path = os.pathsep.join([str(ROOT), str(folder), os.environ["PYTHONPATH"]])
    env = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    log = folder / "log"
    log.touch()
    if forked:
        return ForkedTraining(arguments, log, cwd=folder, env=env)
    with log.open("wb") as out:
        return psutil.Popen(
            [sys.executable, "-m", "training", *arguments],
            cwd=folder,
            env=env,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def ended(process: ForkedTraining | psutil.Popen, folder: Path) -> tuple[int, str]:
    """The exit status of a command, and all that it has printed."""
    return process.wait(LIMIT_S), (folder / "log").read_text(errors="replace")


def interrupt_once_scoring(process: ForkedTraining | psutil.Popen, folder: Path) -> None:
    """Press Ctrl-C, which a terminal sends to the whole group, the engine's process included."""
    deadline = time.monotonic() + LIMIT_S
    while not (folder / "scoring").exists():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)


def running_in_group(group: int) -> list[psutil.Process]:
    """The processes of a group that have not ended; nobody may have waited for one that has."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("reward", "status", "last_words"),
    [
        ("lengths", 0, "6 prompts x 4 samples"),
        ("nothing", 1, "has a finite reward"),
        ("slow", 130, "interrupted; run the same command again"),
    ],
)
def test_its_end_leaves_no_traceback_and_no_engine(
    sandbox: Path, folder: Path, reward: str, status: int, last_words: str
) -> None:
    # The one that ends well is started as a user starts it.
    process = start_sampling(sandbox, folder, reward, forked=reward != "lengths")
    if reward == "slow":
        interrupt_once_scoring(process, folder)
    code, told = ended(process, folder)
    assert code == status, told
    assert any(last_words in line for line in told.splitlines()), told
    for words in (
        "Traceback",
        "EngineDeadError",
        "Exception ignored",
        "exited unexpectedly",
        "resource_tracker",
    ):
        assert words not in told, told
    # vLLM gives an engine 5 s, most of which it spends on collecting garbage, and then kills it. Ours is
    # killed at once, without a signal that it would answer. Ctrl-C is such a signal.
    assert "force killing" not in told, told
    assert reward == "slow" or "trigger received signal" not in told, told
    deadline = time.monotonic() + 60  # Python's resource tracker ends a little later
    while left := running_in_group(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_every_stop_token_ends_a_sample_without_text_and_other_habits_of_the_model_do_nothing(
    sandbox: Path, folder: Path
) -> None:
    """The sampler of training does the same; tests/unit/test_rollouts.py has its values."""
    from transformers import AutoTokenizer

    policy = folder / "policy"
    shutil.copytree(sandbox / "policy", policy)
    (policy / "checksums.json").unlink()  # changed on purpose
    tokenizer = AutoTokenizer.from_pretrained(policy)
    [word] = tokenizer(" the", add_special_tokens=False)["input_ids"]
    stops = sorted([tokenizer.eos_token_id, word])
    config = policy / "generation_config.json"
    # Sampling that vLLM takes from there in `vllm serve`, but must not take here.
    habits = {"temperature": 0.2, "top_k": 1, "repetition_penalty": 1.9, "do_sample": True}
    own = json.loads(config.read_text())
    config.write_text(json.dumps(own | {"eos_token_id": stops} | habits))
    wanted = ("--policy", str(policy), "--num-samples", "64")
    process = start_sampling(sandbox, folder, "lengths", *wanted)
    code, told = ended(process, folder)
    assert code == 0, told
    rows = [json.loads(line) for line in (folder / "cache.jsonl").read_text().splitlines()]
    by_word = 0
    for row in rows:
        # With top_k 1 all samples of a prompt would begin with the same token.
        assert len({ids[0] for ids in row["response_ids"]}) > 5
        columns = (row["response_ids"], row["responses"], row["finish_reasons"])
        for ids, text, reason in zip(*columns, strict=True):
            assert not set(ids[:-1]) & set(stops)
            assert (ids[-1] in stops) == (reason == "stop")
            if ids[-1] == word:
                by_word += 1
                assert not text.endswith(" the")
    assert by_word > 0
    identity = json.loads((folder / "cache.jsonl.meta.json").read_text())["identity"]
    assert identity["eos_token_ids"] == stops
