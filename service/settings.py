"""The service's settings: flags, ``VBON_*`` environment variables, or a TOML file."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from vbon.config import NoneWord, Settings

REFERENCE = "ref"
REMOTE_API_KEY = "VBON_REMOTE_API_KEY"
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")


class EngineSettings(BaseModel):
    """Settings of every engine; equal for all policies, so that they compare fairly.

    Those that start with ``remote`` are for policies given as URLs, for which of the others only
    ``max_model_len``, ``max_num_seqs`` and ``scheduling_policy`` count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = Field(
        "auto",
        description="weights' type; auto takes the checkpoint's, float32 too, which vLLM's own auto rounds",
    )
    max_model_len: int | None = Field(None, ge=8, description="context in tokens")
    max_num_seqs: int = Field(256, ge=1, description="sequences decoded at once, per engine")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="share of GPU memory per engine; default: .9 / engines"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs per engine")
    kv_cache_gib: int = Field(1, ge=1, description="KV cache per engine, GiB; CPU only")
    enforce_eager: bool = Field(False, description="no compilation: starts sooner, decodes slower")
    executor: str | None = Field("uni", description="vLLM executor; uni is fastest on one device")
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="threads of an engine's model on a CPU; default: all cores, but one less with 8 or "
        "more, or where the policy is tiny (20 MB)",
    )
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        "fcfs",
        description="priority: requests may say how early they are served; servers of remote policies "
        "must then have been started so too (vllm serve --scheduling-policy priority)",
    )
    stall_timeout_s: float | None = Field(
        60.0,
        gt=0,
        description="an engine that has work and decodes nothing for so long hangs, and is started "
        "again; seconds, or null: never",
    )
    metrics: bool = Field(
        False,
        description="let each engine keep vLLM's own metrics, shown at /metrics by policy; costs a tiny "
        "policy on a CPU a tenth of its throughput, a large one less",
    )
    remote_metrics: bool = Field(
        True, description="show what the servers of remote policies say at their own /metrics"
    )
    remote_metrics_timeout_s: float = Field(
        1.0, gt=0, description="of reading a server's /metrics; without an answer it is left out"
    )
    remote_api_key_env: str = Field(
        REMOTE_API_KEY,
        description="environment variable with the servers' API key, if they need one",
    )
    remote_tokenizer: str | None = Field(
        None, description="the policies' tokenizer directory, for servers without /tokenize"
    )
    remote_connect_timeout_s: float = Field(5.0, gt=0, description="to reach a server, seconds")
    remote_timeout_s: float = Field(
        120.0, gt=0, description="one candidate of a server, or the next piece of a stream, seconds"
    )
    remote_start_timeout_s: float = Field(
        600.0, ge=0, description="wait so long at the start for a policy's first server, seconds"
    )
    remote_max_backoff_s: float = Field(
        30.0, gt=0, description="longest a failed server is left out before it is probed, seconds"
    )


class LimitSettings(BaseModel):
    """What one request, and all of them together, may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_n: int = Field(128, ge=1, description="most candidates a prompt")
    max_prompts: int = Field(128, ge=1, description="most prompts a request")
    max_tokens: int = Field(4096, ge=1, description="most new tokens a candidate")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="most bytes of a request body")
    max_header_bytes: int = Field(32_768, ge=1024, description="most bytes of a request's head")
    max_header_fields: int = Field(100, ge=10, description="most header fields of a request")
    receive_timeout_s: float = Field(
        30.0,
        gt=0,
        description="longest a request's head, and then its body, may take to arrive, seconds",
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        description="how long an idle connection stays open, seconds; above what clients (httpx: 5) and load "
        "balancers (often 60) keep theirs, or requests meet a connection as it closes",
    )
    running_sequences: int = Field(512, ge=1, description="candidates in the engines at once")
    running_tokens: int = Field(
        2**20, ge=1, description="tokens they may come to: candidates times max_tokens"
    )
    waiting_sequences: int = Field(2048, ge=0, description="candidates that may wait; beyond: 429")
    max_queue_s: float | None = Field(
        None, gt=0, description="429 where the wait would be longer, by the pace measured; seconds"
    )
    timeout_s: float = Field(120.0, gt=0, description="longest a request may take, seconds")
    loadtest_max_s: float = Field(
        300.0,
        ge=0,
        description="most seconds of blocks of a load test started at /loadtests, which has a minute more to "
        "start, score and report and is then stopped; 0: none may be started",
    )
    loadtest_max_in_flight: int = Field(
        256, ge=1, description="most requests in flight of such a load test"
    )
    drain_s: float = Field(
        30.0,
        ge=0,
        description="how long requests under way may go on once the service was told to stop, seconds",
    )

    def time_limit(self, asked_s: float | None) -> tuple[float, str]:
        """Seconds that a request may take, which may ask for fewer, and what they are called."""
        if asked_s is not None and asked_s < self.timeout_s:
            return asked_s, "timeout_s"
        return self.timeout_s, "limits.timeout_s"


class RestartSettings(BaseModel):
    """How what has died is brought back: engines, and the workers of reward models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backoff_s: float = Field(
        1.0,
        gt=0,
        description="wait before the second attempt in a row, twice that before the third, ...; the "
        "first is made at once",
    )
    max_backoff_s: float = Field(60.0, gt=0, description="longest wait between attempts, seconds")


