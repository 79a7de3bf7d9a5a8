"""Settings of the simulated fleet."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from pydantic import AliasChoices, Field, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from service.bench.fleet.engine import ServiceTimes
from service.bench.fleet.limits import Sharing
from vbon.config import OptionGroups, Settings
from vbon.errors import DataError

# From docs/real-model.md: 40 tokens took 573 ms alone and 744 ms in a request of four, and 128 requests in
# flight were answered at 22/s. A prompt token costs what a token of the widest step does, since both keep the
# processor busy.
MEASURED = ServiceTimes(
    source="SmolLM2-135M in vLLM on two cores",
    step_ms={1: 573 / 40, 4: 744 / 40, 128: 128 * 1e3 / (22 * 40)},
    prefill_ms=1e3 / (22 * 40),
)


class FleetBenchConfig(Settings):
    """Simulate fleets of several sizes, with the real admission, fair queue and placement.

    Only engines and the network are replaced, by measured times, and the clock jumps from event to event.
    Each size is run with the limits shared by all front ends over a host, and with other ways to divide them,
    on the same requests.

    Examples:
      vbon bench fleet
      vbon bench fleet --replicas 1 --replicas 64 --n 1 --speed 100 --seeds 1
      vbon bench fleet --service-times h100.json --sharing shared --load 1.2 --json fleet.json
    """

    option_groups: ClassVar[OptionGroups] = {
        "Fleet": (
            "replicas", "replicas_per_front_end", "sharing", "max_num_seqs", "running_sequences",
            "waiting_sequences",
        ),
        "Times": (
            "service_times", "speed", "cache_tokens", "front_end_ms", "round_trip_ms", "message_us",
            "notice_ms",
        ),
        "Load": (
            "load", "n", "mean_tokens", "max_tokens", "prefix_tokens", "new_tokens", "conversations",
            "requests", "least_requests",
        ),
        "Figures": ("objective", "seeds", "first_seed", "json_file"),
    }  # fmt: skip

    model_config = SettingsConfigDict(title="vbon bench fleet", allow_inf_nan=False)

    replicas: list[int] = Field(
        [1, 2, 4, 8, 16, 32, 64], description="numbers of replicas of the policy"
    )
    replicas_per_front_end: int = Field(4, ge=1, description="replicas for each front end")
    sharing: list[Sharing] = Field(
        ["shared", "split"],
        description="ways to divide the limits: shared (one host admits for all front ends), split (each "
        "front end has its part of them), each (each front end has all of them, as without sharing)",
    )
    max_num_seqs: int = Field(64, ge=1, description="sequences that a replica decodes at once")
    running_sequences: int = Field(
        128,
        ge=1,
        description="sequences that are admitted, for each replica; twice as many as it decodes at once, as "
        "in the service's defaults, because a request holds its places until its longest candidate has ended",
    )
    waiting_sequences: int = Field(
        128, ge=0, description="sequences that may wait, for each replica"
    )
    service_times: Path | None = Field(
        None,
        description='JSON file with an engine\'s times: {"source": TEXT, "step_ms": {SEQUENCES: MS, ...}, '
        f'"prefill_ms": MS}}; default: {MEASURED.source}',
    )
    speed: float = Field(
        1.0, gt=0, description="factor by which engines are faster than those times"
    )
    cache_tokens: int = Field(
        100_000, ge=0, description="prompt tokens that a replica's prefix cache holds"
    )
    front_end_ms: float = Field(
        0.6,
        ge=0,
        description="processor time of a front end for each sequence; 9.7 ms for 16 were measured",
    )
    round_trip_ms: float = Field(
        0.12, ge=0,
        description="time of a message there and back; .12 ms were measured over ZeroMQ on one machine",
    )  # fmt: skip
    message_us: float = Field(
        13.0, ge=0,
        description="processor time of the host of shared limits for a message; 13 us were measured",
    )  # fmt: skip
    notice_ms: float = Field(
        10.0,
        ge=0,
        description="time between two messages of the host to each front end about changes",
    )
    load: float = Field(
        0.8,
        gt=0,
        description="requests that arrive, as a share of those that one replica answers when it has too "
        "many, times the replicas",
    )
    n: int = Field(16, ge=1, description="candidates of a request")
    mean_tokens: float = Field(
        64.0, gt=0, description="tokens of a candidate on average, before the limit"
    )
    max_tokens: int = Field(256, ge=1, description="tokens of a candidate, at most")
    prefix_tokens: int = Field(
        448, ge=0, description="prompt tokens that all requests of a conversation begin with"
    )
    new_tokens: int = Field(64, ge=1, description="prompt tokens that each request adds")
    conversations: int = Field(32, ge=1, description="conversations for each replica")
    requests: int = Field(
        200, ge=5, description="requests for each replica; the first fifth is not counted"
    )
    least_requests: int = Field(2000, ge=5, description="requests of a run, at least")
    objective: float = Field(
        1.5, gt=0,
        description="longest time of an answer that counts as goodput, as a multiple of the time that the "
        "longest answer takes on a full engine",
    )  # fmt: skip
    seeds: int = Field(3, ge=1, description="runs of each fleet, which differ in their requests")
    first_seed: int = Field(0, ge=0, description="seed of the first run")
    json_file: Path | None = Field(
        None,
        validation_alias=AliasChoices("json", "json_file"),
        description="file for the result as JSON",
    )

    @field_validator("replicas")
    @classmethod
    def _are_replicas(cls, replicas: list[int]) -> list[int]:
        if not replicas or min(replicas) < 1:
            raise ValueError("name at least one number of replicas, each of them 1 or more")
        return replicas

    @field_validator("sharing")
    @classmethod
    def _are_ways(cls, sharing: list[Sharing]) -> list[Sharing]:
        if not sharing or len(set(sharing)) < len(sharing):
            raise ValueError("name at least one way, and each of them once")
        return sharing

    @cached_property
    def times(self) -> ServiceTimes:
        """The times of an engine.

        Raises:
            DataError: the file of service times cannot be used.
        """
        return self._measured.faster(self.speed)

    @property
    def _measured(self) -> ServiceTimes:
        path = self.service_times
        if path is None:
            return MEASURED
        try:
            return ServiceTimes.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            raise DataError(f"the service times of {path} cannot be used: {error}") from error

    @property
    def bound(self) -> float:
        """Requests a second that an engine could answer, were it full and computed new tokens only."""
        mean = _mean_length(self.mean_tokens, self.max_tokens)
        full_s = self.times.step_s(self.max_num_seqs) / self.max_num_seqs
        return 1 / (self.n * mean * full_s + self.new_tokens * self.times.prefill_ms / 1e3)

    @cached_property
    def objective_s(self) -> float:
        """Seconds in which an answer counts as goodput."""
        longest_s = self.max_tokens * self.times.step_s(self.max_num_seqs)
        prompt_s = (self.prefix_tokens + self.new_tokens) * self.times.prefill_ms / 1e3
        return self.objective * (longest_s + prompt_s)

    def front_ends(self, replicas: int) -> int:
        """The front ends of so many replicas."""
        return math.ceil(replicas / self.replicas_per_front_end)


def _mean_length(mean: float, most: int) -> float:
    """The mean of 1 + floor(x), at most ``most``, for x exponential with this mean.

    It is the sum over k from 0 to ``most`` - 1 of P(length > k) = exp(-k / mean).
    """
    ratio = math.exp(-1 / mean)
    return (1 - ratio**most) / (1 - ratio)
