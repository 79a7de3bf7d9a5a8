"""An object with a method of each kind, for the tests of the wire, also in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping

from service.wire import Timing, current_client, interface_of
from vbon.engine import Sampling
from vbon.errors import InvalidInputError, PromptTooLongError
from vbon.prompts import Prompt
from vbon.trace_context import trace_headers

QUICK = Timing(beat_s=0.02, silence_s=0.2)
# For a side in another process, which a busy machine may leave without a core for some tenths of a second.
PATIENT = Timing(beat_s=0.05, silence_s=1.0)


class Target:
    """An object with a method of each kind."""

    def __init__(self) -> None:
        self.sent = 0
        self.ended: list[str] = []
        self.told: list[tuple[str, int]] = []

    async def add(self, a: int, b: int) -> int:
        return a + b

    async def size(self, text: str) -> int:
        return len(text)

    async def long(self, length: int) -> str:
        return "x" * length

    async def echo(self, prompt: Prompt, sampling: Sampling) -> tuple[Prompt, Sampling]:
        return prompt, sampling

    async def who(self) -> str:
        return current_client.get()

    async def trace(self) -> Mapping[str, str]:
        return dict(trace_headers.get())

    async def wait(self) -> None:
        await self._until_cancelled("wait")

    async def last(self) -> AsyncGenerator[int, None]:
        yield 0
        await self._until_cancelled("last")

    async def fail(self, kind: str) -> None:
        if kind == "typed":
            raise PromptTooLongError(prompt_tokens=3, max_tokens=2, limit=4)
        if kind == "not text":
            raise InvalidInputError("file caf\udce9 is missing", field="caf\udce9")
        if kind == "large number":
            error = InvalidInputError("too many", field="n")
            error.log_text = 2**64  # type: ignore[assignment]
            raise error
        raise ZeroDivisionError("private text")

    async def numbers(self, count: int) -> AsyncGenerator[int, None]:
        for number in range(count):
            self.sent += 1
            yield number

    async def drip(self) -> AsyncGenerator[int, None]:
        yield 1
        await self._until_cancelled("drip")

    async def break_off(self) -> AsyncGenerator[int, None]:
        yield 1
        raise InvalidInputError("enough", field="n")

    async def note(self, number: int) -> None:
        self.told.append((current_client.get(), number))

    async def _until_cancelled(self, name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.append(name)


INTERFACE = interface_of(
    Target,
    *(name for name in vars(Target) if not name.startswith("_")),
    lasting=("last",),
)
