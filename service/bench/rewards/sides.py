"""The sides of the bench: the same classifier in our worker, in vLLM, and in `vllm serve`."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.bench.processes import (
    cpu_seconds,
    descendants,
    free_port,
    peak_mib,
    running,
    wait_until_healthy,
)
from service.bench.rewards.config import RewardBenchSettings, SideName
from service.bench.rewards.pooling import PoolingReward, vllm_environment
from service.bench.vllm_serve import SERVE, serve_flags
from vbon.engine.vllm.options import served_dtype
from vbon.errors import InvalidInputError
from vbon.rewards import RewardModel, open_reward_model
from vbon.rewards.classifier import ClassifierReward
from vbon.rewards.registry import classifier_path
from vbon.rewards.worker import RewardWorker
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.json_files import read_json_file

WORKER_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Side:
    """A loaded reward model and the process that it runs in.

    Attributes:
        pid: the process; its memory and its children's are this side's.
    """

    name: SideName
    model: RewardModel
    pid: int | None

    def cpu_seconds(self) -> float:
        """CPU time so far."""
        return 0.0 if self.pid is None else cpu_seconds(descendants(self.pid))

    def peak_mib(self) -> float | None:
        """The most resident memory so far, MiB; ``None`` where it cannot be read."""
        return None if self.pid is None else peak_mib(descendants(self.pid))


def classifier_of(settings: RewardBenchSettings) -> ClassifierReward:
    """The classifier that all sides run.

    Raises:
        InvalidInputError: the reward model is of another kind.
        CheckpointError: its directory holds no usable model.
    """
    if classifier_path(settings.reward) is None:
        raise InvalidInputError(
            f"the bench runs a classifier in several ways, and {settings.reward} is not a classifier; give "
            "the directory of one with one logit",
            field="reward",
        )
    model = open_reward_model(
        settings.reward,
        trust_remote_code=settings.trust_remote_code,
        batch_size=settings.reward_batch_size,
        threads=threads_of(settings),
    )
    assert isinstance(model, ClassifierReward)
    return model


def threads_of(settings: RewardBenchSettings) -> int:
    """CPU threads of each side."""
    return settings.threads or len(os.sched_getaffinity(0))


def types_of(settings: RewardBenchSettings) -> dict[SideName, str]:
    """The type that each side computes with; ``as stored`` if the checkpoint's config does not tell it."""
    path = classifier_path(settings.reward) or settings.reward
    file = Path(path) / "config.json"
    config = read_json_file(file) if file.is_file() else {}
    own = str(config.get("dtype") or config.get("torch_dtype") or "as stored")
    theirs = own if settings.dtype == "auto" else settings.dtype
    return {name: own if name == "worker" else theirs for name in settings.sides}


def vllm_arguments(settings: RewardBenchSettings) -> dict[str, Any]:
    """Engine arguments of both sides with vLLM: room for the largest call at once."""
    path = check_checkpoint(classifier_path(settings.reward) or settings.reward, "reward").path
    return {
        "model": path,
        "dtype": served_dtype(path, settings.dtype),
        "max_num_seqs": max(settings.batches),
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "trust_remote_code": settings.trust_remote_code,
        **settings.engine_args,
    }


@asynccontextmanager
async def started(name: SideName, settings: RewardBenchSettings) -> AsyncGenerator[Side, None]:
    """Start a side, and end it with all of its processes.

    Raises:
        VbonError: it cannot start; says why.
    """
    if name == "vllm-serve":
        async with _served(settings) as side:
            yield side
        return
    model: RewardModel = classifier_of(settings)
    if name == "vllm":
        assert isinstance(model, ClassifierReward)
        model = PoolingReward(model, vllm_arguments(settings), threads_of(settings))
    worker = RewardWorker(model, timeout_s=WORKER_TIMEOUT_S, hides_user_errors=False)
    try:
        await asyncio.to_thread(worker.load)
        yield Side(name, worker, worker.pid)
    finally:
        await asyncio.to_thread(worker.close)


@asynccontextmanager
async def _served(settings: RewardBenchSettings) -> AsyncGenerator[Side, None]:
    port = free_port()
    command = [
        *[sys.executable, "-m", SERVE, *serve_flags(vllm_arguments(settings))],
        *["--runner", "pooling", "--host", "127.0.0.1", "--port", str(port)],
        "--disable-uvicorn-access-log",
    ]
    environment = os.environ | vllm_environment(threads_of(settings))
    async with running(command, env=environment) as (process, log):
        url = f"http://127.0.0.1:{port}"
        await wait_until_healthy(process, log, f"{url}/health", "vllm serve")
        model = open_reward_model(url, batch_size=max(settings.batches), timeout_s=WORKER_TIMEOUT_S)
        try:
            await asyncio.to_thread(model.load)
            yield Side("vllm-serve", model, process.pid)
        finally:
            await asyncio.to_thread(model.close)
