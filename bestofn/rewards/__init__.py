"""Reward models behind one protocol: see :func:`open_reward_model`."""

from bestofn.rewards.protocol import RewardModel, Scorable
from bestofn.rewards.registry import open_reward_model

__all__ = ["RewardModel", "Scorable", "open_reward_model"]
