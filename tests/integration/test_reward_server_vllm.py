"""A real `vllm serve` of the sandbox's reward model scores as the model does in a process of our own."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from service.bench.processes import free_port, wait_until_healthy  # noqa: E402
from service.bench.rewards.config import RewardBenchSettings  # noqa: E402
from service.bench.rewards.run import run_reward_bench  # noqa: E402
from service.bench.vllm_serve import SERVE  # noqa: E402
from tests.forks import running_forked  # noqa: E402
from vbon.engine import Engine  # noqa: E402
from vbon.prompts import Prompt  # noqa: E402
from vbon.rewards import Scorable, open_reward_model  # noqa: E402

ITEMS = [
    Scorable(Prompt(text="the film was"), text)
    for text in (" good", " bad and dull", "", " the best film of the year", " of")
]


async def test_the_routes_of_vllm_give_the_local_rewards(
    sandbox: Path,
    vllm_ref: Engine,  # its start sets the environment variables that vLLM reads
    caplog: pytest.LogCaptureFixture,
) -> None:
    local = open_reward_model(str(sandbox / "reward"))
    local.load()
    expected = local.score(ITEMS)
    too_long = Scorable(Prompt(text="the film was"), " good" * 2000)
    assert local.score([too_long]) == [None]
    port = free_port()
    command = [
        *[sys.executable, "-m", SERVE, "--model", str(sandbox / "reward"), "--runner", "pooling"],
        *["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"],
        "--disable-uvicorn-access-log",
    ]
    async with running_forked(command) as (process, log):
        url = f"http://127.0.0.1:{port}"
        await wait_until_healthy(process, log, f"{url}/health", "vllm serve")
        for address in ("", "/classify", "/pooling"):
            remote = open_reward_model(url + address)
            with caplog.at_level("INFO", logger="vbon.rewards"):
                await asyncio.to_thread(remote.load)
            scores = await asyncio.to_thread(remote.score, [*ITEMS[:2], too_long, *ITEMS[2:]])
            await asyncio.to_thread(remote.close)
            assert scores.pop(2) is None
            assert scores == pytest.approx(expected, abs=1e-4)
    said = [words for words in caplog.messages if "is a reward server (vLLM" in words]
    assert len(said) == 3
    assert all("one output, raw scores" in words for words in said)


async def test_the_bench_measures_our_worker_beside_vllm_with_equal_scores(
    sandbox: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    settings = RewardBenchSettings(
        reward=str(sandbox / "reward"), sides=["worker", "vllm"], batches=[3], lengths=[24, 4096],
        max_call_tokens=20_000, pairs=2, seconds=0.01, threads=1, json_file=out,
        engine_args={"enforce_eager": True},
    )  # fmt: skip
    result = await run_reward_bench(settings)
    assert json.loads(out.read_text()) == result
    assert result["excluded"] == {}
    measured, too_long = result["cells"]
    assert 20 <= measured["mean_tokens"] <= 24
    assert too_long["left_out"] is not None
    assert list(measured["ratios"]) == ["worker / vllm"]
    (found,) = result["agreement"]
    assert found["texts"] >= 3 * 3
    assert 0 < found["largest"] < 1e-4
    assert found["agree"]
    assert min(result["peak_mib"].values()) > 50
