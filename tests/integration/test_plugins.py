"""An installed package's strategy, reward model and objective, used through the real programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.strategies.rerank import CandidatePool
from tests.plugin_package import (
    ENTRY_POINTS,
    MODULE,
    environment_with,
    write_package,
    write_toys,
)
from training.objectives.protocol import Objective
from vbon.prompts import Prompt
from vbon.rewards import RewardOptions, Scorable

SERVE = """
import asyncio


async def main():
    # Not above: the reward model's process imports this file again.
    import json
    import httpx
    from asgi_lifespan import LifespanManager
    from service.app import create_app
    from service.runtime.batching_scorer import BatchingScorer
    from service.runtime.runtime import Runtime
    from service.settings import ServiceSettings
    from vbon.engine.fake import FakeEngine
    from vbon.rewards import open_reward_model
    from vbon.rewards.worker import RewardWorker

    worker = RewardWorker(open_reward_model("words:good"))
    policies = {"ref": FakeEngine("fake-ref"), "mine": FakeEngine("fake-mine")}
    runtime = Runtime(ServiceSettings(), policies, BatchingScorer(worker), None)
    app = create_app(runtime)
    answers = []
    async with LifespanManager(app):
        while not runtime.ready:
            assert runtime.failure is None, runtime.failure
            await asyncio.sleep(0.01)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for method, path, body in json.loads(input()):
                answer = await client.request(method, path, json=body)
                answers.append([answer.status_code, answer.json()])
    print(json.dumps(answers))

if __name__ == "__main__":
    asyncio.run(main())
"""
BODY = {"prompt": "the film was", "n": 8, "max_tokens": 16, "seed": 3, "return_candidates": True}


def served(folder: Path, *requests: tuple[str, str, Any]) -> tuple[list[Any], str]:
    """Status and JSON of each request to a server with the package installed, and what it logged."""
    script = folder / "serve_requests.py"
    script.write_text(SERVE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(requests), capture_output=True, text=True,
        env=environment_with(folder), check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_strategy_and_a_reward_model_serve_requests(tmp_path: Path) -> None:
    folder = write_toys(tmp_path)
    (modes, lowest, next_lowest, chat, refused, spec), logged = served(
        folder,
        ("GET", "/modes", None),
        ("POST", "/generate?mode=lowest", BODY),
        ("POST", "/generate?mode=lowest&policy=mine", {**BODY, "rank": 1}),
        ("POST", "/v1/completions", {"model": "lowest", "prompt": "the", "best_of": 4, "rank": 2}),
        ("POST", "/generate?mode=bon", {**BODY, "rank": 1}),
        ("GET", "/openapi.json", None),
    )
    listed = {mode["name"]: mode for mode in modes[1]["modes"]}
    assert listed["lowest"]["description"] == "N samples, a low reward returned"
    assert listed["lowest"]["settings"] == {"rank": 0}
    assert listed["lowest"]["reward_model"]["path"] == "words:good"
    for (status, answer), rank in ((lowest, 0), (next_lowest, 1)):
        assert status == 200
        assert answer["strategy"] == {"rank": rank}
        rewards = [candidate["reward"] for candidate in answer["candidates"]]
        texts = [candidate["text"] for candidate in answer["candidates"]]
        assert rewards == [text.split().count("good") for text in texts]
        assert answer["reward"] == sorted(rewards)[rank]
    assert next_lowest[1]["policy"]["name"] == "mine"
    assert chat[0] == 200
    assert refused[0] == 422
    assert "mode 'bon' does not take rank; modes that do: lowest" in refused[1]["error"]["message"]
    field = spec[1]["components"]["schemas"]["GenerateRequest"]["properties"]["rank"]
    assert field["description"] == "lowest: 0: the lowest, 1: the next (default 0)"
    assert logged == ""


BROKEN = """
from typing import ClassVar
from service.strategies import Strategy
from service.strategies.bon import Bon

class Needs(Bon):
    needed: int

class Clashes(Bon):
    children: str = "two"

class Shadows(Bon):
    seed: int = 3

class Abstract(Strategy):
    description: ClassVar[str] = "nothing"
