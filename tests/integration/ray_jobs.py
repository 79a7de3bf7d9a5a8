"""Jobs over a Ray cluster; ``test_fleet.py`` has these tests, because Ray is started for its module only."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
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
from training.configs import SampleConfig
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
    # Of the four prompts in two shards that were left, one was scored when its worker was killed.
    assert sorted(scored(tmp_path)[before:]) == ["c", "c", "d", "e", "f"]


def test_errors_of_workers_are_those_of_the_command(
    cluster: None, fake_config: Callable[..., SampleConfig]
) -> None:
    with pytest.raises(RewardError, match="has a finite reward"):
        build_cache(fake_config(reward="none"))


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
