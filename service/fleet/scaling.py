"""Serve's autoscaling by the work that replicas have, instead of by requests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext


def by_load(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The number of replicas at which each one has the target load, and no new state."""
    loads = (context.aggregated_metrics or {}).get("load", {})
    wanted = wanted_replicas(sum(loads.values()), context.config.target_ongoing_requests)
    least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(max(wanted, least), most), {}


def wanted_replicas(load: float, target: float) -> int:
    """The replicas that a load needs, at least one."""
    return max(1, math.ceil(load / target))