"""
REASONS = {
    "missing": "importing it raised ModuleNotFoundError: No module named 'no_such_module'",
    "function": "it is not a subclass of service.strategies.Strategy",
    "needs": "its setting 'needed' has no default",
    "clashes": "its setting 'children' has a different type than in treebon",
    "shadows": "its setting 'seed' has the name of a request field",
    "abstract": "Can't instantiate abstract class Abstract",
}
TARGETS = {
    "missing": "no_such_module:Missing",
    "function": "json:dumps",
    "needs": "toy_broken:Needs",
    "clashes": "toy_broken:Clashes",
    "shadows": "toy_broken:Shadows",
    "abstract": "toy_broken:Abstract",
    "mine": "service.strategies.bon:Bon",
    "bon": "service.strategies.soft_bon:SoftBon",
}


def test_broken_strategies_are_logged_and_named_only_when_asked_for(tmp_path: Path) -> None:
    points = {**ENTRY_POINTS, "vbon.strategies": TARGETS}
    folder = write_package(tmp_path, points, modules={"toy_plugins": MODULE, "toy_broken": BROKEN})
    asked = [("POST", f"/generate?mode={mode}", BODY) for mode in REASONS]
    (modes, bon, mine, *refused), logged = served(
        folder,
        ("GET", "/modes", None),
        ("POST", "/generate?mode=bon", BODY),
        ("POST", "/generate?mode=mine", {"prompt": "the", "max_tokens": 4}),
        *asked,
    )
    names = [mode["name"] for mode in modes[1]["modes"]]
    assert "adaptive-bon" in names
    assert not REASONS.keys() & set(names)
    rewards = [candidate["reward"] for candidate in bon[1]["candidates"]]
    assert bon[1]["reward"] == max(rewards)
    assert mine[1]["policy"]["name"] == "mine"
    for (mode, reason), (status, answer) in zip(REASONS.items(), refused, strict=True):
        message = answer["error"]["message"]
        assert status == 422
        assert answer["error"]["param"] == "mode"
        assert f"strategy {mode!r} of package toy-plugins 1.2" in message
        assert f"(entry point {mode} = {TARGETS[mode]} in vbon.strategies)" in message
        assert reason in message
        assert logged.count(message) == 1
    assert "strategy 'bon' of package toy-plugins 1.2" in logged
    assert (
        "mode mine is the policy of that name; the strategy from toy-plugins 1.2 is not available"
        in logged
    )
    assert len(logged.splitlines()) == len(TARGETS)


def test_the_examples_of_the_documentation_work() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "plugins.md").read_text("utf-8")
    made: dict[str, Any] = {"__name__": "documented"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, made)
    rewards = np.array([1.0, 3.0, 2.0])
    pool = CandidatePool(rewards, np.zeros(3), np.ones(3))
    assert made["SecondBest"]().distribution(pool).tolist() == [0, 0, 1]
    model = made["Brevity"]("2", RewardOptions())
    items = [Scorable(Prompt(text="p"), text) for text in ("one two", "one two three four")]
    assert model.score(items) == [0, -2]
    assert issubclass(made["HalfSft"], Objective)
    assert made["HalfSft"]().share == 0.5
    points = tomllib.loads(re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0])
    named = points["project"]["entry-points"]
    assert named.keys() == {"vbon.strategies", "vbon.rewards", "vbon.objectives"}
    for targets in named.values():
        assert {target.split(":")[1] for target in targets.values()} <= made.keys()


def trained(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m training`` with the package installed."""
    return subprocess.run(
        [sys.executable, "-m", "training", *arguments], capture_output=True, text=True, check=False,
        env={**environment_with(folder), "COLUMNS": "200"}, timeout=120,
    )  # fmt: skip


def test_an_objective_is_a_command_with_help(tmp_path: Path) -> None:
    folder = write_toys(tmp_path)
    listed = trained(folder, "--help").stdout
    assert "half-sft" in listed
    assert "Toys. (from toy-plugins 1.2)" in listed
    helped = trained(folder, "half-sft", "--help").stdout
    for words in ("Half the loss of bon-sft.", "--share", "Share of the loss", "--num-samples"):
        assert words in helped, helped


def test_broken_objectives_are_named_by_their_command_alone(tmp_path: Path) -> None:
    module = (
        "from training.objectives.bon_sft import BonSft\n"
        "class Steps(BonSft):\n    steps: int = 3\n"
        "class Untitled:\n    pass\n"
    )
    points = {
        "steps": "toy_broken:Steps", "untitled": "toy_broken:Untitled", "gone": "no_such:Gone",
        "sweep": "toy_broken:Steps",
    }  # fmt: skip
    folder = write_package(tmp_path, {"vbon.objectives": points}, modules={"toy_broken": module})
    help_text = trained(folder, "--help")
    assert help_text.returncode == 0
    assert "untitled" in help_text.stdout
    for name, reason in {
        "steps": "do not fit the settings that all objectives share: steps",
        "untitled": "it is not a subclass of training.objectives.protocol.Objective",
        "gone": "importing it raised ModuleNotFoundError: No module named 'no_such'",
    }.items():
        done = trained(folder, name)
        assert done.returncode in {1, 2}
        assert f"objective {name!r} of package toy-plugins 1.2" in done.stderr
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    assert "--grid" in trained(folder, "sweep", "--help").stdout


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such:Reward", "importing it raised ModuleNotFoundError: No module named 'no_such'"),
        ("json:__name__", "it is not a function or class that opens a reward model"),
        ("toy_broken:opened", "opened str, which has no name, revision, load, score, close"),
    ],
)
def test_broken_reward_models_stop_the_service_that_asks_for_them(
    tmp_path: Path, target: str, reason: str
) -> None:
    module = "def opened(argument, options):\n    return argument\n"
    points = {"vbon.rewards": {"words": target, "python": target}}
    folder = write_package(tmp_path, points, modules={"toy_broken": module})
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--policies", "ref=http://localhost:9/v1",
         "--reward", "words:good"],
        capture_output=True, text=True, check=False, env=environment_with(folder), timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: reward model scheme 'words' of package toy-plugins 1.2")
    assert reason in last
    assert "reward model scheme 'python' of package toy-plugins 1.2" in done.stderr
    assert "Traceback" not in done.stderr
