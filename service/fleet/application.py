"""The Serve application of a fleet: its deployments, and the front end in one of them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from service.admission.asks import Admits
from service.app import create_app
from service.auto.table_in_use import TableState
from service.fleet.direct import DirectApp
from service.fleet.found import FoundReplicas
from service.fleet.limits import LimitsReplica, shared_admission
from service.fleet.replicas import PolicyReplica, RewardReplica, WiredReplica, open_builder
from service.fleet.router import TellingRouter
from service.fleet.scaling import by_load
from service.fleet.settings import FleetSettings, Scale
from service.held.client import RemoteHolder
from service.held.forwarding import Holder
from service.held.hosted import HELD_REQUESTS, HeldRequests
from service.observability.logs import set_up_logs
from service.runtime.build import is_adapter
from service.runtime.runtime import Runtime
from service.runtime.served_scorer import ServedScorer
from service.server import keep_for_good
from service.settings import REFERENCE, ServiceSettings
from service.wire.engine import EngineStates, WireEngine
from service.wire.hosted import ENGINES, SCORER, ScorerState
from service.wire.scorer import WireScorer
from vbon.engine import Engine
from vbon.engine.remote.server import is_remote
from vbon.errors import CheckpointError, InvalidInputError

# Seconds over which Serve takes the mean of the load; its default, and the least for short delays.
_LOOK_BACK_S, _LEAST_LOOK_BACK_S = 30.0, 1.0
# Calls that a replica takes at once: no limit, since front ends admit requests.
_ONGOING = 100_000
_REMEDY = "`serve status` tells why"

# The host of the limits and the holder need a few hundredths of a core.
_SMALL = Scale(cpus=0)

Handles = dict[str, DeploymentHandle[Any]]


class _Front:
    """A runtime of the service, whose engines and scorers are the other deployments."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: FleetSettings,
        service: ServiceSettings,
        policies: Handles,
        scorers: Handles,
        limits: DeploymentHandle[Any] | None = None,
        holder: DeploymentHandle[Any] | None = None,
    ) -> None:
        # The service's settings are those of the deployment, as in the other parts: this machine may have
        # other environment variables.
        self._settings, self._service = settings, service
        self._policies, self._scorers = policies, scorers
        self._limits, self._holder = limits, holder
        self._found: dict[str, FoundReplicas[EngineStates]] = {}
        self._runtime: Runtime | None = None

    def _build(self, holder: Holder | None = None) -> tuple[FastAPI, Runtime]:
        """Build the application in the replica's own process."""
        service = self._service
        set_up_logs(service)
        admission = self._admission(service)
        self._runtime = runtime = Runtime(
            service,
            {name: self._engine(service, name, admission) for name in service.policies},
            self._scorer("reward", service.reward),
            self._scorer("gold", service.gold),
            admission=admission,
        )
        return create_app(runtime, on_ready=keep_for_good, holder=holder), runtime

    async def check_health(self) -> None:
        """Fail if the models were not there at the start, so that Serve replaces this front end.

        Raises:
            RuntimeError: start-up failed; tells why.
        """
        if self._runtime is not None and self._runtime.failure is not None:
            raise RuntimeError(f"start-up failed: {self._runtime.failure}")

    def _admission(self, service: ServiceSettings) -> Admits | None:
        if self._limits is None:
            return None
        return shared_admission(self._limits, service, _askers(self._settings))

    def _engine(self, service: ServiceSettings, policy: str, admission: Admits | None) -> Engine:
        path = service.policies[policy]
        handle = self._policies.get(policy)
        if handle is None:
            builder = open_builder(self._settings.builder, service)
            return builder.engines(policy, {})[policy]
        # Adapters share the connections of their reference policy.
        replicas = self._found.get(handle.deployment_name)
        if replicas is None:
            replicas = policy_replicas(handle, service, admission)
            self._found[handle.deployment_name] = replicas
        return WireEngine(
            replicas,
            policy,
            path,
            self._settings.start_timeout_s,
            _REMEDY,
            continuations=service.engine.continuations,
        )

    def _scorer(self, which: str, spec: str | None) -> ServedScorer | None:
        if spec is None:
            return None
        if which not in self._scorers:
            return open_builder(self._settings.builder, self._service).scorer(which)
        replicas = reward_replicas(self._scorers[which])
        return WireScorer(replicas, spec, self._settings.start_timeout_s, _REMEDY)


