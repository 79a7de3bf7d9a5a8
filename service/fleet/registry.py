"""The replicas that Serve runs, as its routers in this process know them, by application and deployment.

Serve makes the routers out of sight, in threads of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

Deployment = tuple[str, str]

RUNNING: dict[Deployment, frozenset[str]] = {}
LISTENERS: defaultdict[Deployment, list[Callable[[], None]]] = defaultdict(list)


def tell_running(deployment: Deployment, names: frozenset[str]) -> None:
    """Take the names of the replicas that run now; called in the router's thread."""
    RUNNING[deployment] = names
    for listener in list(LISTENERS[deployment]):
        listener()
