"""Rewards of samples that the token limit cut off."""

from __future__ import annotations

from collections.abc import Sequence


def with_missing_eos_reward(
    rewards: Sequence[float | None], cut_off: Sequence[bool], missing_eos_reward: float | None
) -> list[float | None]:
    """The rewards, with ``missing_eos_reward`` for each sample that was cut off; unchanged if it is ``None``.

    A sample without a finite reward gets it too, since its own reward is not used.
    """
    if missing_eos_reward is None:
        return list(rewards)
    pairs = zip(rewards, cut_off, strict=True)
    return [missing_eos_reward if cut else reward for reward, cut in pairs]
