"""Tests of the load test against the real application with fake models."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.client import ServerError
from service.loadtest.analysis.result import _is_adapter, build_result
from service.loadtest.config import LoadTestSettings
from service.loadtest.journal import Journal
from service.loadtest.load.load_test import LoadTest
from service.loadtest.load.server_description import choose_variants, describe_server
from service.loadtest.plan import Variant
from service.loadtest.schema import LoadTestResult
from tests.unit.fakes import ChatEngine, make_runtime, served
from tests.unit.test_loadtest import Quiet
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.prompts import Prompt

clocked = virtually("service", "vbon", "tests.unit")

PROMPTS = [Prompt(text=f"prompt {i}") for i in range(12)]


def slow_engines() -> dict[str, FakeEngine]:
    return {name: FakeEngine(name, seconds_per_token=0.004) for name in ("ref", "vbon")}


async def measure(
    out: Path, runtime: Any = None, prompts: list[Prompt] = PROMPTS, **changes: Any
) -> LoadTestResult:
    async with served(runtime or make_runtime(engines=slow_engines())) as url:
        values = {
            "url": url, "out": out, "n": [2, 4], "concurrency": [3], "rounds": 1, "duration_s": 0.4,
            "warmup_s": 0.1, "max_tokens": 8, "quality_samples": 3, "store": None, "stream": True, **changes,
        }  # fmt: skip
        settings = LoadTestSettings(**values)
        server = await asyncio.to_thread(describe_server, settings, Console(quiet=True))
        variants = choose_variants(settings, server)
        journal = Journal.begin(settings, server.model_dump(mode="json"))
        await LoadTest(settings, variants, prompts, journal, Quiet(), server).run()
        return build_result(settings, server, variants, prompts, journal)


@clocked
async def test_every_mode_is_measured_streamed_and_scored(tmp_path: Path) -> None:
    result = await measure(tmp_path)
    cells = {cell.variant: cell for cell in result.cells}
    assert list(cells) == ["ref", "bon (N=2)", "bon (N=4)", "vbon"]
    assert all(cell.requests > 0 and not cell.errors for cell in cells.values())
    for name in ("ref", "vbon"):
        cell = cells[name]
        assert cell.ttft_ms is not None
        assert cell.e2e_ms is not None
        assert 2 <= cell.ttft_ms.p50 < cell.e2e_ms.p50
        assert cell.itl_ms is not None
        assert cell.itl_ms.p50 >= 1
    # 4 if the reward did not look at lengths, over some 50 answers.
    bon = cells["bon (N=4)"]
    assert bon.generated_tokens_per_s.median > 2 * bon.returned_tokens_per_s.median
    assert cells["bon (N=4)"].rerank_ms is not None
    quality = {one.variant: one for one in result.quality}
    rewards = [quality[name].reward for name in ("ref", "bon (N=2)", "bon (N=4)")]
    means = [reward.mean for reward in rewards if reward is not None]
    assert len(means) == 3
    assert means == sorted(means)
    assert quality["bon (N=4)"].win_rate is not None
    # 4/5 in theory; 36 answers of 12 prompts against 3 each have a standard error of .06.
    assert quality["bon (N=4)"].win_rate.mean == pytest.approx(0.8, abs=0.3)
    assert result.server.policies[0].name == "ref"


@pytest.mark.parametrize("api", ["native", "openai"])
@pytest.mark.parametrize("stream", [True, False])
@clocked
async def test_chats_are_sent_as_chats(tmp_path: Path, api: str, stream: bool) -> None:
    asked: list[Prompt] = []

    class Watching(ChatEngine):
        async def encode(self, prompt: Prompt) -> list[int]:
            asked.append(prompt)
            return await super().encode(prompt)

    runtime = make_runtime(engines={"ref": Watching("ref")})
    chats = [
        Prompt(
            messages=(
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": f"hi {i}"},
            )
        )
        for i in range(3)
    ]
    modes = ["ref", "bon"] if api == "native" else ["ref"]
    result = await measure(
        tmp_path,
        runtime,
        [*chats, Prompt(text="a text")],
        api=api,
        stream=stream,
        modes=modes,
        requests=8,
        warmup_s=0,
    )
    for cell in result.cells:
        assert cell.requests > 0
        assert not cell.errors
        assert (cell.itl_ms is not None) == (stream and cell.variant == "ref")
    assert [prompt for prompt in chats if prompt not in asked] == []
    if api == "native":
        assert [one.unscored for one in result.quality] == [0] * len(result.quality)
        assert result.examples[0].prompt == "system: be brief\nuser: hi 0"


@clocked
async def test_openai_api_gives_the_same_kind_of_figures(tmp_path: Path) -> None:
    result = await measure(tmp_path, api="openai", modes=["vbon"], ignore_eos=True)
    cell = result.cells[0]
    assert cell.requests > 0
    assert not cell.errors
    assert cell.ttft_ms is not None
    assert cell.itl_ms is not None
    assert cell.tpot_ms is not None
    assert cell.itl_ms.count <= 7 * cell.requests
    assert cell.returned_tokens_per_s.median == pytest.approx(8 * cell.requests_per_s.median)
    assert cell.queue_ms is not None  # our own server tells more
    assert result.quality == []


@clocked
async def test_without_a_reward_model_there_are_no_rewards_but_latencies(tmp_path: Path) -> None:
    runtime = make_runtime(engines=slow_engines(), without_reward=True)
    result = await measure(tmp_path, runtime, modes=["ref", "vbon"])
    assert [cell.variant for cell in result.cells] == ["ref", "vbon"]
    assert all(one.reward is None and one.unscored == 36 for one in result.quality)
    assert "2 of" not in result.decision[0]
    assert any("had no score" in text for text in result.warnings)


async def test_an_adapter_is_known_by_what_the_server_tells_and_not_by_its_directory(
    tmp_path: Path,
) -> None:
    """A merged checkpoint may lie in a directory `adapter`, and an adapter anywhere."""
    engines = {
        "ref": FakeEngine("/models/ref"),
        "merged": FakeEngine("/models/adapter"),
        "lora": FakeEngine("/models/plain", adapter=True),
    }
    async with served(make_runtime(engines=engines)) as url:
        settings = LoadTestSettings(url=url, out=tmp_path)
        server = await asyncio.to_thread(describe_server, settings, Console(quiet=True))
    found = {
        variant.label: _is_adapter(variant, server)
        for variant in (
            Variant("ref"),
            Variant("merged"),
            Variant("lora"),
            Variant("bon", 4, True),
            Variant("bon", 4, True, "lora"),
            Variant("ref", policy="lora"),
        )
    }
    assert found == {
        "ref": False,
        "merged": False,
        "lora": True,
        "bon (N=4)": False,
        "bon@lora (N=4)": True,
        "ref@lora": True,
    }


async def test_another_server_is_told_from_ours(tmp_path: Path) -> None:
    settings = LoadTestSettings(url="http://127.0.0.1:9", out=tmp_path, api="openai")
    with pytest.raises(ServerError, match="v1/models"):
        await asyncio.to_thread(describe_server, settings, Console(quiet=True))
