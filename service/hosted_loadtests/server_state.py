"""The server's queue and engines while a load test runs."""

from __future__ import annotations

from service.runtime.runtime import Runtime
from service.schemas.loadtests import EngineState, ServerState


def server_state(runtime: Runtime) -> ServerState:
    """The queues and engines as they are now."""
    supervised = runtime.supervisor.supervised
    return ServerState(
        running=runtime.admission.running,
        waiting=runtime.admission.waiting,
        scores_waiting=sum(scorer.waiting for scorer in runtime.scorers.values()),
        engines=[
            EngineState(
                policy=policy,
                alive=engine.alive,
                sequences=engine.unfinished,
                restarts=supervised[policy].restarts if policy in supervised else 0,
            )
            for policy, engine in runtime.policies.items()
        ],
    )
