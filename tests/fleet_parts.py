"""A fleet without weights on a local Ray cluster: fake engines and rewards in real replicas."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.fleet.bench.models import IdleBuilder
from service.fleet.settings import FleetSettings
from service.runtime.batching_scorer import BatchingScorer
from tests.unit.fakes import FakeReward
from vbon.engine import Engine
from vbon.engine.fake import FakeEngine


class FragileEngine(FakeEngine):
    """A fake engine that a prompt of :data:`DEADLY` can kill, as if its process had died."""

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        if token_ids == DEADLY:
            await self.stop()
        return await super().decode(prompt_token_ids, token_ids)


DEADLY = [666]


class FakeBuilder(IdleBuilder):
    """Builds fragile engines and fake rewards."""

    engine = FragileEngine

    def engines(self, policy: str, serving: Mapping[str, Engine]) -> dict[str, Engine]:
        """The engine of a policy, whose revision is its path."""
        found = super().engines(policy, serving)
        found[policy].info = replace(found[policy].info, revision=found[policy].info.path)
        return found

    def scorer(self, name: str) -> BatchingScorer:
        return BatchingScorer(FakeReward())


# Small shares of a core, so that all replicas fit on any machine.
SMALL = {"cpus": 0.1}
APPLICATION = "vbon-test"


@contextmanager
def started_cluster() -> Iterator[None]:
    """Start Ray on this machine; end it with all of its processes."""
    import ray

    os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
    # The sockets' paths have 107 bytes at most, so Ray's directory is not below pytest's.
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    try:
        yield
    finally:
        ray.shutdown()


@dataclass
class Fleet:
    """A running fleet of two front ends, two replicas of ``ref``, one of ``vbon`` and two of the reward."""

    url: str
    direct_url: str
    settings: FleetSettings

    @classmethod
    @contextmanager
    def started(cls, directory: Path) -> Iterator[Fleet]:
        """Start a fleet on a cluster that runs; end it with all of its processes."""
        from ray import serve

        from service.fleet import app
        from tests.unit.openai_imitation import free_port

        port, direct = free_port(), free_port()
        settings = FleetSettings(
            direct_port=direct,
            service={
                "policies": {"ref": "fake:2", "vbon": "fake:2"},
                "reward": "fake",
                "store": f"sqlite:///{directory}/store.db",
            },
            builder="tests.fleet_parts:FakeBuilder",
            front_ends={"replicas": 2, **SMALL},  # type: ignore[arg-type]
            policies={"ref": {"replicas": 2, **SMALL}, "vbon": SMALL},  # type: ignore[dict-item]
            reward={"replicas": 2, **SMALL},  # type: ignore[arg-type]
            health_check_s=1.0,
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            # As from a file.
            serve.run(app(settings.model_dump()), name=APPLICATION, route_prefix="/")
            yield cls(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{direct}", settings)
        finally:
            serve.shutdown()

    def deploy(self, **service: Any) -> None:
        """Deploy the same fleet with other settings of the service, while it runs."""
        from ray import serve

        from service.fleet import app

        changed = self.settings.model_dump()
        changed["service"] |= service
        serve.run(app(changed), name=APPLICATION, route_prefix="/")

    @contextmanager
    def scaled(self) -> Iterator[str]:
        """One more application on the same cluster, whose policy has one to three replicas; its name."""
        from ray import serve

        from service.fleet import app

        scale = {"max_replicas": 3, "target": 8, "upscale_delay_s": 0.5, "downscale_delay_s": 1}
        settings = FleetSettings(
            service={"policies": {"ref": "fake:2"}, "reward": None, "store": None},
            builder="tests.fleet_parts:FakeBuilder",
            front_ends=SMALL,  # type: ignore[arg-type]
            policies={"ref": scale | SMALL},  # type: ignore[dict-item]
        )
        name = "vbon-scaled"
        serve.run(app(settings), name=name, route_prefix="/scaled")
        try:
            yield name
        finally:
            serve.delete(name)

    def engine(self, policy: str, application: str = APPLICATION) -> Any:
        """An engine of this process over a policy's replicas."""
        from ray import serve

        from service.fleet.application import policy_replicas
        from service.wire.engine import WireEngine

        service = self.settings.service_settings
        handle = serve.get_deployment_handle(f"Policy-{policy}", application)
        replicas = policy_replicas(handle, service)
        return WireEngine(replicas, policy, service.policies[policy], 60)

    def scorer(self) -> Any:
        """A scorer of this process over the reward model's replicas."""
        from ray import serve

        from service.fleet.application import reward_replicas
        from service.wire.scorer import WireScorer

        handle = serve.get_deployment_handle("Reward", APPLICATION)
        return WireScorer(reward_replicas(handle), "fake", 60)

    def kill(self, deployment: str, count: int = 1) -> int:
        """Kill processes of a deployment with SIGKILL; return how many were killed."""
        import psutil

        title = f"ray::ServeReplica:{APPLICATION}:{deployment}"
        found = [
            one.pid
            for one in psutil.process_iter(["cmdline"])
            if " ".join(one.info["cmdline"] or []).startswith(title)
        ]
        for pid in found[:count]:
            os.kill(pid, signal.SIGKILL)
        return len(found[:count])
