"""Tools that rows measure with: the service over HTTP and the bare engine under it, in one process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import Any

import uvicorn

from service.app import create_app
from service.bench.config import BenchSettings
from service.bench.load import LoadJob, LoadResult, load_in_child
from service.runtime.runtime import Runtime
from service.server import keep_for_good
from vbon.engine import Sampling
from vbon.engine.vllm.engine import VllmEngine, generate_bare
from vbon.errors import VbonError
from vbon.prompt_files import prompt_record
from vbon.prompts import Prompt


@dataclass
class Bench:
    """A running service, its settings, and functions that send load to it."""

    settings: BenchSettings
    runtime: Runtime
    prompts: Sequence[Prompt]
    url: str

    async def over_http(
        self,
        mode: str,
        requests: int,
        concurrency: int,
        *,
        policy: str | None = None,
        **extra: object,
    ) -> LoadResult:
        """Send requests of one mode to the service in a closed loop."""
        body = {"n": self.settings.n, "max_tokens": self.settings.max_tokens, **extra}
        bodies = [{**prompt_record(prompt), **body} for prompt in self.cycled(requests)]
        target = f"{self.url}/generate?mode={mode}" + (f"&policy={policy}" if policy else "")
        return await load_in_child(LoadJob(target, bodies, concurrency))

    def width(self, n: int) -> int:
        """Requests of n sequences in flight that saturate the engine: as many wait as decode.

        With no waiting requests, places would be empty while an answer travels and the next prompt comes.
        """
        return max(2, 2 * self.settings.engine.max_num_seqs // n)

    async def bare(self, requests: int, concurrency: int, n: int) -> tuple[int, float]:
        """Tokens generated and seconds taken by ``AsyncLLM.generate`` alone on the reference's engine."""
        engine = self.engine
        sampling = Sampling(max_tokens=self.settings.max_tokens, logprobs=False)
        work = iter(list(enumerate(self.cycled(requests))))
        tokens = 0

        async def worker() -> None:
            nonlocal tokens
            for index, prompt in work:
                ids = await engine.encode(prompt)
                name = f"bare-{perf_counter()}-{index}"
                found = await generate_bare(engine, ids, sampling, n, name)
                tokens += found

        begun = perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return tokens, perf_counter() - begun

    @property
    def engine(self) -> VllmEngine:
        """The engine of the reference policy."""
        engine = self.runtime.policies["ref"]
        if not isinstance(engine, VllmEngine):
            raise VbonError(
                "the bench also measures the bare engine, so policy `ref` must be local, not remote"
            )
        return engine

    def cycled(self, count: int) -> Iterator[Prompt]:
        """The prompts of ``count`` requests: all in order, then again from the start."""
        return islice(cycle(self.prompts), count)


@asynccontextmanager
async def listening(app: Any, *, lifespan: bool = True) -> AsyncGenerator[str, None]:
    """Serve an ASGI application on a free port of this machine, in this event loop; yield its address."""
    # Without the protocol's number asyncio leaves Nagle's algorithm on, which delays answers by 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            log_level="warning",
            lifespan="on" if lifespan else "off",
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def served(runtime: Runtime) -> AsyncGenerator[str, None]:
    """Serve a runtime, wait until its models are loaded, and yield its address."""
    async with listening(create_app(runtime, on_ready=keep_for_good)) as url:
        while not runtime.ready:
            if runtime.failure is not None:
                raise runtime.failure
            await asyncio.sleep(0.1)
        yield url
