"""A connection to a limits' host in the same process, in order, which tests cut and disturb."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from service.admission.host import AdmissionHost
from vbon.errors import EngineDeadError, VbonError


class MemoryLink:
    """Calls a host as the wire does: each call is a task of the host's, begun in the order of sending.

    Attributes:
        drops: says whether a message without an answer gets lost.
    """

    def __init__(self, host: AdmissionHost) -> None:
        self._host = host
        self._calls: dict[asyncio.Task[None], asyncio.Queue[Any]] = {}
        self._open = True
        self.drops: Callable[[str, tuple[Any, ...]], bool] = lambda method, args: False

    async def call(self, method: str, *args: Any) -> Any:
        async def run(answers: asyncio.Queue[Any]) -> None:
            answers.put_nowait(("item", await getattr(self._host, method)(*args)))

        async with aclosing(self._answers(run)) as answers:
            return await anext(answers)

    async def stream(self, method: str, *args: Any) -> AsyncGenerator[Any, None]:
        async def run(answers: asyncio.Queue[Any]) -> None:
            async with aclosing(getattr(self._host, method)(*args)) as items:
                async for item in items:
                    answers.put_nowait(("item", item))

        async with aclosing(self._answers(run)) as answers:
            async for answer in answers:
                yield answer

    def tell(self, method: str, *args: Any) -> None:
        async def run(_: asyncio.Queue[Any]) -> None:
            await getattr(self._host, method)(*args)

        if self._open and not self.drops(method, args):
            self._begin(run)

    def close(self) -> None:
        """End the connection: calls are cancelled at the host and fail here."""
        self._open = False
        for call, answers in list(self._calls.items()):
            answers.put_nowait(("error", EngineDeadError("the connection is lost")))
            call.cancel()

    def _begin(self, run: Callable[[asyncio.Queue[Any]], Any]) -> asyncio.Queue[Any]:
        answers: asyncio.Queue[Any] = asyncio.Queue()

        async def ended() -> None:
            try:
                await run(answers)
                answers.put_nowait(("end", None))
            except VbonError as error:
                answers.put_nowait(("error", error))

        call = asyncio.create_task(ended())
        self._calls[call] = answers
        call.add_done_callback(lambda done: self._calls.pop(done, None))
        return answers

    async def _answers(self, run: Callable[[asyncio.Queue[Any]], Any]) -> AsyncGenerator[Any, None]:
        if not self._open:
            raise EngineDeadError("the connection is lost")
        answers = self._begin(run)
        call = next(call for call, its in self._calls.items() if its is answers)
        try:
            while (answer := await answers.get())[0] == "item":
                yield answer[1]
            if answer[0] == "error":
                raise answer[1]
        finally:
            call.cancel()
