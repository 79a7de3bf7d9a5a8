"""A line of a reward cache: the responses to one prompt with their rewards."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from training.cache.sample_backends import Response
from training.configs import SampleConfig
from vbon.errors import RewardError
from vbon.prompts import Prompt
from vbon.rewards import RewardModel, Scorable
from vbon.rewards.truncation import with_missing_eos_reward


@dataclass(frozen=True, slots=True)
class ScoredLine:
    """A finished line.

    Attributes:
        key: the prompt's key.
        line: the JSON with its end of line.
        unscored: the samples that are left out for lack of a reward.
    """

    key: str
    line: bytes
    unscored: int


async def scored_line(
    config: SampleConfig, reward: RewardModel, prompt: Prompt, responses: list[Response]
) -> ScoredLine:
    """Score the responses to a prompt, and make their line.

    Raises:
        RewardError: none of them has a finite reward, or the model failed.
    """
    items = [Scorable(prompt, response.text) for response in responses]
    rewards = await asyncio.to_thread(reward.score, items)
    cut_off = [response.finish_reason == "length" for response in responses]
    rewards = with_missing_eos_reward(rewards, cut_off, config.missing_eos_reward)
    kept = [(text, r) for text, r in zip(responses, rewards, strict=True) if r is not None]
    if not kept:
        raise RewardError(
            f"no response to {prompt.key[:80]!r} has a finite reward; check the reward model"
        )
    record: dict[str, Any] = {
        "prompt": prompt.key,
        "responses": [response.text for response, _ in kept],
        "response_ids": [response.token_ids for response, _ in kept],
        "rewards": [value for _, value in kept],
        "finish_reasons": [response.finish_reason for response, _ in kept],
    }
    if prompt.messages:
        record["messages"] = list(prompt.messages)
    line = json.dumps(record, ensure_ascii=False) + "\n"
    return ScoredLine(prompt.key, line.encode(), len(responses) - len(kept))
