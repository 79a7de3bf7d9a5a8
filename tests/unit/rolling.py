"""A service that rolls out checkpoints, for tests: the real application, engines that say one word."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from service.auth.keys import new_key, write_keys
from service.distil.live_rollout import LiveRollout
from service.runtime.batching_scorer import BatchingScorer
from service.runtime.runtime import Runtime
from service.store import open_store
from tests.unit.fakes import ChatEngine, make_runtime, serving
from tests.unit.test_checkpoints import write_model
from vbon.engine import Candidate, Engine, Sampling
from vbon.engine.fake import WORDS
from vbon.errors import CheckpointError
from vbon.storage.checkpoints import check_checkpoint, write_checksums

ROOT_KEY = new_key("root", "admin")
ANN_KEY = new_key("ann")
# The reference policy says words at random; by tests.unit.fakes.score_text, these are the best and the worst.
GOOD, BAD = "superb", "bad"
ESTIMATE = {"mean": 0.5, "low": 0.4, "high": 0.6}
FIGURES = dict.fromkeys(("win_rate", "reward", "kl_nats", "length", "truncated_share"), ESTIMATE)


def bearer(key: tuple[Any, str]) -> dict[str, str]:
    return {"authorization": f"Bearer {key[1]}"}


def decision(verdict: str = "promote") -> dict[str, Any]:
    return {
        "verdict": verdict,
        "reasons": ["It wins."],
        "figures": {"candidate": FIGURES, "bon": FIGURES, "reference": FIGURES},
        "spent": {"training_s": 2.5, "tokens": 100},
    }


def write_spoken(kept: Path, name: str, word: str) -> str:
    """Write a checkpoint that says this word, and return its path below the directory."""
    directory = kept / "rounds" / name / "checkpoint"
    directory.mkdir(parents=True)
    write_model(directory)
    (directory / "tokenizer.json").write_text(json.dumps({"word": word}))
    write_checksums(directory, "causal-lm")
    return f"rounds/{name}/checkpoint"


class Speaker(ChatEngine):
    """An engine of a checkpoint, whose answers consist of the one word that its directory names."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        found = check_checkpoint(path, "causal-lm")
        self.info = replace(self.info, revision=found.revision)
        self.word = WORDS.index(json.loads((Path(path) / "tokenizer.json").read_text())["word"])

    def _candidate(self, prompt_ids: list[int], sampling: Sampling, index: int) -> Candidate:
        return Candidate(
            index,
            f" {WORDS[self.word]}" * sampling.max_tokens,
            (self.word,) * sampling.max_tokens,
            "length",
            (-1.0,) * sampling.max_tokens if sampling.logprobs else None,
        )


class SpeakerBuilder:
    """Builds the engines of checkpoints.

    Attributes:
        engine: makes an engine of a path.
    """

    def __init__(self, engine: Callable[[str], Engine] = Speaker) -> None:
        self.engine, self.built = engine, list[Engine]()
        self.paths: dict[str, str] = {}

    def place(self, policy: str, path: str | None) -> None:
        self.paths.pop(policy, None)
        if path is not None:
            self.paths[policy] = path

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        if not Path(self.paths[policy]).is_dir():
            raise CheckpointError(f"model directory {self.paths[policy]!r} does not exist")
        self.built.append(self.engine(self.paths[policy]))
        return {policy: self.built[-1]}

    def scorer(self, name: str) -> BatchingScorer:
        raise NotImplementedError


