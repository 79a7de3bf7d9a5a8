"""Jobs over a Ray cluster; ``test_fleet.py`` has these tests, because Ray is started for its module only."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny import sample_config
from training.cache import ray_shards, sample
from training.cache.ray_shards import ShardSampler
from training.cache.sample import build_cache
from training.cache.sample_backends import Response
from training.configs import SampleConfig, SweepConfig
from training.sweep import ray_cells
from training.sweep.ray_cells import Job, ray_results
from training.sweep.run import run_sweep
from training.tune.cells import Candidate, CellTrainer
from training.tune.config import TuneTrainingConfig
from vbon.errors import DataError, RewardError
from vbon.prompts import Prompt
from vbon.rewards import Scorable
from vbon.storage.checkpoints import Checkpoint

WORKER = "FakeShardSampler"
RAY = {"backend": "ray", "worker_backend": "transformers", "worker_cpus": 0.2, "workers": 1}


class FakeShardSampler(ShardSampler):
    """A worker without models, which starts fast and notes in a file which prompts it has scored.

    Args:
        config: its ``policy`` is the folder of the file.
    """

    def _load(self) -> None:
        if self._config.reward == "not installed":
            raise ModuleNotFoundError("No module named 'vllm'", name="vllm")
        self._folder = Path(self._config.policy)
        self._reward = self

    async def _draw(
        self, prompts: list[Prompt]
    ) -> AsyncGenerator[tuple[Prompt, list[Response]], None]:
        for prompt in prompts:
            yield prompt, [Response(f" {prompt.key} {i}", [i, 1], "stop") for i in range(3)]

    def score(self, items: Sequence[Scorable]) -> list[float | None]:
        with (self._folder / "scored").open("a") as log:
            log.write(items[0].prompt.key + "\n")
        time.sleep(0.3)
        if self._config.reward == "none":
            return [None] * len(items)
        return [float(len(item.completion)) for item in items]


class SomeReward:
    """The reward model of the command itself, which only says its revision."""

    name = revision = "some"


def ray_config(sandbox: Path, out: Path, **changes: object) -> SampleConfig:
    return sample_config(sandbox, out, **{**RAY, "shard_prompts": 2, **changes})


def workers(title: str) -> list[int]:
    """The processes of Ray that do this work."""
    return [
        one.pid
        for one in psutil.process_iter(["cmdline"])
        if " ".join(one.info["cmdline"] or []).startswith("ray::")
        and title in str(one.info["cmdline"])
    ]


def eventually(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def killing(title: str, when: Any, times: int = 1) -> Iterator[list[int]]:
    """Kill a worker with SIGKILL once a condition holds, while the block runs."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < times and not over.wait(0.02):
            found = [pid for pid in workers(title) if pid not in killed]
            if found and when():
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.fixture
def fake_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SampleConfig]:
    """Settings of a cache that workers without models draw, of six prompts in shards of two."""
    monkeypatch.setattr(ray_shards, "ShardSampler", FakeShardSampler)
    monkeypatch.setattr(sample, "open_unsupervised", lambda *_, **__: SomeReward())
    monkeypatch.setattr(sample, "check_checkpoint", lambda path, _: Checkpoint(path, "p"))
    (tmp_path / "prompts").write_text("\n".join("abcdef"))

    def config(**changes: object) -> SampleConfig:
        values: dict[str, Any] = {
            "policy": str(tmp_path), "reward": "some", "prompts": tmp_path / "prompts",
            "out": tmp_path / "cache.jsonl", "shard_prompts": 2, **RAY,
        }  # fmt: skip
        return SampleConfig(**values | changes)

    return config


def scored(folder: Path) -> list[str]:
    log = folder / "scored"
    return log.read_text().splitlines() if log.exists() else []