class FrontEnd(_Front):
    """The service's application, as it answers requests of clients."""

    def __serve_build_asgi_app__(self) -> FastAPI | DirectApp:
        """Build the application, which forwards what the holder has."""
        holder = None
        if self._holder is not None:
            found = FoundReplicas[TableState](self._holder, "the holder", HELD_REQUESTS)
            holder = RemoteHolder(found)
        app, runtime = self._build(holder)
        port = self._settings.direct_port
        return app if port is None else DirectApp(app, runtime, port)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The sequences of this front end that decode or wait."""
        runtime = self._runtime
        admission = None if runtime is None else runtime.admission
        return {"load": 0.0 if admission is None else admission.own_running + admission.own_waiting}


class HolderReplica(_Front, WiredReplica):
    """The holder of what is in the memory of one process: load tests, pairs and the table of mode ``auto``.

    It has an application of its own, which front ends reach over the wire.
    """

    async def __init__(self, *args: Any) -> None:  # type: ignore[misc]  # Serve awaits it
        await super().__init__(*args)
        app, _ = self._build()
        self._running = AsyncExitStack()
        await self._running.enter_async_context(app.router.lifespan_context(app))
        await self.serve_wire(HeldRequests(app), HELD_REQUESTS, self._service.limits.drain_s)

    async def __del__(self) -> None:
        """Finish what is under way, and end load tests, when Serve takes the replica down."""
        await self.end_wire()
        await self._running.aclose()


def policy_replicas(
    handle: DeploymentHandle[Any], service: ServiceSettings, admission: Admits | None = None
) -> FoundReplicas[EngineStates]:
    """The replicas of a policy's deployment.

    Args:
        admission: tells how much of the load is this front end's; ``None``: all of it.
    """
    return FoundReplicas(
        handle,
        handle.deployment_name,
        ENGINES,
        capacity=service.engine.max_num_seqs,
        placement=service.engine.placement,
        all_per_own=lambda: 1.0 if admission is None else admission.all_per_own,
    )


def reward_replicas(handle: DeploymentHandle[Any]) -> FoundReplicas[ScorerState]:
    """The replicas of a reward model's deployment."""
    return FoundReplicas(handle, handle.deployment_name, SCORER)


def parts(settings: FleetSettings) -> dict[str, Scale]:
    """The deployments of these settings, each with its scale.

    Raises:
        CheckpointError, InvalidInputError: as :func:`build`.
    """
    service = settings.service_settings
    found = {"FrontEnd": settings.front_ends}
    for policy in dict.fromkeys(_homes(settings, service).values()):
        found[f"Policy-{policy}"] = settings.policies.get(policy, Scale())
    if service.reward is not None and not is_remote(service.reward):
        found["Reward"] = settings.reward
    if service.gold is not None and not is_remote(service.gold):
        found["Gold"] = settings.gold
    if _has_several(settings):
        found["Limits"] = found["Holder"] = _SMALL
    return found


def build(settings: FleetSettings) -> Application:
    """The application of these settings, for ``serve.run``.

    Raises:
        CheckpointError: the reference policy is an adapter, or an adapter's reference policy is remote.
        InvalidInputError: there is a scale for a policy that has no replicas of its own.
    """
    service = settings.service_settings
    homes = _homes(settings, service)
    hosted = {
        policy: _policy_deployment(settings, service, policy).bind(
            service, policy, settings.builder
        )
        for policy in dict.fromkeys(homes.values())
    }
    scorers = {
        which: _reward_deployment(settings, service, which).bind(service, which, settings.builder)
        for which, spec in (("reward", service.reward), ("gold", service.gold))
        if spec is not None and not is_remote(spec)
    }
    policies = {policy: hosted[home] for policy, home in homes.items()}
    front_end = serve.deployment(
        serve.ingress()(FrontEnd),
        name="FrontEnd",
        **_options(settings, service, settings.front_ends),
    )
    limits = holder = None
    if _has_several(settings):
        limits = _limits_deployment(settings, service)
        held = serve.deployment(HolderReplica, name="Holder", **_telling(settings, service, _SMALL))
        holder = held.bind(settings, service, policies, scorers, limits)
    return front_end.bind(settings, service, policies, scorers, limits, holder)


