"""Closed-loop load of its_hub's best-of-n; runs in the peers' Python environment, not in this project's.

Reads a job as JSON from standard input and writes ``{"seconds", "texts"}``. As shipped means ``BestOfN``
with its LLM judge over the same model and its own limit of 32 calls in flight. Tuned means no limit of
calls or connections, and a reward class that sends all candidates to the scorer in one call.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from time import perf_counter
from typing import Any

import aiohttp
from its_hub import (
    AbstractOutcomeRewardModel,
    BestOfN,
    LLMJudge,
    LMOrchestrator,
    OpenAICompatibleLanguageModel,
)


class UnlimitedLanguageModel(OpenAICompatibleLanguageModel):
    """its_hub's language model without aiohttp's default limit of 100 connections."""

    session: aiohttp.ClientSession | None = None

    def _get_session(self, loop: asyncio.AbstractEventLoop) -> aiohttp.ClientSession:
        if self.session is None:
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self.session

    async def close(self) -> None:
        """Close the session."""
        if self.session is not None:
            await self.session.close()


class ScorerReward(AbstractOutcomeRewardModel):
    """Reward model that sends all conversations of a call to a scorer in one request."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    def score(self, messages: Any, **_: Any) -> list[float]:
        """Synchronous scoring, which best-of-n does not use."""
        raise NotImplementedError

    async def ascore(self, messages: Any, orchestrator: Any = None, **_: Any) -> list[float]:
        """One reward for each conversation, which consists of a prompt and an answer."""
        body = {
            "prompts": [conversation[0].content for conversation in messages],
            "completions": [conversation[-1].content or "" for conversation in messages],
        }
        async with self._session.post(self._url, json=body) as response:
            rewards = (await response.json())["rewards"]
        return [-float("inf") if reward is None else reward for reward in rewards]

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Answer the job's prompts, ``concurrency`` at a time."""
    tuned = job["scorer_url"] is not None
    language_model = UnlimitedLanguageModel if tuned else OpenAICompatibleLanguageModel
    lm = language_model(
        endpoint=job["base_url"],
        api_key="none",
        model_name=job["model"],
        max_completion_tokens=job["max_tokens"],
        temperature=1.0,
    )
    reward = ScorerReward(job["scorer_url"]) if tuned else None
    orchestrator = LMOrchestrator(max_concurrency=-1) if tuned else LMOrchestrator()
    best_of_n = BestOfN(reward or LLMJudge(lm), orchestrator)
    texts = [""] * len(job["prompts"])
    waiting = iter(list(enumerate(job["prompts"])))

    async def worker() -> None:
        for index, prompt in waiting:
            answer = await best_of_n.ainfer(lm, prompt, job["n"])
            texts[index] = answer["content"]

    begun = perf_counter()
    await asyncio.gather(*(worker() for _ in range(job["concurrency"])))
    seconds = perf_counter() - begun
    await lm.close()
    if reward is not None:
        await reward.close()
    return {"seconds": seconds, "texts": texts}


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
