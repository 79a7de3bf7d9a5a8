"""Decoding strategies, one a file; :data:`RERANKERS` is the registry of those that choose.

A mode is a strategy over a policy: each configured policy is a mode of its own name (one sample),
each reranker a mode over the reference policy.
"""

from service.strategies.bon import BestOfN
from service.strategies.protocol import Outcome, ScoredCandidate, Scorer, Strategy, Task
from service.strategies.single import Single

RERANKERS: dict[str, Strategy] = {
    "bon": BestOfN(),
}

SINGLE: Strategy = Single()

__all__ = [
    "RERANKERS",
    "SINGLE",
    "Outcome",
    "ScoredCandidate",
    "Scorer",
    "Strategy",
    "Task",
]
