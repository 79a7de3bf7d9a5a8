"""The models that a load test measured, read from its result as JSON."""

from __future__ import annotations

from typing import Any

REWARD, GOLD = "reward", "gold"


def measured_models(result: dict[str, Any]) -> dict[str, str]:
    """The revision of each policy and reward model that a load test used, by its name.

    Results of other versions may lack any part of it, which is then absent here too.
    """
    (server,) = _objects([result.get("server")]) or [{}]
    cells = _objects(result.get("cells"))
    # A cell of MODE@POLICY has the label of its variant for that, and uses the mode's own policy nowhere.
    named = [_policy_of(str(cell.get("variant", ""))) for cell in cells]
    used = {cell.get("mode") for cell in cells}
    with_own = {cell.get("mode") for cell, policy in zip(cells, named, strict=True) if not policy}
    found: dict[str, str] = {}
    for mode in _objects(server.get("modes")):
        if mode.get("name") in with_own:
            found |= _revision(mode.get("policy"))
        if mode.get("name") in used:
            found |= _revision(mode.get("reward_model"), REWARD)
    for policy in _objects(server.get("policies")):
        if policy.get("name") in named:
            found |= _revision(policy)
    return found | _revision(server.get("gold_model"), GOLD)


def _policy_of(variant: str) -> str:
    """The policy in a label such as ``bon@vbon (N=2)``; empty if it has none."""
    return variant.partition(" ")[0].partition("@")[2]


def _revision(model: Any, name: str | None = None) -> dict[str, str]:
    """The revision of a model by the name given, or by its own; empty if it has none."""
    if not isinstance(model, dict):
        return {}
    known, revision = name or model.get("name"), model.get("revision")
    return {known: revision} if isinstance(known, str) and isinstance(revision, str) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
