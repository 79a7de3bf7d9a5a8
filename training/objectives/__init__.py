"""Training objectives, one per file.

:data:`OBJECTIVES` is the registry. It holds import paths, so that listing the objectives (``--help``) does
not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vbon.errors import InvalidInputError

if TYPE_CHECKING:
    from training.objectives.protocol import Objective

# Maps a name to (module:class, description in --help).
OBJECTIVES: dict[str, tuple[str, str]] = {
    "vbon": ("vbon:Vbon", "Variational best-of-N: reverse KL to best-of-N."),
    "kl-rl": ("kl_rl:KlRl", "KL-regularised RL on the raw reward (RLOO)."),
    "dpo": ("dpo:Dpo", "DPO, best against worst of N."),
    "bon-sft": ("bon_sft:BonSft", "Supervised on the best of N."),
    "bonbon": ("bonbon:Bonbon", "BoNBoN: supervised on the best, IPO best against worst."),
    "bond": ("bond:Bond", "BOND: Jeffreys divergence, quantile reward."),
    "j-bond": ("j_bond:JBond", "J-BOND: iterated best-of-2 of a moving anchor."),
    "wind": ("wind:Wind", "WIND: win-rate dominance by regression."),
    "bon-aware-sft": ("bon_aware_sft:BonAwareSft", "Make best-of-N of the policy answer as an expert."),
    "bon-aware-rl": ("bon_aware_rl:BonAwareRl", "Make best-of-N of the policy best."),
    "qrpo": ("qrpo:Qrpo", "QRPO: quantile reward, pointwise regression, offline."),
}  # fmt: skip


def objective_type(name: str) -> type[Objective]:
    """The class of a registered objective.

    Raises:
        InvalidInputError: no objective has this name.
    """
    if name not in OBJECTIVES:
        raise InvalidInputError(
            f"unknown objective {name!r}; choose one of {', '.join(OBJECTIVES)}", field="objective"
        )
    module, _, attribute = OBJECTIVES[name][0].partition(":")
    found: type[Objective] = getattr(import_module(f"training.objectives.{module}"), attribute)
    return found
