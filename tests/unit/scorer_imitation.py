"""A remote scorer that can do everything wrong: a real HTTP server."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

WRONG = {
    "error": b'{"detail": "out of memory"}',
    "html": b"<html>gateway</html>",
    "rubbish": b"\xff\xfe\x00",
    "cut": b'{"rewards": [1.0, 2.',
    "empty": b"",
    "no-list": b'{"rewards": 3}',
    "no-object": b"[1, 2]",
    "words": b'{"rewards": ["high"]}',
}
ENDLESS = ("drip", "drip-head", "huge")


@dataclass
class Scorer:
    """Rewards by length, unless ``fault`` says otherwise.

    Attributes:
        fault: ``error`` (500), ``few``, ``many``, ``nan``, ``null``, ``hang``, ``drop``, ``half``,
            ``drip`` and ``drip-head`` (a byte now and then, for ever), ``huge``, ``gzip``, or a body of
            :data:`WRONG`.
        drip_s: between two bytes.
        sent: bytes of bodies that the other side took.
    """

    fault: str = ""
    calls: int = 0
    url: str = ""
    drip_s: float = 0.1
    sent: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                self.calls += 1
                if not await self._answer(body["completions"], writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, completions: list[str], writer: asyncio.StreamWriter) -> bool:
        fault = self.fault
        if fault == "drop":
            return False
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault in ENDLESS:
            await self._endless(writer)
        if fault == "gzip":
            content = gzip.compress(bytes(2**20))
            head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            await writer.drain()
            return True
        content = WRONG.get(fault) or self._rewards(completions)
        promised = len(content) + (20 if fault == "half" else 0)
        status = "500 Internal Server Error" if fault == "error" else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: {promised}\r\n\r\n".encode() + content)
        await writer.drain()
        return fault != "half"

    async def _endless(self, writer: asyncio.StreamWriter) -> None:
        """Until the other side goes, which raises."""
        head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n"
        writer.write(
            f"{head}{'x-drip: ' if self.fault == 'drip-head' else chr(13) + chr(10)}".encode()
        )
        piece = bytes(2**16) if self.fault == "huge" else b" "
        framed = piece if self.fault == "drip-head" else b"%x\r\n%s\r\n" % (len(piece), piece)
        while True:
            writer.write(framed)
            await writer.drain()
            self.sent += len(piece)
            await asyncio.sleep(0 if self.fault == "huge" else self.drip_s)

    def _rewards(self, completions: list[str]) -> bytes:
        rewards: list[float | None] = [len(text) / 10 for text in completions]
        if self.fault == "empty":
            return b""
        if self.fault == "few":
            rewards = rewards[1:]
        if self.fault == "many":
            rewards.append(1.0)
        if self.fault == "nan":
            rewards[0] = float("nan")
        if self.fault == "null":
            rewards = [None] * len(rewards)
        return json.dumps({"rewards": rewards}).encode()


@asynccontextmanager
async def scoring(fault: str = "") -> AsyncGenerator[Scorer, None]:
    """A running one."""
    scorer = Scorer(fault)
    server = await asyncio.start_server(scorer.handle, "127.0.0.1", 0)
    scorer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/score"
    try:
        yield scorer
    finally:
        server.close()
