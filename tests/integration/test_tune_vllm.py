"""Replayed answers against those of the real service on vLLM."""

from __future__ import annotations

import httpx
import pytest

from service.app import create_app
from service.runtime.runtime import Runtime
from service.tune.drawing import candidates_of
from service.tune.replay import replayed_answer, rule_of

pytestmark = [pytest.mark.vllm, pytest.mark.train]


async def test_replay_gives_the_answers_of_the_real_service(runtime: Runtime) -> None:
    """With one drawing of 8, the answers of five modes at n = 4 and 8, and the tokens that they cost."""
    transport = httpx.ASGITransport(app=create_app(runtime))
    body = {"prompt": "the film was", "max_tokens": 16, "seed": 11}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", timeout=120
    ) as client:
        drawn = {**body, "n": 8, "return_candidates": True}
        one = candidates_of((await client.post("/generate?mode=bon", json=drawn)).json(), 11)
        for mode in ("bon", "soft-bon", "rbon-length", "mbr-bon", "adaptive-bon"):
            rule = rule_of(mode, {}, reshaped=False, tells="policy")
            for n in (4, 8):
                answer = await client.post(f"/generate?mode={mode}", json={**body, "n": n})
                index, tokens = replayed_answer(rule, one, n)
                assert answer.json()["text"] == one.texts[index], (mode, n)
                assert answer.json()["usage"]["generated_tokens"] == tokens, (mode, n)
