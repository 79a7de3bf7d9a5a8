"""The dashboard over real vLLM: every metric it asks for is there, and counts."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from service.app import create_app
from service.runtime.runtime import Runtime
from tests.unit.fakes import stream
from tests.unit.test_metrics import scraped, valued
from tests.unit.test_observability import queried

pytestmark = [pytest.mark.vllm, pytest.mark.train]


async def test_every_metric_of_the_dashboard_is_a_real_one(runtime: Runtime) -> None:
    app = create_app(runtime)
    transport = httpx.ASGITransport(app=app)
    body = {"prompt": "the film was", "n": 4, "max_tokens": 8}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        before = await scraped(client)
        answers = [
            (await client.post("/generate?mode=bon&policy=vbon", json=body)).json(),
            (await client.post("/generate?mode=vbon", json=body)).json(),
        ]
        await client.post("/generate", json={"prompt": ""})
        await stream(app, "/generate?mode=vbon", {**body, "stream": True})
        await asyncio.sleep(0.1)  # vLLM counts a step after it has given out its tokens
        after = await scraped(client)
    exported = {name for name, _ in after}
    for prefix, at_least in (("vbon", 15), ("vllm", 7)):
        assert len(queried(prefix)) >= at_least
        assert queried(prefix) <= exported, queried(prefix) - exported
    # The engine's own count is what the answers say, and the streamed answer's few.
    (tokens,) = valued(after, "vllm:generation_tokens_total", policy="vbon")
    (had,) = valued(before, "vllm:generation_tokens_total", policy="vbon")
    told = sum(answer["usage"]["generated_tokens"] for answer in answers)
    assert told < tokens - had <= told + 8
    # An engine without --engine.metrics has none.
    policies = {dict(labels).get("policy") for name, labels in after if name.startswith("vllm:")}
    assert policies == {"vbon"}