class Rolling:
    """The running service, its client with an admin's key, and its directory."""

    def __init__(self, app: Any, client: httpx.AsyncClient, runtime: Runtime, kept: Path) -> None:
        self.app, self.client, self.runtime, self.kept = app, client, runtime, kept
        self.live: LiveRollout = app.state.rollout
        self.asked = 0

    def write(self, name: str, word: str) -> str:
        """Write a checkpoint that says this word, and return its path below the directory."""
        return write_spoken(self.kept, name, word)

    async def submit(self, name: str, word: str = GOOD, verdict: str = "promote") -> httpx.Response:
        body = {"path": self.write(name, word), "decision": decision(verdict)}
        return await self.client.post("/distil/checkpoints", json=body)

    async def submitted(self, name: str, word: str = GOOD) -> None:
        """Submit a checkpoint, and wait until its engine answers."""
        response = await self.submit(name, word)
        assert response.status_code == 200, response.text
        await self.until(lambda: name in self.live.served.alive)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def post(self, action: str, body: Any = None) -> httpx.Response:
        return await self.client.post(f"/distil/{action}", json=body)

    async def promote(self, name: str) -> httpx.Response:
        """Promote a checkpoint as somebody who has just looked at it."""
        seen = (await self.client.get(f"/distil/checkpoints/{name}")).json()
        body = {"status": seen["status"], "step": seen["step"]}
        return await self.post(f"checkpoints/{name}/promote", body)

    async def state(self) -> dict[str, Any]:
        response = await self.client.get("/distil/checkpoints")
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def checkpoint(self, name: str) -> dict[str, Any]:
        found = (await self.state())["checkpoints"]
        return next(one for one in found if one["id"] == name)

    async def ask(self, prompt: str | None = None, **body: Any) -> dict[str, Any]:
        """An answer of mode ``auto``, to a new prompt if none is given; waits for its shadow."""
        self.asked += 1
        response = await self.client.post(
            "/generate",
            params={"mode": "auto"},
            json={"prompt": prompt or f"prompt {self.asked}", "max_tokens": 6, **body},
        )
        assert response.status_code == 200, response.text
        await self.until(lambda: not self.live.shadows._tasks)
        return dict(response.json())

    async def ask_until(self, condition: Callable[[], bool], most: int = 400) -> Counter[str]:
        """Ask new prompts until a condition holds; returns the answers by arm."""
        arms: Counter[str] = Counter()
        while not condition():
            assert sum(arms.values()) < most, f"not after {most} requests"
            arms[(await self.ask())["routing"]["arm"]] += 1
        return arms

    async def metrics(self) -> dict[str, float]:
        lines = (await self.client.get("/metrics")).text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("vbon"))
        return {name: float(value) for name, value in found.items()}


@cache
def _empty_store() -> bytes:
    """A store with its tables, which take a while to make."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "runs.db"
        open_store(str(file)).close()
        return file.read_bytes()


def rolling_runtime(tmp_path: Path, ref: Engine | None = None, **distil: Any) -> Runtime:
    """A runtime whose directory, store and keys are in ``tmp_path``, which a further one continues."""
    keys, store = tmp_path / "keys.jsonl", tmp_path / "runs.db"
    if not store.exists():
        store.write_bytes(_empty_store())
    write_keys(keys, [key for key, _ in (ROOT_KEY, ANN_KEY)])
    settings = {"shares": [0.5, 1.0], "shadow_share": 1.0, "n": 4} | distil
    return make_runtime(
        engines={"ref": ref or ChatEngine("ref")},  # type: ignore[dict-item]
        auth={"keys_file": str(keys)},
        store=str(store),
        distil={"dir": str(tmp_path / "kept"), "policy": "live", **settings},
    )


@asynccontextmanager
async def rolling(
    tmp_path: Path, builder: SpeakerBuilder | None = None, ref: Engine | None = None, **distil: Any
) -> AsyncGenerator[Rolling, None]:
    """A service with its directory and its store in ``tmp_path``, which a further one continues."""
    runtime = rolling_runtime(tmp_path, ref, **distil)
    async with serving(runtime, rebuild=builder or SpeakerBuilder()) as (app, client):
        client.headers.update(bearer(ROOT_KEY))
        found = Rolling(app, client, runtime, tmp_path / "kept")
        await found.until(lambda: found.live.keeper.read or not found.live.keeper._saving)
        yield found
