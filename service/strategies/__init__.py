"""Decoding strategies, one per file; :data:`STRATEGIES` registers those that choose among candidates.

A mode is a strategy over a policy. Each configured policy is a single-sample mode under its own name. Each
registered strategy is a mode over the reference policy, or over the policy that ``policy=`` names. Installed
packages add strategies through the entry-point group ``vbon.strategies`` (docs/plugins.md).
"""

from service.strategies.auto import Auto, AutoByPrice
from service.strategies.observer import UNOBSERVED, Admitted, Observer
from service.strategies.protocol import (
    Outcome,
    Resources,
    ScoredCandidate,
    Scorer,
    Strategy,
    Task,
    ranked,
)
from service.strategies.single import Single
from vbon.registry import Registry, built_in_entries


def _checked(found: object) -> type[Strategy]:
    """``found`` itself, if it is a strategy class whose settings all have defaults.

    Raises:
        TypeError, ValueError: it is not; the message completes "cannot be used:".
    """
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise TypeError("it is not a subclass of service.strategies.Strategy")
    if not isinstance(getattr(found, "description", None), str):
        raise TypeError("it has no description, the line that GET /modes shows")
    for name, field in found.model_fields.items():
        if field.is_required():
            raise ValueError(f"its setting {name!r} has no default")
    found().model_dump(mode="json")  # raises if a method is missing
    found.model_json_schema()
    return found


STRATEGIES: Registry[type[Strategy]] = Registry(
    "vbon.strategies",
    "strategy",
    built_in_entries(
        "service.strategies",
        {
            "bon": "bon:Bon",
            "soft-bon": "soft_bon:SoftBon",
            "bon-uniform-top": "bon_uniform_top:BonUniformTop",
            "pessimistic-bon": "pessimistic_bon:PessimisticBon",
            "rbon-kl": "rbon_kl:RbonKl",
            "rbon-length": "rbon_length:RbonLength",
            "mbr-bon": "mbr_bon:MbrBon",
            "srbon-kl": "srbon_kl:SrbonKl",
            "srbon-wd": "srbon_wd:SrbonWd",
            "corrected-bon": "corrected_bon:CorrectedBon",
            "best-of-poisson": "best_of_poisson:BestOfPoisson",
            "self-certainty": "self_certainty:SelfCertainty",
            "majority-of-the-bests": "majority_of_the_bests:MajorityOfTheBests",
            "treebon": "treebon:TreeBon",
            "speculative-rejection": "speculative_rejection:SpeculativeRejection",
            "adaptive-bon": "adaptive_bon:AdaptiveBon",
        },
    ),
    _checked,
    field="mode",
)

__all__ = [
    "STRATEGIES",
    "UNOBSERVED",
    "Admitted",
    "Auto",
    "AutoByPrice",
    "Observer",
    "Outcome",
    "Resources",
    "ScoredCandidate",
    "Scorer",
    "Single",
    "Strategy",
    "Task",
    "ranked",
]
