"""Decoding strategies, one a file; :data:`STRATEGIES` is the registry of those that choose.

A mode is a strategy over a policy: each configured policy is a mode of its own name (one sample),
each strategy a mode over the reference policy, or over the one that ``policy=`` names.
"""

from service.strategies.adaptive_bon import AdaptiveBon
from service.strategies.bon import Bon
from service.strategies.bon_uniform_top import BonUniformTop
from service.strategies.mbr_bon import MbrBon
from service.strategies.observer import UNOBSERVED, Observer
from service.strategies.pessimistic_bon import PessimisticBon
from service.strategies.protocol import (
    Outcome,
    Resources,
    ScoredCandidate,
    Scorer,
    Strategy,
    Task,
)
from service.strategies.rbon_kl import RbonKl
from service.strategies.rbon_length import RbonLength
from service.strategies.single import Single
from service.strategies.soft_bon import SoftBon
from service.strategies.speculative_rejection import SpeculativeRejection
from service.strategies.srbon_kl import SrbonKl
from service.strategies.srbon_wd import SrbonWd
from service.strategies.treebon import TreeBon

STRATEGIES: dict[str, type[Strategy]] = {
    "bon": Bon,
    "soft-bon": SoftBon,
    "bon-uniform-top": BonUniformTop,
    "pessimistic-bon": PessimisticBon,
    "rbon-kl": RbonKl,
    "rbon-length": RbonLength,
    "mbr-bon": MbrBon,
    "srbon-kl": SrbonKl,
    "srbon-wd": SrbonWd,
    "treebon": TreeBon,
    "speculative-rejection": SpeculativeRejection,
    "adaptive-bon": AdaptiveBon,
}

__all__ = [
    "STRATEGIES",
    "UNOBSERVED",
    "Observer",
    "Outcome",
    "Resources",
    "ScoredCandidate",
    "Scorer",
    "Single",
    "Strategy",
    "Task",
]
