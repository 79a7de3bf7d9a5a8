"""The routers of this process, which Serve makes out of sight, by application and deployment."""

from __future__ import annotations

from typing import Protocol


class Router(Protocol):
    """The facts about a deployment that its router knows."""

    @property
    def replicas(self) -> int:
        """The number of replicas that take calls."""


ROUTERS: dict[tuple[str, str], Router] = {}


def running_replicas(application: str, deployment: str) -> int:
    """The number of a deployment's replicas that take calls; 0 before this process has asked for one."""
    router = ROUTERS.get((application, deployment))
    return 0 if router is None else router.replicas
