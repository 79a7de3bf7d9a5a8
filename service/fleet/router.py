"""Serve's router of the few calls that go through Serve, which tells this process of the replicas."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from service.fleet import registry


class TellingRouter(RequestRouter):
    """Tells :mod:`service.fleet.registry` which replicas run, whenever that changes."""

    def initialize_state(self, **_: Any) -> None:
        """Do nothing: there are no options."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """All replicas in any order: front ends ask all of them, and all know the same."""
        return [random.sample(candidate_replicas, len(candidate_replicas))]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that Serve runs now."""
        super().update_replicas(replicas)
        # Serve copies this class with this module's values; only other modules are the process's own.
        registry.tell_running(
            (self._deployment_id.app_name, self._deployment_id.name),
            frozenset(one.replica_id.unique_id for one in replicas),
        )
