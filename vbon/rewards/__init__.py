"""Reward models with one interface, opened by :func:`open_reward_model`."""

from vbon.rewards.protocol import RewardModel, Scorable
from vbon.rewards.registry import open_reward_model

__all__ = ["RewardModel", "Scorable", "open_reward_model"]
