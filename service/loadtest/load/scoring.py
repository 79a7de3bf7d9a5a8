"""Runs the scoring passes: each variant answers the prompts again, outside the timed blocks, with scores."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

from service.loadtest.config import LoadTestSettings
from service.loadtest.load.connection import ConnectionPool, ProtocolError
from service.loadtest.load.targets import is_truncated, native_path
from service.loadtest.observation import ScoredAnswer
from service.loadtest.plan import BON, Variant
from vbon.maths.seeds import seed_of
from vbon.prompt_files import prompt_record
from vbon.prompts import Prompt


async def score_variant(
    pool: ConnectionPool,
    variant: Variant,
    prompts: Sequence[Prompt],
    settings: LoadTestSettings,
    on_row: Callable[[], None],
    *,
    gold: bool = False,
    collected: bool = False,
) -> list[ScoredAnswer]:
    """``quality_samples`` scored answers to each prompt; failed requests are answers with an error.

    Args:
        gold: also ask for gold rewards, which the server must have.
        collected: forbid the server to keep the answers for training, as it would.
    """
    max_tokens, temperature = settings.sampling
    room = asyncio.Semaphore(settings.quality_concurrency)

    async def one(prompt: int, sample: int) -> ScoredAnswer:
        # Every mode has its own seeds, so that no answer is a candidate of another mode; N does not matter.
        seed = seed_of(repr((settings.seed, variant.name, prompt, sample)))
        body = {
            **prompt_record(prompts[prompt]),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "ignore_eos": settings.ignore_eos,
            "seed": seed,
        }
        if gold:
            body["gold"] = True
        if collected:
            body["store"] = False
        if variant.reranks:
            body |= {"n": variant.n, "return_candidates": variant.mode == BON}
        async with room:
            row = ScoredAnswer(prompt=prompt, sample=sample)
            await _ask(pool, native_path(variant), body, settings.timeout_s, row)
        on_row()
        return row

    count = min(settings.quality_prompts, len(prompts))
    asked = [one(p, s) for p in range(count) for s in range(settings.quality_samples)]
    return list(await asyncio.gather(*asked))


async def _ask(
    pool: ConnectionPool, path: str, body: dict[str, Any], timeout_s: float, row: ScoredAnswer
) -> None:
    try:
        async with asyncio.timeout(timeout_s), pool.post(path, json.dumps(body).encode()) as found:
            content = await found.read()
        if found.status != 200:
            row.error = f"HTTP {found.status}"
            return
        answer = json.loads(content)
        row.text, row.reward = answer["text"], answer["reward"]
        row.gold = answer.get("gold_reward")
        row.unscored = int(row.reward is None)
        row.truncated = is_truncated(answer.get("finish_reason"))
        if answer.get("candidates"):
            scored = [one for one in answer["candidates"] if one["reward"] is not None]
            row.candidates = [one["reward"] for one in scored]
            ends = [is_truncated(one.get("finish_reason")) for one in scored]
            row.candidates_truncated = None if None in ends else [bool(end) for end in ends]
            row.gold_candidates = [one.get("gold_reward") for one in scored]
            row.unscored = len(answer["candidates"]) - len(scored)
    except TimeoutError:
        row.error = "timeout"
    except (OSError, ProtocolError, asyncio.IncompleteReadError):
        row.error = "connection"
    except (ValueError, KeyError, TypeError):
        row.error = "malformed answer"
