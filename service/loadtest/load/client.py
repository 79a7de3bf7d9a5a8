"""Sends one request and takes down what happens, moment by moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from service.loadtest.load.connection import Pool, ProtocolError, Response
from service.loadtest.load.targets import AnswerError, Ask, Reading, Target
from service.loadtest.observation import Observation
from service.loadtest.plan import Variant

OK = 200


class EventReader:
    """Cuts a stream of bytes into server-sent events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[tuple[str, Any]]:
        """The events that the piece completes: name (empty if it has none) and data.

        Data is JSON but for OpenAI's ``[DONE]``.

        Raises:
            AnswerError: data is no JSON.
        """
        *whole, self._rest = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in whole:
            name, data = "", ""
            for line in block.decode("utf-8", "replace").split("\n"):
                if line.startswith("data:"):
                    data += line[5:].strip()
                elif line.startswith("event:"):
                    name = line[6:].strip()
            if data:
                yield name, data if data == "[DONE]" else _parsed(data)


class LoadClient:
    """One server under load; latencies are this process's."""

    def __init__(self, pool: Pool, target: Target, timeout_s: float) -> None:
        self._pool, self._target, self._timeout_s = pool, target, timeout_s

    async def send(self, variant: Variant, prompt: str, seen: Observation, begun: float) -> None:
        """Ask, and fill in ``seen``; failures are told there as a kind and raise nothing.

        Args:
            begun: ``perf_counter`` of the block's start, which moments count from.
        """
        ask = self._target.ask(variant, prompt)
        body = json.dumps(ask.body).encode()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._pool.post(ask.target, body) as response,
            ):
                answer = await self._answer(response, ask, seen, begun)
            seen.done_s = perf_counter() - begun
            self._target.read(answer, seen)
        except TimeoutError:
            seen.error = "timeout"
        except (AnswerError, ProtocolError) as error:
            seen.error = str(error)
        except asyncio.IncompleteReadError:
            seen.error = "connection lost"
        except OSError as error:
            lost = isinstance(error, (ConnectionResetError, BrokenPipeError))
            seen.error = "connection lost" if lost else "cannot connect"
        if seen.error is not None:
            seen.done_s = perf_counter() - begun

    async def _answer(
        self, response: Response, ask: Ask, seen: Observation, begun: float
    ) -> dict[str, Any]:
        if response.status != OK:
            raise AnswerError(_refusal(response.status, await response.read()))
        if not ask.streamed:
            found = _parsed((await response.read()).decode("utf-8", "replace"))
            if not isinstance(found, dict):
                raise AnswerError("malformed answer")
            return found
        reading, events = Reading(), EventReader()
        async for piece in response.pieces():
            now = perf_counter() - begun
            for name, data in events.feed(piece):
                if self._target.event(name, data, reading):
                    _note_text(seen, now)  # also the second of a piece: its gap is none
        if not reading.ended or reading.answer is None:
            raise AnswerError("stream ended early")
        return reading.answer


def _note_text(seen: Observation, now: float) -> None:
    if seen.last_s is None:
        seen.first_s = now
    else:
        seen.gaps_ms.append(round((now - seen.last_s) * 1e3, 3))
    seen.last_s = now


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AnswerError("malformed answer") from error


def _refusal(status: int, content: bytes) -> str:
    """``HTTP 429 overloaded``: the status, and the kind where the answer tells it."""
    try:
        kind = str(json.loads(content)["error"]["type"])
    except (ValueError, KeyError, TypeError):
        kind = ""
    return f"HTTP {status} {kind}".strip()
