"""The bench's row ``client`` once, small, against a real ``vllm serve``."""

from __future__ import annotations

import pytest

from service.app import create_app
from service.bench.client import against_plain_client
from service.bench.config import BenchSettings
from service.bench.harness import Bench, listening
from service.runtime.runtime import Runtime
from vbon.prompts import Prompt

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.train,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the session's engines fill the GPU"),
]


async def test_client_row_over_vllm_serve(runtime: Runtime, vllm_server: str) -> None:
    """The row with the session's ``vllm serve``, which saves starting another."""
    settings = BenchSettings(pairs=1, n=4, max_tokens=8, bon_requests=4)
    prompts = [Prompt(text="the film was"), Prompt(text="another")]
    async with listening(create_app(runtime), lifespan=False) as url:
        figure = await against_plain_client(Bench(settings, runtime, prompts, url), vllm_server)
    assert figure.value.median > 0
    for name in ("reward", "gold reward"):
        assert figure.quality[name]["difference"]["count"] == len(prompts)