class AuthSettings(BaseModel):
    """Who may use the service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys_file: Annotated[str | None, NoneWord] = Field(
        None,
        description="API keys, made by `python -m service keys add NAME`; none: whoever reaches the "
        "server may use it, admin routes apart",
    )
    open_metrics: bool = Field(False, description="/metrics without a key where others need one")


class OtelSettings(BaseModel):
    """OpenTelemetry traces; OTEL_* variables say what is not said here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str | None, NoneWord] = Field(
        None,
        pattern=r"^https?://\S+$",
        description="collector that takes OTLP over HTTP, http://HOST:4318; needs the extra `otel`",
    )


class ServiceSettings(Settings):
    """Best-of-N service.

    Examples:
      python -m service --policies ref=sandbox/policy --policies vbon=sandbox/vbon
      VBON_PORT=9000 python -m service --config service.toml
    """

    model_config = SettingsConfigDict(env_prefix="VBON_", title="vbon service")
    other_variables = frozenset({REMOTE_API_KEY})

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    policies: dict[str, str] = Field(
        default={REFERENCE: "sandbox/policy", "vbon": "sandbox/vbon"},
        description="NAME=DIR for each policy (or hub id); `ref` is the reference policy that "
        "best-of-N draws from; a LoRA adapter directory is served on the reference engine; "
        "http://HOST:PORT/v1#MODEL is a policy on an OpenAI-compatible server, several URLs with "
        "commas between them are replicas of it; "
        "each policy is a mode of its name",
    )
    reward: Annotated[str | None, NoneWord] = Field(
        "sandbox/reward",
        description="reward model that selects, or `none`: a sequence-classifier directory, "
        "python:package.module:function, or the URL of a scorer",
    )
    gold: Annotated[str | None, NoneWord] = Field(
        None, description="held-out reward model, same forms; reports in /compare, never selects"
    )
    embedder: str = Field(
        "ngrams",
        description="what says how alike candidates are (mbr-bon, srbon-wd): ngrams, sentences:MODEL "
        "(sentence-transformers), hidden:DIR (a language model's own hidden states)",
    )
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    reward_threads: int = Field(
        1,
        ge=1,
        description="CPU threads of the reward models where there is no GPU; beside the engines, more "
        "of them wait for each other, and slow both down",
    )
    reward_timeout_s: float = Field(30.0, gt=0, description="limit of one remote scorer call")
    reward_stall_timeout_s: float = Field(
        60.0,
        gt=0,
        description="limit of one batch of a reward model here; its worker hangs, and is started again",
    )
    trust_remote_code: bool = Field(False, description="let checkpoints bring their own code")
    default_mode: str = Field("bon", description="mode of a request that names none")
    default_n: Annotated[int, Field(ge=1)] = Field(16, description="N where a request names none")
    default_max_tokens: Annotated[int, Field(ge=1)] = Field(
        64, description="max_tokens where a request names none"
    )
    engine: EngineSettings = Field(EngineSettings(), description="engine settings")
    limits: LimitSettings = Field(LimitSettings(), description="limits per request and in total")
    cors_origins: list[str] = Field(
        default=[],
        description="origins whose pages may use this service from a browser, https://HOST[:PORT]; none",
    )
    restarts: RestartSettings = Field(RestartSettings(), description="of what has died")
    auth: AuthSettings = Field(AuthSettings(), description="API keys")
    store: Annotated[str | None, NoneWord] = Field(
        "vbon-runs.db",
        description="where preferences are kept: a SQLite file, a database URL "
        "(postgresql+psycopg://...), or none; made when first needed",
    )
    evaluation: Annotated[str | None, NoneWord] = Field(
        None,
        description="evaluation.json of `python -m training evaluate` on these models, shown at /frontier",
    )
    log_level: str = Field("info", description="debug, info, warning or error")
    log_format: Literal["text", "json"] = Field(
        "text", description="json: one object a line, for machines"
    )
    access_log: bool | None = Field(
        None, description="a record of each request that has ended; default: with --log-format json"
    )

    otel: OtelSettings = Field(OtelSettings(), description="traces of requests")

    @property
    def logs_access(self) -> bool:
        """``access_log``, or its default."""
        return self.log_format == "json" if self.access_log is None else self.access_log

    @field_validator("policies")
    @classmethod
    def _named_policies(cls, policies: dict[str, str]) -> dict[str, str]:
        for name in policies:
            if not _NAME.match(name):
                raise ValueError(f"policy name {name!r} must be lower-case letters, digits, . _ -")
        if REFERENCE not in policies:
            raise ValueError(
                f"no policy is named {REFERENCE!r}; best-of-N needs a reference policy"
            )
        return policies

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write https://HOST or https://HOST:PORT"
                )
        return origins

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> ServiceSettings:
        if self.default_n > self.limits.max_n:
            raise ValueError(f"default_n {self.default_n} is over limits.max_n {self.limits.max_n}")
        if self.default_max_tokens > self.limits.max_tokens:
            raise ValueError(
                f"default_max_tokens {self.default_max_tokens} is over limits.max_tokens "
                f"{self.limits.max_tokens}"
            )
        return self
