"""Reward models with one interface, opened by :func:`open_reward_model`."""

from vbon.rewards.protocol import RewardModel, RewardOptions, Scorable
from vbon.rewards.registry import open_reward_model

__all__ = ["RewardModel", "RewardOptions", "Scorable", "open_reward_model"]
