"""The replicas of a fleet: an engine of a policy each, or a reward model each, which serve the wire."""

from __future__ import annotations

import asyncio
from importlib import import_module

from ray import serve
from ray.util import get_node_ip_address

from service.observability.logs import set_up_logs
from service.runtime.reload import ModelBuilder
from service.server import keep_for_good
from service.settings import ServiceSettings
from service.wire import Interface, WireServer
from service.wire.hosted import ENGINES, SCORER, HostedEngines, HostedScorer

# The name of the load in Serve's autoscaling metrics.
LOAD = "load"
# The name, the address and the secret with which a replica can be reached over the wire.
WireAddress = tuple[str, str, str]


def open_builder(path: str, settings: ServiceSettings) -> ModelBuilder:
    """The builder of engines and scorers that ``MODULE:CLASS`` names."""
    module, _, name = path.partition(":")
    builder: ModelBuilder = getattr(import_module(module), name)(settings)
    return builder


class WiredReplica:
    """A replica that serves an object over the wire."""

    _wire: WireServer | None = None
    _drain_s = 0.0

    async def serve_wire(self, target: object, interface: Interface, drain_s: float) -> None:
        """Begin to serve an object at a free port; at the end, its calls have so long to finish."""
        host = get_node_ip_address()
        host = f"[{host}]" if ":" in host else host
        self._drain_s = drain_s
        self._wire = WireServer(f"tcp://{host}:*", target, interface)
        await self._wire.start()
        keep_for_good()

    async def wire(self) -> WireAddress:
        """The address at which this replica can be reached."""
        assert self._wire is not None
        name = serve.get_replica_context().replica_id.unique_id
        return name, self._wire.address, self._wire.secret

    async def end_wire(self) -> None:
        """Let the calls under way finish, and close the connections."""
        if self._wire is not None:
            await self._wire.drain(self._drain_s)
            await self._wire.stop()


class PolicyReplica(WiredReplica):
    """One engine of a policy, with the policies that are LoRA adapters on it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: ServiceSettings, policy: str, builder: str
    ) -> None:
        set_up_logs(settings)
        self._engines = open_builder(builder, settings).engines(policy, {})
        await asyncio.gather(*(engine.start() for engine in self._engines.values()))
        await self.serve_wire(HostedEngines(self._engines), ENGINES, settings.limits.drain_s)

    async def __del__(self) -> None:
        """Finish what is under way and stop the engine when Serve takes the replica down."""
        await self.end_wire()
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))

    async def check_health(self) -> None:
        """Fail if the engine is dead or hangs, so that Serve replaces this replica.

        Raises:
            RuntimeError: an engine is dead.
        """
        for name, engine in self._engines.items():
            await engine.check()
            if not engine.alive:
                raise RuntimeError(f"the engine of {name} is dead: {engine.trouble}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The sequences that this engine has to decode, by which Serve scales the policy."""
        return {LOAD: float(sum(engine.unfinished for engine in self._engines.values()))}


class RewardReplica(WiredReplica):
    """One reward model, whose batches have texts of all front ends."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: ServiceSettings, which: str, builder: str
    ) -> None:
        set_up_logs(settings)
        self._scorer = open_builder(builder, settings).scorer(which)
        await self._scorer.start()
        await self._scorer.warm_up()
        await self.serve_wire(HostedScorer(lambda: self._scorer), SCORER, settings.limits.drain_s)

    async def __del__(self) -> None:
        """Score what waits and stop the reward model when Serve takes the replica down."""
        await self.end_wire()
        await self._scorer.stop()

    async def check_health(self) -> None:
        """Fail if the reward model's process is dead, so that Serve replaces this replica.

        Raises:
            RuntimeError: the process is dead.
        """
        if not self._scorer.alive:
            raise RuntimeError(f"the reward model {self._scorer.name} is dead")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The texts that wait for their scores, by which Serve scales the reward model."""
        return {LOAD: float(self._scorer.waiting)}