def _askers(settings: FleetSettings) -> int:
    """The processes that ask the host of the limits: the front ends and the holder."""
    return settings.front_ends.replicas + 1


def _has_several(settings: FleetSettings) -> bool:
    """True if there may be several front ends: one replica then has their limits, and one what they hold."""
    return settings.front_ends.replicas > 1 or settings.front_ends.max_replicas is not None


def _limits_deployment(settings: FleetSettings, service: ServiceSettings) -> Application:
    deployment = serve.deployment(
        LimitsReplica, name="Limits", **_options(settings, service, _SMALL)
    ).options(graceful_shutdown_timeout_s=5)
    return deployment.bind(service, _askers(settings))


def _homes(settings: FleetSettings, service: ServiceSettings) -> dict[str, str]:
    """The policy whose replicas serve each policy; those at URLs are left out."""
    homes = {}
    for policy, path in service.policies.items():
        if is_remote(path):
            continue
        homes[policy] = REFERENCE if is_adapter(path) else policy
    if homes.get(REFERENCE) is not None and is_adapter(service.policies[REFERENCE]):
        raise CheckpointError(
            f"{service.policies[REFERENCE]} is a LoRA adapter; the reference policy must be a full model"
        )
    if REFERENCE in homes.values() and REFERENCE not in homes:
        raise CheckpointError(
            "a policy is a LoRA adapter, and the reference policy that would serve it is remote; serve the "
            "adapter on that server too and set its URL#name"
        )
    for policy in settings.policies:
        if homes.get(policy) == policy:
            continue
        where = (
            f"runs on the replicas of {homes[policy]}" if policy in homes else "is served at a URL"
        )
        raise InvalidInputError(
            f"policies has a scale for {policy}, which {where} and has none of its own; leave it out",
            field="policies",
        )
    return homes


def _policy_deployment(
    settings: FleetSettings, service: ServiceSettings, policy: str
) -> Deployment:
    scale = settings.policies.get(policy, Scale())
    return _replicas(PolicyReplica, settings, service, scale, name=f"Policy-{policy}")


def _reward_deployment(settings: FleetSettings, service: ServiceSettings, which: str) -> Deployment:
    scale = settings.reward if which == "reward" else settings.gold
    return _replicas(RewardReplica, settings, service, scale, name=which.capitalize())


def _replicas(
    kind: type, settings: FleetSettings, service: ServiceSettings, scale: Scale, *, name: str
) -> Deployment:
    return serve.deployment(kind, name=name, **_telling(settings, service, scale))


def _telling(settings: FleetSettings, service: ServiceSettings, scale: Scale) -> dict[str, Any]:
    """The options of a part whose callers must know its replicas."""
    router = f"{TellingRouter.__module__}.{TellingRouter.__name__}"
    return _options(settings, service, scale) | {
        "request_router_config": RequestRouterConfig(request_router_class=router)
    }


def _options(settings: FleetSettings, service: ServiceSettings, scale: Scale) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_ongoing_requests": _ONGOING,
        # Requests in flight may go on for so long, and then their answers have to be sent.
        "graceful_shutdown_timeout_s": service.limits.drain_s + 5,
        "health_check_period_s": settings.health_check_s,
        # A line for each call costs a tenth of a replica's time; the service has an access log of its own.
        "logging_config": LoggingConfig(enable_access_log=False),
        "ray_actor_options": {"num_cpus": scale.cpus, "num_gpus": scale.gpus},
    }
    if scale.surge_percent:
        options["max_surge_percent"] = scale.surge_percent
    if scale.max_replicas is None:
        return options | {"num_replicas": scale.replicas}
    # The load is its mean over this time, which each replica tells once in it.
    look_back_s = min(_LOOK_BACK_S, max(_LEAST_LOOK_BACK_S, scale.upscale_delay_s))
    autoscaling = AutoscalingConfig(
        min_replicas=scale.min_replicas,
        initial_replicas=scale.replicas,
        max_replicas=scale.max_replicas,
        target_ongoing_requests=scale.target,
        upscale_delay_s=scale.upscale_delay_s,
        downscale_delay_s=scale.downscale_delay_s,
        look_back_period_s=look_back_s,
        metrics_interval_s=look_back_s / 3,
        policy=AutoscalingPolicy(policy_function=by_load),
    )
    return options | {"autoscaling_config": autoscaling}
