"""Stand-ins for tests of ``vbon distil run``: its commands, and a service whose state survives a kill."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx
from rich.console import Console

from tests.unit.collected import answer, identity
from vbon.distil.answer import Identity
from vbon.distil.directory import CollectedDirectory
from vbon.distil.loop.config import DistilRunConfig
from vbon.distil.loop.run import Loop, Tools
from vbon.distil.loop.service import Service
from vbon.distil.loop.state import ROUNDS, LoopState

OPENINGS = [
    "the film was", "i saw this", "her first role", "a low budget", "in this drama", "the plot of",
    "nobody",
]  # fmt: skip
WORDS = [
    "quiet", "slow", "bright", "loud", "odd", "warm",
    "cold", "long", "short", "clever", "flat", "grim",
    "sweet", "dark", "plain",
]  # fmt: skip


def prompts(count: int, *, seed: int = 0, words: list[str] = WORDS) -> list[str]:
    """Distinct prompts in words."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[f"{rng.choice(OPENINGS)} {' '.join(rng.sample(words, 4))}"] = None
    return list(found)


def collect(
    directory: Path,
    texts: list[str],
    *,
    begin_s: float = 1000.0,
    seal: bool = True,
    made: Identity | None = None,
    n: int = 4,
    reward: Callable[[str, int], float] = lambda text, i: crc32(f"{text} {i}".encode()) % 100 / 10,
    key: Callable[[int], str] = lambda i: "",
) -> None:
    """Add answers to a directory, one a second."""
    kept = CollectedDirectory(directory)
    for i, text in enumerate(texts):
        kept.append(
            made or identity(),
            answer(
                f"r-{begin_s + i:.0f}",
                prompt=text,
                responses=tuple(f" {text[-3:]} {i} {j}" for j in range(n)),
                response_ids=tuple((j + 1, 9) for j in range(n)),
                rewards=tuple(reward(text, j) for j in range(n)),
                finish_reasons=("stop",) * n,
                indices=tuple(range(n)),
                independent=n,
                time=begin_s + i,
                key=key(i),
            ),
        )
    if seal:
        kept.close()
    else:  # as a killed service leaves it
        for shard in kept.open.values():
            shard._file.flush()
        kept._exit.close()


def by_prompt(
    *,
    win_rate: float = 0.8,
    kl: float = 1.0,
    length: float = 10.0,
    cut_off: float = 0.0,
    count: int = 40,
) -> dict[str, list[float]]:
    """A method's figures of each prompt, with some spread around these means."""
    spread = [0.05 * (-1) ** i for i in range(count)]
    return {
        "win_rate": [win_rate + s for s in spread],
        "reward": [win_rate * 2 + s for s in spread],
        "kl_nats": [kl + s for s in spread],
        "tokens": [length + s for s in spread],
        "truncated": [cut_off] * count,
    }


def evaluated(
    candidate: dict[str, list[float]], **others: dict[str, list[float]]
) -> dict[str, Any]:
    """The figures of all methods."""
    own = {
        "reference": by_prompt(win_rate=0.5, kl=0.0),
        "best-of-n": by_prompt(win_rate=0.8, kl=0.64),
    }
    return {**own, "candidate": candidate, **others}


@dataclass
class FakeCommands:
    """``vbon train`` and ``vbon evaluate`` for tests: they write what the loop reads of their results."""

    candidate: dict[str, list[float]] = field(default_factory=by_prompt)
    live: dict[str, list[float]] = field(default_factory=by_prompt)
    ran: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    at: Callable[[str], None] = lambda place: None
    rank_pattern: dict[str, int] = field(default_factory=dict)

    def __call__(self, program: str, name: str, *words: str, niceness: int = 0) -> None:
        assert program == "training"
        assert niceness == 10
        self.at(f"{name} begins")
        self.ran.append(name)
        file = Path(words[words.index("--config") + 1])
        settings = self.settings[name] = tomllib.loads(file.read_text()) | {"flags": words}
        out = Path(settings["out"])
        if name == "evaluate":
            methods = {"live": self.live} if "live" in settings["checkpoints"] else {}
            figures = evaluated(self.candidate, **methods)
            (out / "per-prompt.json").write_text(json.dumps(figures))
        else:
            assert Path(settings["cache"]).is_file()
            columns = Path(f"{settings['cache']}.columns")
            columns.mkdir(exist_ok=True)
            (columns / "rewards.npy").write_text("")
            out.mkdir(parents=True, exist_ok=True)
            if isinstance(rank := settings.get("lora_rank"), int) and "initial" not in settings:
                (out / "adapter").mkdir(exist_ok=True)
                config = {"r": rank, "rank_pattern": self.rank_pattern}
                (out / "adapter" / "adapter_config.json").write_text(json.dumps(config))
            cost = {"training_seconds": 1.0, "tokens_drawn": 1000}
            (out / "training.json").write_text(json.dumps({"cost": cost}))
        self.at(f"{name} ends")


