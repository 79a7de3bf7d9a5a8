"""The service's own scorer behind HTTP, for sides that rerank outside of the service.

It speaks the protocol of :class:`~vbon.rewards.remote.RemoteReward`: ``{"prompts", "completions"}`` in,
``{"rewards"}`` out. Calls that arrive during one batch share the next batch, as inside the service.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from service.bench.harness import listening
from service.runtime.served_scorer import ServedScorer
from vbon.prompts import Prompt


def scorer_app(scorer: ServedScorer) -> ASGIApp:
    """A bare ASGI application, so callers are not charged the time of a web framework."""

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        asked = json.loads(body)
        pairs = zip(asked["prompts"], asked["completions"], strict=True)
        rewards = await asyncio.gather(
            *(scorer.score(Prompt(text=prompt), completion) for prompt, completion in pairs)
        )
        content = json.dumps({"rewards": rewards}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return app


@asynccontextmanager
async def scorer_endpoint(scorer: ServedScorer) -> AsyncGenerator[str, None]:
    """Serve the scorer on a free port of this machine, in this event loop; yield its address."""
    async with listening(scorer_app(scorer), lifespan=False) as url:
        yield f"{url}/score"
