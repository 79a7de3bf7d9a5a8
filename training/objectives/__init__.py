"""Training objectives, one per file; :data:`OBJECTIVES` is the registry.

Listing the objectives does not import torch. Installed packages add objectives through the entry-point group
``vbon.objectives`` (docs/plugins.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vbon.registry import Registry, built_in_entries

if TYPE_CHECKING:
    from training.objectives.protocol import Objective


class _Line(NamedTuple):
    """A built-in objective: its class, its line in ``--help`` and its values in the default sweep."""

    target: str
    summary: str
    grid: str


_LINES = {
    "vbon": _Line(
        "vbon:Vbon", "Variational best-of-N: reverse KL to best-of-N.", "num_samples=2 4 8 16"
    ),
    "kl-rl": _Line(
        "kl_rl:KlRl", "KL-regularised RL on the raw reward (RLOO).", "beta=0.1 0.2 0.4 0.8"
    ),
    "dpo": _Line("dpo:Dpo", "DPO, best against worst of N.", "beta=0.05 0.1 0.3 1"),
    "bon-sft": _Line("bon_sft:BonSft", "Supervised on the best of N.", "num_samples=2 4 8 16"),
    "bonbon": _Line(
        "bonbon:Bonbon",
        "BoNBoN: supervised on the best, IPO best against worst.",
        "num_samples=2 4 8 16",
    ),
    "bond": _Line(
        "bond:Bond", "BOND: Jeffreys divergence, quantile reward.", "num_samples=2 4 8 16"
    ),
    "j-bond": _Line(
        "j_bond:JBond",
        "J-BOND: iterated best-of-2 of a moving anchor.",
        "anchor_rate=0.02 0.05 0.1 0.2",
    ),
    "wind": _Line("wind:Wind", "WIND: win-rate dominance by regression.", "beta=0.02 0.05 0.1 0.2"),
    "bon-aware-sft": _Line(
        "bon_aware_sft:BonAwareSft",
        "Make best-of-N of the policy answer as an expert.",
        "num_samples=2 4 8 16",
    ),
    "bon-aware-rl": _Line(
        "bon_aware_rl:BonAwareRl", "Make best-of-N of the policy best.", "num_samples=2 4 6 8"
    ),
    "qrpo": _Line(
        "qrpo:Qrpo", "QRPO: quantile reward, pointwise regression, offline.", "beta=0.05 0.1 0.3 1"
    ),
}

# The grid of `sweep` if `--grid` is not given: every built-in objective, with equally many values, because a
# search with --validation would favour one with more.
DEFAULT_GRID = [f"{name}: {line.grid}" for name, line in _LINES.items()]


def _checked(found: object) -> type[Objective]:
    """Check that a registered object is an objective, and return it.

    Raises:
        TypeError: it is not an objective; the text continues "cannot be used:".
    """
    from training.objectives.protocol import Objective

    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise TypeError("it is not a subclass of training.objectives.protocol.Objective")
    for name in ("title", "source"):
        if not isinstance(getattr(found, name, None), str):
            raise TypeError(f"it has no {name}, which the model card needs")
    return found


OBJECTIVES: Registry[type[Objective]] = Registry(
    "vbon.objectives",
    "objective",
    built_in_entries("training.objectives", {name: line[:2] for name, line in _LINES.items()}),
    _checked,
    field="objective",
    # Names of other commands, which an objective cannot take because its name becomes a command too.
    reserved=("sandbox", "sample", "train", "evaluate", "sweep", "report", "bench"),
)


def objective_type(name: str) -> type[Objective]:
    """The class of a registered objective.

    Raises:
        InvalidInputError: no objective has this name, or its plug-in cannot be used.
    """
    return OBJECTIVES[name]
