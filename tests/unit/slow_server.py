"""A server with known latencies: this service's API and OpenAI's, over real sockets, without a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any


@dataclass
class SlowServer:
    """A server whose answers take known times.

    Attributes:
        first_s: time to the first token; an answer in one piece takes ``first_s + (tokens - 1) * gap_s``.
        gap_s: time between tokens.
        tokens: number of tokens of every answer.
        slots: number of requests served at once, while others wait; ``None`` does not limit it.
        weighs: whether a request for n candidates takes n slots instead of one.
        stall: seconds after the first request at which the server stops for ``stall_s``.
        fail_every: every request with a multiple of this number is answered with 429; 0 disables it.
        rewards: rewards by mode; best-of-N's candidates have this plus 0, 1, 2, ...
        asked: modes and bodies of the received requests.
    """

    first_s: float = 0.02
    gap_s: float = 0.01
    tokens: int = 5
    slots: int | None = None
    weighs: bool = False
    stall: float | None = None
    stall_s: float = 1.0
    fail_every: int = 0
    rewards: dict[str, float] = field(default_factory=lambda: {"ref": 0.0, "vbon": 4.0, "bon": 0.0})
    text: str = "fine"
    training: dict[str, Any] | None = None
    url: str = ""
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _began: float | None = None
    _room: asyncio.Semaphore | None = None
    _entering: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def whole_s(self) -> float:
        """The time that a whole answer takes."""
        return self.first_s + (self.tokens - 1) * self.gap_s

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.stall is not None and self._began is not None:
            now = perf_counter() - self._began
            if self.stall <= now < self.stall + self.stall_s:
                await asyncio.sleep(self.stall + self.stall_s - now)

    def modes(self) -> dict[str, Any]:
        def model(name: str) -> dict[str, str]:
            return {"name": name, "path": f"/models/{name}", "revision": f"sha256:{name}"}

        return {
            "default_mode": "bon", "gold_model": None, "limits": {},
            "modes": [
                {"name": name, "description": "", "source": "", "settings": {},
                 "policy": model("vbon" if name == "vbon" else "ref"),
                 "reward_model": model("reward") if name == "bon" else None, "default_n": 4,
                 "training": self.training if name == "vbon" else None}
                for name in ("ref", "vbon", "bon")
            ],
        }  # fmt: skip

    def answer(self, mode: str, body: dict[str, Any]) -> dict[str, Any]:
        n = body.get("n", 1)
        rewards = [self.rewards[mode] + i for i in range(n)]
        found: dict[str, Any] = {
            "text": self.text,
            "reward": None if body.get("score") is False else rewards[-1],
            "usage": {"prompt_tokens": 3, "generated_tokens": self.tokens * n,
                      "returned_tokens": self.tokens},
            "timings_ms": {"queue": 1.0, "decode": 2.0, "rerank": 3.0, "scoring": 4.0, "total": 6.0},
            "candidates": None,
        }  # fmt: skip
        if body.get("return_candidates"):
            found["candidates"] = [{"reward": reward} for reward in rewards]
        return found

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, target, _ = head.split("\r\n")[0].split(" ")
                body: dict[str, Any] = {}
                if method == "POST":
                    length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                    body = json.loads(await reader.readexactly(length))
                await self._respond(target, body, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(
        self, target: str, body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        if target == "/readyz":
            return _send(writer, {"status": "ready"})
        if target == "/modes":
            return _send(writer, self.modes())
        if target == "/v1/models":
            return _send(writer, {"data": [{"id": "ref", "root": "/models/ref"}]})
        if target == "/evaluation/prompts":
            return _send(writer, {"error": {"type": "not_found"}}, "404 Not Found")
        openai = target.startswith("/v1/")
        mode = body["model"] if openai else target.partition("mode=")[2]
        self.asked.append((mode, body))
        if self._began is None:
            self._began = perf_counter()
        if self.fail_every and len(self.asked) % self.fail_every == 0:
            return _send(writer, {"error": {"type": "overloaded"}}, "429 Too Many Requests")
        if self._room is None:
            self._room = asyncio.Semaphore(self.slots or 10**6)
        async with self._served(body.get("n", 1) if self.weighs else 1):
            if not body.get("stream"):
                await self._pause(self.whole_s)
                return _send(writer, self.answer(mode, body))
            await self._stream(mode, body, writer, openai=openai)
        return None

    @asynccontextmanager
    async def _served(self, slots: int) -> AsyncGenerator[None, None]:
        """Hold so many slots, in the order of arrival."""
        assert self._room is not None
        async with self._entering:
            for _ in range(slots):
                await self._room.acquire()
        try:
            yield
        finally:
            for _ in range(slots):
                self._room.release()

    async def _stream(
        self, mode: str, body: dict[str, Any], writer: asyncio.StreamWriter, *, openai: bool
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for i in range(self.tokens):
            await self._pause(self.gap_s if i else self.first_s)
            if openai:
                _chunk(writer, {"choices": [{"text": "x"}], "usage": None})
            else:
                _chunk(writer, {"text": "x", "num_tokens": i + 1}, "token")
        if openai:
            _chunk(writer, {"choices": [], "usage": {"completion_tokens": self.tokens}})
            _chunk(writer, "[DONE]")
        else:
            _chunk(writer, self.answer(mode, body), "answer")
        writer.write(b"0\r\n\r\n")


def _send(writer: asyncio.StreamWriter, value: dict[str, Any], status: str = "200 OK") -> None:
    content = json.dumps(value).encode()
    writer.write(
        f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )


def _chunk(writer: asyncio.StreamWriter, data: Any, name: str = "") -> None:
    text = data if isinstance(data, str) else json.dumps(data)
    content = ((f"event: {name}\n" if name else "") + f"data: {text}\n\n").encode()
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


@asynccontextmanager
async def listening(server: SlowServer) -> AsyncGenerator[SlowServer, None]:
    """A server that listens on a free port, in this event loop."""
    found = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{found.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        found.close()