@dataclass
class FakeService:
    """The routes that the loop uses. Its checkpoints are in a file, so they survive the process.

    Attributes:
        file: ``None``: the service serves no checkpoints.
        lora_rank: ``None``: it serves whole models.
        reported: bodies of reports of progress, which are always taken.
        away: requests that fail from now on, with this status or 0 for no connection.
    """

    file: Path | None
    margin: float = 0.05
    approve: bool = False
    lora_rank: int | None = None
    reported: list[dict[str, Any]] = field(default_factory=list)
    away: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    at: Callable[[str], None] = lambda place: None

    def state(self) -> dict[str, Any]:
        assert self.file is not None
        state = {"policy": "live", "n": 4, "margin": self.margin, "live": None, "checkpoints": []}
        if self.file.exists():
            state = dict(json.loads(self.file.read_text()))
        return {**state, "lora_rank": self.lora_rank}

    def change(self, name: str, **fields: Any) -> None:
        """Change a checkpoint, and which one is live."""
        state = self.state()
        for one in state["checkpoints"]:
            if one["id"] == name:
                one.update(fields)
            elif fields.get("status") == "live" == one["status"]:
                one.update(status="retired", share=0.0)
            if one["status"] == "live":
                one["was_live"] = True
        live = [one["id"] for one in state["checkpoints"] if one["status"] == "live"]
        state["live"] = live[0] if live else None
        assert self.file is not None
        self.file.write_text(json.dumps(state))

    def answer(self, request: httpx.Request) -> httpx.Response:
        place = f"{request.method} {request.url.path}"
        if place == "PUT /distil/progress":
            self.reported.append(json.loads(request.content))
            return httpx.Response(200, json={})
        self.asked.append(place)
        if self.away:
            status = self.away.pop(0)
            if not status:
                raise httpx.ConnectError("connection refused")
            return httpx.Response(status, json={"error": {"message": "not now"}})
        self.at(f"{place} begins")
        response = self._response(request, place)
        self.at(f"{place} ends")
        return response

    def _response(self, request: httpx.Request, place: str) -> httpx.Response:
        if place == "POST /distil/seal":
            return httpx.Response(200, json={})
        if self.file is None:
            return httpx.Response(404, json={"error": {"message": "no --distil.policy"}})
        state = self.state()
        if place == "GET /distil/checkpoints":
            return httpx.Response(200, json=state)
        assert place == "POST /distil/checkpoints"
        body = json.loads(request.content)
        _, name, *_ = body["path"].split("/")
        found = next((one for one in state["checkpoints"] if one["id"] == name), None)
        if found is None:
            verdict = body["decision"]["verdict"]
            by_itself = verdict == "promote" and not self.approve
            found = {
                "id": name,
                "status": "rolling"
                if by_itself
                else "refused"
                if verdict == "refuse"
                else "waiting",
                "approved": "decision" if by_itself else None,
                "share": 0.05 if by_itself else 0.0,
                "decision": body["decision"],
                "path": body["path"],
            }
            state["checkpoints"].insert(0, found)
            self.file.write_text(json.dumps(state))
        return httpx.Response(200, json=found)


class Desk:
    """A directory of collected answers with a loop that can be started again and again."""

    def __init__(self, folder: Path, *, with_service: bool = True, **settings: Any) -> None:
        self.dir = folder / "collected"
        self.commands = FakeCommands()
        self.service = FakeService(folder / "service.json")
        self.with_service = with_service
        self.settings: dict[str, Any] = {"min_prompts": 20, "once": True, **settings}
        if with_service:
            self.settings["url"] = "http://service"
        self.output, self.slept = StringIO(), list[float]()
        self.while_waiting: Callable[[], None] = self._stuck

    def _stuck(self) -> None:
        raise AssertionError(f"the loop waits for ever:\n{self.output.getvalue()}")

    def loop(self, **changes: Any) -> Loop:
        """The loop as a new process would make it."""
        config = DistilRunConfig(dir=self.dir, **{**self.settings, **changes})
        (self.dir / ROUNDS).mkdir(parents=True, exist_ok=True)
        console = Console(file=self.output, width=200)

        def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            if len(self.slept) > 50:
                self._stuck()
            self.while_waiting()

        service = None
        if self.with_service:
            transport = httpx.MockTransport(self.service.answer)
            client = httpx.Client(base_url="http://service", transport=transport)
            service = Service(client, self.output.write, sleep=self.slept.append)  # type: ignore[arg-type]
        tools = Tools(command=self.commands, sleep=sleep, clock=lambda: 5000.0)
        return Loop(config, service, console, tools)

    def run(self, **changes: Any) -> str:
        """Run the loop to its end; returns what it said."""
        self.slept.clear()
        self.loop(**changes).run()
        return self.output.getvalue()

    @property
    def state(self) -> LoopState:
        return LoopState.read(self.dir / ROUNDS)

    def read(self, name: str) -> Any:
        return json.loads((self.dir / ROUNDS / name).read_text())
