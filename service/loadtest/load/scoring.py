"""Quality passes of a load test: each variant answers the prompts once more, scored."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.loadtest.config import LoadTestSettings
from service.loadtest.load.connection import Pool, ProtocolError
from service.loadtest.load.targets import native_path
from service.loadtest.plan import Variant
from vbon.maths.seeds import seed_of

BON = "bon"


class ScoredRow(BaseModel):
    """One scored answer; ``candidates`` holds all of best-of-N's rewards that there are."""

    model_config = ConfigDict(extra="forbid")

    prompt: int
    sample: int
    text: str = ""
    reward: float | None = None
    candidates: list[float] | None = None
    unscored: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Scoring:
    """One pass: a variant and the variants that its answers stand for."""

    variant: Variant
    stands_for: tuple[Variant, ...]


def passes(variants: Sequence[Variant]) -> list[Scoring]:
    """Passes that score all variants: best-of-N of a policy once, at its largest N."""
    by_name: dict[str, list[Variant]] = defaultdict(list)
    for variant in variants:
        by_name[variant.name if variant.mode == BON else variant.label].append(variant)
    return [Scoring(max(group, key=lambda one: one.n), tuple(group)) for group in by_name.values()]


async def score_variant(
    pool: Pool,
    variant: Variant,
    prompts: Sequence[str],
    settings: LoadTestSettings,
    on_row: Callable[[], None],
) -> list[ScoredRow]:
    """``quality_samples`` scored answers to each prompt; failures are rows with an error."""
    room = asyncio.Semaphore(settings.quality_concurrency)

    async def one(prompt: int, sample: int) -> ScoredRow:
        # By the name, not the N: other seeds for every mode, so that no answer is another's candidate.
        seed = seed_of(repr((settings.seed, variant.name, prompt, sample)))
        body = {
            "prompt": prompts[prompt],
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "ignore_eos": settings.ignore_eos,
            "seed": seed,
        }
        if variant.reranks:
            body |= {"n": variant.n, "return_candidates": variant.mode == BON}
        async with room:
            row = ScoredRow(prompt=prompt, sample=sample)
            await _ask(pool, native_path(variant), body, settings.timeout_s, row)
        on_row()
        return row

    count = min(settings.quality_prompts, len(prompts))
    asked = [one(p, s) for p in range(count) for s in range(settings.quality_samples)]
    return list(await asyncio.gather(*asked))


async def _ask(
    pool: Pool, path: str, body: dict[str, Any], timeout_s: float, row: ScoredRow
) -> None:
    try:
        async with asyncio.timeout(timeout_s), pool.post(path, json.dumps(body).encode()) as found:
            content = await found.read()
        if found.status != 200:
            row.error = f"HTTP {found.status}"
            return
        answer = json.loads(content)
        row.text, row.reward = answer["text"], answer["reward"]
        row.unscored = int(row.reward is None)
        if answer.get("candidates"):
            rewards = [candidate["reward"] for candidate in answer["candidates"]]
            row.candidates = [reward for reward in rewards if reward is not None]
            row.unscored = len(rewards) - len(row.candidates)
    except TimeoutError:
        row.error = "timeout"
    except (OSError, ProtocolError, asyncio.IncompleteReadError):
        row.error = "connection"
    except (ValueError, KeyError, TypeError):
        row.error = "malformed answer"
