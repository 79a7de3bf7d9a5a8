"""The models that a load test measured, read from its result as JSON."""

from __future__ import annotations

from typing import Any

REWARD, GOLD = "reward", "gold"


def measured_models(result: dict[str, Any]) -> dict[str, str]:
    """The revision of each policy and reward model that a load test used, by its name.

    Results of other versions may lack any part of it, which is then absent here too.
    """
    server = result.get("server") or {}
    used = {cell.get("mode") for cell in result.get("cells") or []}
    variants = [str(cell.get("variant", "")) for cell in result.get("cells") or []]
    found: dict[str, str] = {}
    for mode in server.get("modes") or []:
        if mode.get("name") not in used:
            continue
        for name, model in ((None, mode.get("policy")), (REWARD, mode.get("reward_model"))):
            if model:
                found[name or model["name"]] = model["revision"]
    for policy in server.get("policies") or []:  # those that MODE@POLICY names
        if any(f"@{policy['name']}" in variant for variant in variants):
            found[policy["name"]] = policy["revision"]
    gold = server.get("gold_model")
    return found | ({GOLD: gold["revision"]} if gold else {})
