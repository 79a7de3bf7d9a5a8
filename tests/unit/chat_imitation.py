"""An engine behind OpenAI's two endpoints that says four texts in turn, and a started scorer."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from service.runtime.batching_scorer import BatchingScorer
from tests.unit.fakes import FakeReward

WORDS = ["bad", "good", "good good", "dull dull dull"]


class Engine:
    """Both of OpenAI's endpoints, each choice of a prompt another of four texts."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.app = Starlette(
            routes=[
                Route("/v1/completions", self.answer, methods=["POST"]),
                Route("/v1/chat/completions", self.answer, methods=["POST"]),
                Route("/short", self.short, methods=["POST"]),
            ]
        )

    async def short(self, _: Request) -> JSONResponse:
        return JSONResponse({"choices": [{"text": "only"}, {"text": "two"}]})

    async def answer(self, request: Request) -> JSONResponse:
        body = await request.json()
        n = body.get("n", 1)
        texts = [WORDS[(len(self.asked) + i) % len(WORDS)] for i in range(n)]
        self.asked.append(body)
        choices = [
            {"index": i, "text": text, "message": {"role": "assistant", "content": text},
             "finish_reason": "stop"}
            for i, text in enumerate(texts)
        ]  # fmt: skip
        usage = {"prompt_tokens": 1, "completion_tokens": n, "total_tokens": n + 1}
        head = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"]}
        return JSONResponse({**head, "choices": choices, "usage": usage})


async def started_scorer(model: FakeReward) -> BatchingScorer:
    started = BatchingScorer(model)
    await started.start()
    return started
