"""uvicorn in the test's own process and event loop, without the waits of its ``serve``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn


@asynccontextmanager
async def listening(config: uvicorn.Config) -> AsyncGenerator[tuple[uvicorn.Server, int], None]:
    """A listening server in this process, and its port; stopped afterwards.

    The steps are those of ``uvicorn.Server.serve``, which looks only ten times a second whether it
    should stop, and then waits for another tenth. Connections that are idle are closed at the end, and
    requests under way are awaited as long as the configuration says, then cancelled.
    """
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    await server.on_tick(0)  # sets the headers of every response
    try:
        yield server, server.servers[0].sockets[0].getsockname()[1]
    finally:
        for listener in server.servers:
            listener.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()
        if tasks := set(server.server_state.tasks):
            _, late = await asyncio.wait(tasks, timeout=config.timeout_graceful_shutdown)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await server.lifespan.shutdown()
