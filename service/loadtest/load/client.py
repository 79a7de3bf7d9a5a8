"""Sends one request and records when each part of its answer arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from service.loadtest.load.connection import ConnectionPool, HttpResponse, ProtocolError
from service.loadtest.load.targets import AnswerError, Ask, Reading, Target
from service.loadtest.observation import Observation
from service.loadtest.plan import Variant
from vbon.prompts import Prompt

OK = 200


class EventReader:
    """A parser that splits a stream of bytes into server-sent events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[tuple[str, Any]]:
        """The events that this piece completes: their names, empty if an event has none, and their data.

        Data is parsed JSON, except for OpenAI's ``[DONE]``.

        Raises:
            AnswerError: the data of an event is not JSON.
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
    """A client of one server under load; it measures latencies as seen from this process."""

    def __init__(self, pool: ConnectionPool, target: Target, timeout_s: float) -> None:
        self._pool, self._target, self._timeout_s = pool, target, timeout_s

    async def send(self, variant: Variant, prompt: Prompt, seen: Observation, begun: float) -> None:
        """Send one request and fill in ``seen``; a failure is recorded there and does not raise.

        Args:
            begun: ``perf_counter`` at the start of the block, from which moments count.
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
        self, response: HttpResponse, ask: Ask, seen: Observation, begun: float
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
                    _note_text(seen, now)  # for a second event in one piece, the gap is 0
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
    """The status and, if the body has one, the type of the error, such as ``HTTP 429 overloaded``."""
    try:
        kind = str(json.loads(content)["error"]["type"])
    except (ValueError, KeyError, TypeError):
        kind = ""
    return f"HTTP {status} {kind}".strip()
