"""The peers of the bench: checks before they run, and the real peers over an imitated engine."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.bench.config import PEER_SIDES
from service.bench.harness import listening
from service.bench.peers import optillm_server
from service.bench.peers.row import DRIVER, SIDES, check_environment, check_sides
from service.bench.scorer_endpoint import scorer_endpoint
from tests.integration.test_bench_contests import bench_of
from tests.unit.chat_imitation import WORDS, Engine, started_scorer
from tests.unit.fakes import FakeReward, make_runtime
from vbon.errors import InvalidInputError

PEERS = Path(__file__).resolve().parents[2] / ".peers" / "bin" / "python"


def test_every_peer_side_exists() -> None:
    assert list(SIDES) == PEER_SIDES


def test_peers_say_what_they_need() -> None:
    check_sides(PEER_SIDES, 1024)
    check_sides(["optillm-tuned", "its-hub-tuned"], 128)
    with pytest.raises(InvalidInputError, match="unknown side 'ours'; the sides are optillm, "):
        check_sides(["ours"], 4096)
    with pytest.raises(InvalidInputError, match="context of 1024 tokens, and this policy has 128"):
        check_sides(["optillm-tuned", "its-hub"], 128)


def test_a_missing_environment_says_how_to_make_it(tmp_path: Path) -> None:
    python = tmp_path / "there" / "bin" / "python"
    with pytest.raises(InvalidInputError, match=f"scripts/peers {tmp_path}/there. creates it"):
        check_environment(python)
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 0.3.0 1.2.0\n")
    python.chmod(0o755)
    with pytest.raises(
        InvalidInputError, match=r"has versions 0\.3\.0 and 1\.2\.0 .*scripts/peers"
    ):
        check_environment(python)


async def test_optillm_plugin_takes_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    path = DRIVER.parent / "optillm" / "plugins" / "reward_bon.py"
    spec = importlib.util.spec_from_file_location("reward_bon", path)
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plugin)
    asked: dict[str, Any] = {}

    def create(**body: Any) -> Any:
        asked.update(body)
        choices = [SimpleNamespace(message=SimpleNamespace(content=text)) for text in WORDS]
        return SimpleNamespace(choices=choices, usage=SimpleNamespace(completion_tokens=11))

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    scoring = await started_scorer(FakeReward())
    messages = [{"role": "user", "content": "p"}]
    async with scorer_endpoint(scoring) as url:
        monkeypatch.setenv("REWARD_BON_N", "4")
        monkeypatch.setenv("REWARD_BON_SCORER", url)
        found = await asyncio.to_thread(
            plugin.run, "", "User: p", client, "ref", {"max_tokens": 7}, messages
        )
        plugin._scorer.close()
    await scoring.stop()
    assert plugin.SLUG == optillm_server.PLUGIN
    assert found == ("good good", 11)
    assert (asked["n"], asked["max_tokens"], asked["messages"]) == (4, 7, messages)


needs_peers = pytest.mark.skipif(not PEERS.is_file(), reason="scripts/peers has not been run")


@needs_peers
@pytest.mark.parametrize("side", PEER_SIDES)
async def test_the_real_peers_over_an_imitated_engine(side: str) -> None:
    engine = Engine()
    runtime = make_runtime()
    scoring = await started_scorer(FakeReward())
    settings = {"n": 4, "max_tokens": 7, "peers_python": PEERS}
    async with listening(engine.app, lifespan=False) as url, scorer_endpoint(scoring) as score:
        bench = bench_of(runtime, "", **settings)
        async with SIDES[side](bench, f"{url}/v1", score) as peer:
            found = await peer.answer(["a", "b"], 2)
    await scoring.stop()
    assert len(found.texts) == 2
    assert found.seconds > 0
    assert set(found.texts) <= set(WORDS)
    tuned = side.endswith("-tuned")
    drawn = sum(body.get("n", 1) for body in engine.asked)
    assert drawn == 2 * 4 if tuned else drawn > 2 * 4  # more for the calls of judges
    if tuned:
        assert found.texts == ["good good"] * 2
    wanted = {body.get("max_tokens") or body.get("max_completion_tokens") for body in engine.asked}
    assert 7 in wanted
    assert json.dumps(engine.asked[0]["messages"]).count("content") <= 2