def test_a_cache_from_ray_is_that_of_the_local_backend(
    cluster: None, sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache.jsonl"
    build_cache(ray_config(sandbox, out))
    assert out.read_bytes() == (sandbox / "cache.jsonl").read_bytes()
    metas = [
        json.loads((folder / "cache.jsonl.meta.json").read_text()) for folder in (tmp_path, sandbox)
    ]
    assert metas[0]["identity"] == metas[1]["identity"]
    assert metas[0]["sha256"] == metas[1]["sha256"]
    assert "sampling prompts: 6/6" in capsys.readouterr().err
    # So the local backend may go on with it, and is finished at once.
    build_cache(sample_config(sandbox, out))


def test_a_killed_worker_costs_its_shard_and_a_stopped_command_goes_on(
    cluster: None,
    tmp_path: Path,
    fake_config: Callable[..., SampleConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[bytes] = []

    def interrupted(handle: Any, path: Path, line: bytes) -> range:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(line)
        return append(handle, path, line)

    append = sample.append_line
    with monkeypatch.context() as patched:
        patched.setattr(sample, "append_line", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_cache(fake_config())
    eventually(lambda: not workers(WORKER))  # the work on the cluster ends with the command
    assert (tmp_path / "cache.jsonl.partial").read_bytes() == b"".join(kept)
    before = len(scored(tmp_path))
    with killing(WORKER, lambda: len(scored(tmp_path)) == before + 1) as killed:
        build_cache(fake_config())
    assert len(killed) == 1
    records = [json.loads(line) for line in (tmp_path / "cache.jsonl").read_text().splitlines()]
    assert [record["prompt"] for record in records] == list("abcdef")
    assert all(record["responses"][2] == f" {record['prompt']} 2" for record in records)
    # Of the four prompts in two shards that were left, one was scored when its worker was killed. Any shard
    # may be the first to come back, so those that were left are the ones whose lines were not kept.
    first, *others = scored(tmp_path)[before:]
    left = sorted(set("abcdef") - {json.loads(line)["prompt"] for line in kept})
    assert left in (["c", "d", "e", "f"], ["a", "b", "e", "f"], ["a", "b", "c", "d"])
    assert first in left
    assert sorted(others) == left


def test_relative_paths_are_those_of_the_command(
    cluster: None,
    tmp_path: Path,
    fake_config: Callable[..., SampleConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Workers start in the directory in which the cluster was started, which is another one."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    build_cache(fake_config(policy="models"))
    assert sorted(scored(tmp_path / "models")) == list("abcdef")


def test_errors_of_workers_are_those_of_the_command(
    cluster: None, fake_config: Callable[..., SampleConfig]
) -> None:
    with pytest.raises(RewardError, match="has a finite reward"):
        build_cache(fake_config(reward="none"))


def test_a_worker_that_cannot_start_ends_the_command_with_its_reason(
    cluster: None, fake_config: Callable[..., SampleConfig]
) -> None:
    """Such as one on a machine that lacks a package of the command's machine."""
    with pytest.raises(DataError, match="No module named 'vllm'"):
        build_cache(fake_config(reward="not installed"))


def test_a_shard_that_always_ends_its_worker_ends_the_command(
    cluster: None, tmp_path: Path, fake_config: Callable[..., SampleConfig]
) -> None:
    def has_scored() -> bool:
        begun = bool(scored(tmp_path))
        (tmp_path / "scored").unlink(missing_ok=True)
        return begun

    with (
        killing(WORKER, has_scored, times=100) as killed,
        pytest.raises(DataError, match="the shard that begins with 'a' ended Ray workers 3 times"),
    ):
        build_cache(fake_config(shard_prompts=6))
    assert len(killed) == 3
    assert not (tmp_path / "cache.jsonl").exists()


# Cells


CELL_WORKERS = {"backend": "ray", "worker_cpus": 0.2}


def sweep_config(sandbox: Path, out: Path, **changes: Any) -> SweepConfig:
    values: dict[str, Any] = {
        "policy": str(sandbox / "policy"), "reward": str(sandbox / "reward"), "gold": None,
        "cache": sandbox / "cache.jsonl", "heldout": sandbox / "prompts" / "heldout.jsonl",
        "out": out, "max_new_tokens": 12, "steps": 2, "prompts_per_step": 2,
        "samples_per_prompt": 2, "seeds": [0], "reference_samples": 16, "policy_samples": 4,
        "grid": ["vbon: num_samples=2; warm_start_steps=1", "dpo: beta=0.3"],
        "keep_checkpoints": False,
    }  # fmt: skip
    return SweepConfig(**values | changes)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The records of the cells and of the baseline, without times and places."""
    found = {}
    for path in [*sorted((out / "cells").glob("*/record.json")), out / "baseline.json"]:
        record = json.loads(path.read_text())
        for name in ("created", "config", "cost"):
            record.pop(name, None)
        found[path.relative_to(out).as_posix()] = record
    return found


def test_cells_from_ray_have_the_records_of_local_ones(
    cluster: None, sandbox: Path, tmp_path: Path
) -> None:
    run_sweep(sweep_config(sandbox, tmp_path / "local"))
    run_sweep(sweep_config(sandbox, tmp_path / "ray", jobs=1, **CELL_WORKERS))
    local, ray = records(tmp_path / "local"), records(tmp_path / "ray")
    assert len(local) == 3
    assert ray == local
    # So what one has finished, the other need not do again.
    before = [path.stat().st_mtime_ns for path in (tmp_path / "ray").rglob("record.json")]
    run_sweep(sweep_config(sandbox, tmp_path / "ray"))
    assert [p.stat().st_mtime_ns for p in (tmp_path / "ray").rglob("record.json")] == before
    # A search trains its cells in the same way.
    settings = {
        name: getattr(sweep_config(sandbox, tmp_path), name)
        for name in ("policy", "reward", "gold", "cache", "heldout", "max_new_tokens", "steps",
                     "prompts_per_step", "samples_per_prompt", "reference_samples", "policy_samples")
    }  # fmt: skip
    candidate = Candidate("dpo", (("beta", 0.5),))
    gains = []
    for place in ({}, CELL_WORKERS):
        config = TuneTrainingConfig(**settings, **place, validation=settings["heldout"])
        trainer = CellTrainer(
            config, settings["heldout"], tmp_path / f"tune-{len(place)}", keep=False
        )
        trainer.train_side_by_side([(candidate, 7)])
        trained = trainer.train(candidate, 7, "win-rate")
        gains.append((trained.gain, trained.kl, trained.samples))
    assert gains[0] == gains[1]


def deadly(config: SweepConfig, name: str | None, *_: str) -> str:
    """A cell's work that ends its process: that of `dpo` always, the others the first time."""
    log = config.out / "attempts"
    tried = log.read_text().splitlines() if log.exists() else []
    with log.open("a") as handle:
        handle.write(f"{name}\n")
    if name is not None and (name.startswith("dpo") or name not in tried):
        os.kill(os.getpid(), signal.SIGKILL)
    return "ok"


def test_a_cell_whose_worker_dies_is_tried_once_more_and_then_kept_as_failed(
    cluster: None,
    sandbox: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ray_cells, "do_in_worker", deadly)
    config = sweep_config(sandbox, tmp_path / "sweep", jobs=1, **CELL_WORKERS)
    config.out.mkdir()
    with pytest.raises(DataError, match=r"1 of 2 cells failed: dpo-beta=0\.3-seed=0"):
        run_sweep(config)
    tried = (config.out / "attempts").read_text().splitlines()
    vbon, dpo = "vbon-num_samples=2-seed=0", "dpo-beta=0.3-seed=0"
    assert Counter(tried) == {"None": 1, vbon: 2, dpo: 2}
    (path,) = config.out.glob("cells/*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "failed"
    assert record["message"].startswith("its Ray worker died 2 times")
    assert f"the Ray worker of {vbon} died; it is tried once more" in caplog.text


def broken(config: SweepConfig, name: str | None, *_: str) -> Exception:
    return DataError("the cache is damaged")


def test_an_error_of_all_cells_ends_the_sweep(
    cluster: None, sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cells, "do_in_worker", broken)
    config = sweep_config(sandbox, tmp_path / "sweep", **CELL_WORKERS)
    with pytest.raises(DataError, match="the cache is damaged"):
        list(ray_results(config, [Job(config, None)]))
