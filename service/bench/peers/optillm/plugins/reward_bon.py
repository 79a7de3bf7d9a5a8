"""An optillm plugin: one request of n samples, one call of a scorer, the argmax.

Loaded by optillm from the directory it is started in, and run by the peers' own Python. It takes the
scorer's address and N from the environment.
"""

from __future__ import annotations

import os
from typing import Any

import httpx

SLUG = "reward_bon"

_scorer = httpx.Client(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))


def run(
    system_prompt: str,
    initial_query: str,
    client: Any,
    model: str,
    request_config: dict[str, Any],
    messages: list[dict[str, str]],
) -> tuple[str, int]:
    """The best candidate's text and the tokens that all candidates took."""
    n = int(os.environ["REWARD_BON_N"])
    drawn = client.chat.completions.create(
        model=model, messages=messages, n=n, temperature=1, max_tokens=request_config["max_tokens"]
    )
    candidates = [choice.message.content or "" for choice in drawn.choices]
    prompts = [messages[-1]["content"]] * len(candidates)
    body = {"prompts": prompts, "completions": candidates}
    answer = _scorer.post(os.environ["REWARD_BON_SCORER"], json=body, timeout=120)
    answer.raise_for_status()
    rewards = [-float("inf") if reward is None else reward for reward in answer.json()["rewards"]]
    return candidates[rewards.index(max(rewards))], drawn.usage.completion_tokens
