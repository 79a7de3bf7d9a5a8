"""The settings of a fleet: those of the service, and how many replicas each part has."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.settings import ServiceSettings


class Scale(BaseModel):
    """The number of replicas of one part, fixed or by its load, and what each one takes of a machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    replicas: int = Field(1, ge=1, description="replicas; at the start, if max_replicas is set")
    min_replicas: int = Field(1, ge=1, description="replicas that are kept without load")
    max_replicas: int | None = Field(
        None, ge=1, description="replicas under load, at most; default: their number is fixed"
    )
    target: float = Field(
        64.0,
        gt=0,
        description="sequences (of a reward model: texts) decoding or waiting per replica, above which more "
        "replicas are started",
    )
    upscale_delay_s: float = Field(
        30.0, ge=0, description="seconds for which more replicas must be needed before they start"
    )
    downscale_delay_s: float = Field(
        600.0, ge=0, description="seconds for which fewer replicas must be enough before some end"
    )
    cpus: float = Field(1.0, ge=0, description="CPU cores that Ray reserves for a replica")
    gpus: float = Field(0.0, ge=0, description="GPUs of a replica")
    surge_percent: int = Field(
        0,
        ge=0,
        le=100,
        description="replicas that a deployment may start before it ends those that they replace, in percent "
        "of all, rounded up; the cluster must have room for them; 0: it ends them first",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Scale:
        if self.max_replicas is None and self.min_replicas > self.replicas:
            raise ValueError(
                f"min_replicas is {self.min_replicas}, but without max_replicas there are always "
                f"{self.replicas} (replicas); raise replicas, or set max_replicas"
            )
        if self.max_replicas is not None and not (
            self.min_replicas <= self.replicas <= self.max_replicas
        ):
            raise ValueError(
                f"replicas is {self.replicas}, outside of min_replicas {self.min_replicas} and max_replicas "
                f"{self.max_replicas}"
            )
        return self


class FleetSettings(BaseModel):
    """The arguments of the Serve application ``service.fleet:app``."""

    # Serve logs errors, and the service's settings may contain the password of the store.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    service: dict[str, Any] = Field(
        default={}, description="settings of `vbon serve`, as in its configuration file"
    )
    front_ends: Scale = Field(Scale(), description="processes that serve the HTTP API")
    policies: dict[str, Scale] = Field(
        default={}, description="scale of each policy, by its name; default: one replica each"
    )
    reward: Scale = Field(Scale(), description="replicas of the reward model")
    gold: Scale = Field(Scale(), description="replicas of the held-out reward model")
    direct_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port at service.host at which each front end also listens itself, which costs less than "
        "Serve's proxy; front ends of one machine share it; default: only Serve's proxy listens",
    )
    start_timeout_s: float = Field(
        600.0,
        gt=0,
        description="seconds that a front end waits for the first replica of each model",
    )
    health_check_s: float = Field(
        2.0,
        gt=0,
        description="seconds between two checks of each replica, which replace dead engines",
    )
    builder: str = Field(
        "service.runtime.build:RuntimeBuilder",
        description="MODULE:CLASS that builds engines and scorers from the service's settings",
    )

    @property
    def service_settings(self) -> ServiceSettings:
        """The service's settings, completed by environment variables as for `vbon serve`."""
        return ServiceSettings(**self.service)

    @model_validator(mode="after")
    def _possible(self) -> FleetSettings:
        service = self.service_settings
        if service.expected or service.distil.policy is not None:
            raise ValueError(
                "service.expected and service.distil.policy start engines while the service runs, which a "
                "fleet cannot; leave them out and deploy the fleet again with the new checkpoint"
            )
        if service.workers > 1:
            raise ValueError(
                f"service.workers is {service.workers}, but the front ends of a fleet are its replicas; set "
                "front_ends.replicas instead"
            )
        unknown = sorted(set(self.policies) - set(service.policies))
        if unknown:
            raise ValueError(
                f"policies names {', '.join(unknown)}, which service.policies does not have"
            )
        return self
