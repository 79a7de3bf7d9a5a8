"""optillm plugin: one request of n samples, one call to a scorer, and the argmax.

optillm loads it from the directory in which it is started, with the peers' own Python. The scorer's address
and N come from the environment.
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
    """The best candidate's text, and the tokens of all candidates."""
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
