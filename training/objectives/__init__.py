"""Training objectives, one a file; :data:`OBJECTIVES` is the registry."""

from training.objectives.protocol import OnPolicyObjective, ScoredBatch
from training.objectives.vbon import VbonExact, VbonLowerBound

OBJECTIVES: dict[str, type[OnPolicyObjective]] = {
    "vbon": VbonLowerBound,
    "vbon-exact": VbonExact,
}

__all__ = ["OBJECTIVES", "OnPolicyObjective", "ScoredBatch", "VbonExact", "VbonLowerBound"]
