"""The service's settings: flags, ``VBON_*`` environment variables, or a TOML file."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_settings import SettingsConfigDict

from vbon.config import NoneWord, OptionGroups, Settings
from vbon.engine.affinity import Placement
from vbon.engine.protocol import MOST_TEMPERATURE
from vbon.engine.vllm.engine_args import OWNED_BY_SERVICE, parse_values, refuse_owned

REFERENCE = "ref"
# The mode that answers with best-of-N or with a checkpoint that takes its place.
AUTO = "auto"
# The mode with the setting that was found by `vbon tune`.
TUNED = "tuned"
REMOTE_API_KEY = "VBON_REMOTE_API_KEY"
_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9a-f:]*:[0-9a-f:.]*")
_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")


class EngineSettings(BaseModel):
    """Settings of every engine; equal for all policies, so that they compare fairly.

    The settings whose names start with ``remote`` are for policies given as URLs. Of the others, those
    policies use only ``max_model_len``, ``max_num_seqs``, ``scheduling_policy``, ``placement`` and
    ``encode_timeout_s``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str = Field(
        "auto",
        description="type of the weights; auto keeps the type of the checkpoint, even float32, which "
        "the auto of vLLM rounds",
    )
    max_model_len: int | None = Field(
        None, ge=8, description="longest context, tokens; default: what the model allows"
    )
    max_num_seqs: int = Field(256, ge=1, description="sequences decoded at once, per engine")
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the GPU memory for each engine; default: .9, less what local reward models "
        "and the embedder need, divided by the number of engines",
    )
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs per engine")
    kv_cache_gib: int = Field(1, ge=1, description="KV cache of each engine, GiB; on a CPU only")
    enforce_eager: bool = Field(
        False, description="skip compilation: the engine starts sooner and decodes slower"
    )
    executor: str | None = Field(
        "uni", description="executor of vLLM; uni is the fastest on one device"
    )
    cpu_threads: int | None = Field(
        None,
        ge=1,
        description="threads of an engine on a CPU; default: all cores, but one less with 8 or more "
        "or where the policy is tiny (20 MB)",
    )
    scheduling_policy: Literal["fcfs", "priority"] = Field(
        "fcfs",
        description="order of waiting requests; with priority, requests may ask to be served earlier, "
        "and the servers of remote policies must have been started with it too (vllm "
        "serve --scheduling-policy priority)",
    )
    logprobs: Literal["policy", "sampled"] = Field(
        "policy",
        description="log-probabilities that the engines tell: policy, the policy's own at temperature 1 and "
        "before top_p and top_k; sampled, those of the distribution that was sampled, which rbon-kl and "
        "srbon-kl weigh by default (the servers of remote policies must have been started with vllm serve "
        "--logprobs-mode processed_logprobs)",
    )
    args: Annotated[dict[str, Any], BeforeValidator(parse_values)] = Field(
        default={},
        description="further vLLM engine arguments for every engine, as JSON: "
        '{"quantization": "fp8", "max_num_batched_tokens": 8192}',
    )
    tool_parser: Annotated[str | None, NoneWord] = Field(
        None,
        description="vLLM's parser of the policies' tool calls, such as hermes or llama3_json; without one, "
        "chats with tools must choose a function or `required`",
    )
    stall_timeout_s: float | None = Field(
        60.0,
        gt=0,
        description="seconds after which an engine that has work but decodes nothing counts as hung "
        "and is restarted; null: never",
    )
    encode_timeout_s: float = Field(
        5.0,
        gt=0,
        description="seconds that tokenizer and chat template may take for one prompt",
    )
    metrics: bool = Field(
        False,
        description="keep vLLM's own metrics in each engine and show them at /metrics by policy; "
        "costs a tiny policy on a CPU a tenth of its throughput, a large one less",
    )
    placement: Placement = Field(
        "prefix",
        description="where a policy has several replicas: prefix keeps the candidates of a request, and the "
        "turns of a conversation, at a replica that has their prefix in its cache; least-busy sends each "
        "candidate to the least busy one",
    )
    continuations: int = Field(
        1,
        ge=0,
        le=16,
        description="how often a streamed sample may go on at another replica of its policy after the one "
        "that drew it has died; 0: it ends with an error",
    )
    remote_metrics: bool = Field(
        True, description="show the metrics that the servers of remote policies publish"
    )
    remote_metrics_timeout_s: float = Field(
        1.0,
        gt=0,
        description="seconds to wait for the /metrics of a server, which is left out if it does not "
        "answer",
    )
    remote_api_key_env: str = Field(
        REMOTE_API_KEY,
        description="environment variable with the API key of those servers, if they need one",
    )
    remote_tokenizer: str | None = Field(
        None, description="tokenizer directory of the policies, for servers without /tokenize"
    )
    remote_connect_timeout_s: float = Field(5.0, gt=0, description="seconds to connect to a server")
    remote_timeout_s: float = Field(
        120.0,
        gt=0,
        description="seconds to wait for one candidate of a server, or for the next piece of a stream",
    )
    remote_start_timeout_s: float = Field(
        600.0, ge=0, description="seconds to wait at the start for a policy's first server"
    )
    remote_max_backoff_s: float = Field(
        30.0, gt=0, description="longest pause before a failed server is probed again, seconds"
    )

    @field_validator("args")
    @classmethod
    def _not_set_elsewhere(cls, args: dict[str, Any]) -> dict[str, Any]:
        refuse_owned(args, OWNED_BY_SERVICE)
        return args


class LimitSettings(BaseModel):
    """Limits of one request and of all requests together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_n: int = Field(128, ge=1, description="candidates per prompt, at most")
    max_prompts: int = Field(128, ge=1, description="prompts per request, at most")
    max_tokens: int = Field(4096, ge=1, description="new tokens per candidate, at most")
    max_body_bytes: int = Field(1_048_576, ge=1024, description="bytes of a request body, at most")
    max_header_bytes: int = Field(
        32_768, ge=1024, description="bytes of the headers of a request, at most"
    )
    max_header_fields: int = Field(100, ge=10, description="header fields of a request, at most")
    receive_timeout_s: float = Field(
        30.0,
        gt=0,
        description="seconds that the headers of a request, and then its body, may take to arrive",
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        le=1_000_000,
        description="seconds that an idle connection stays open; keep it above the idle time of "
        "clients (httpx: 5) and load balancers (often 60), or requests meet a connection "
        "that is closing",
    )
    running_sequences: int = Field(
        512, ge=1, description="candidates in the engines at once, at most"
    )
    running_tokens: int = Field(
        2**20, ge=1, description="sum of max_tokens over the candidates in the engines, at most"
    )
    waiting_sequences: int = Field(
        2048, ge=0, description="candidates that may wait; beyond, requests are refused with 429"
    )
    max_queue_s: float | None = Field(
        None,
        gt=0,
        description="refuse with 429 where the wait would be longer at the pace measured, seconds; "
        "default: no limit",
    )
    timeout_s: float = Field(120.0, gt=0, description="seconds that a request may take, at most")
    loadtest_max_s: float = Field(
        600.0,
        ge=0,
        description="seconds that the blocks of a load test started at /loadtests may take; it has "
        "three more minutes to calibrate, score and report, and is then stopped; 0 forbids load "
        "tests",
    )
    loadtest_max_in_flight: int = Field(
        1024, ge=1, description="requests in flight of such a load test, at most"
    )
    drain_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds that running requests may continue after the service was told to stop",
    )

    def time_limit(self, asked_s: float | None) -> tuple[float, str]:
        """The time limit of a request in seconds, and the name of the setting that it comes from."""
        if asked_s is not None and asked_s < self.timeout_s:
            return asked_s, "timeout_s"
        return self.timeout_s, "limits.timeout_s"


class RestartSettings(BaseModel):
    """Restarts of engines and of reward model workers that have died."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backoff_s: float = Field(
        1.0,
        gt=0,
        description="seconds to wait before the second attempt in a row, doubled before each further "
        "one; the first attempt is made at once",
    )
    max_backoff_s: float = Field(60.0, gt=0, description="longest wait between attempts, seconds")
    wait_s: float = Field(
        30.0,
        ge=0,
        description="seconds that a request whose engine dies waits for it to be back, if nothing of its "
        "answer was sent and its time limit allows; it is then begun again, once; 0: it gets 503 at once",
    )


class AuthSettings(BaseModel):
    """Access to the service."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys_file: Annotated[str | None, NoneWord] = Field(
        None,
        description="file of API keys, made by `vbon keys add NAME`; default: no keys, so whoever "
        "reaches the server may use it, except for the admin routes",
    )
    open_metrics: bool = Field(
        False, description="answer /metrics without a key while other routes need one"
    )


class DistilSettings(BaseModel):
    """Collection of answers for training, and the rollout of what was trained (docs/distil.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dir: Annotated[str | None, NoneWord] = Field(
        None,
        description="directory in which all candidates of best-of-N answers are kept with their prompts and "
        "rewards, for `vbon distil cache`; default: nothing is collected",
    )
    max_bytes: int = Field(
        2**30,
        ge=2**20,
        description="bytes of the directory, at most; when it is full, the oldest answers go",
    )
    retention_days: Annotated[float | None, NoneWord] = Field(
        30.0, gt=0, description="days after which an answer is removed; `none`: never"
    )
    sampling_rate: float = Field(
        1.0, gt=0, le=1, description="share of the answers that are collected, chosen at random"
    )
    redact: Annotated[str | None, NoneWord] = Field(
        None,
        description="function that changes or drops what is kept, package.module:function or "
        "./file.py:function; an answer for which it fails is not kept",
    )
    exclude_keys: list[str] = Field(
        default=[], description="names of API keys whose answers are never collected"
    )
    max_key_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the kept answers that one API key may hold, once it has 100; below 1 only for "
        "servers with several keys in use",
    )
    seal_after_s: float = Field(
        3600.0,
        gt=0,
        description="seconds after which collected answers can be used by `vbon distil cache`, at most",
    )
    queue: int = Field(
        1024,
        ge=1,
        description="answers that may wait to be written; beyond, they are dropped and counted",
    )
    policy: Annotated[str | None, NoneWord] = Field(
        None,
        description="name of the policy as which checkpoints are served that `vbon distil run` has trained, "
        "such as live; it adds the mode auto, which moves requests from best-of-N to them; default: none is "
        "served",
    )
    approve: bool = Field(
        False, description="a checkpoint waits until an admin promotes it (vbon distil promote)"
    )
    n: int | None = Field(
        None,
        ge=2,
        description="N of best-of-N in mode auto, and of the comparisons with it; default: default_n",
    )
    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default=[0.05, 0.25, 1.0],
        min_length=1,
        description="shares of the requests of mode auto that a new checkpoint gets, one after another; the "
        "last is 1",
    )
    shadow_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="share of the answers of mode auto that are compared with N samples of the reference "
        "policy afterwards, for each checkpoint that answers",
    )
    shadows: int = Field(
        2, ge=1, description="such comparisons at once; beyond, they are left out and counted"
    )
    shadow_load: float = Field(
        0.75,
        gt=0,
        le=1,
        description="share of limits.running_sequences up to which comparisons may fill the engines; above, "
        "or where a request waits, they are left out or stopped, and counted",
    )
    evidence_per_conversation: float = Field(
        0.05,
        gt=0,
        le=1,
        description="share of the comparisons of a checkpoint's test that one conversation may have, so "
        "that a prompt that is asked again and again decides nothing; it is one conversation",
    )
    evidence_per_key: float = Field(
        0.5,
        gt=0,
        le=1,
        description="the same for one API key, as long as others send, too; 1: keys have no bound",
    )
    margin: float = Field(
        0.05,
        ge=0,
        lt=0.5,
        description="win rate over the reference policy that a checkpoint may give up against the N/(N+1) of "
        "best-of-N",
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="probability that a checkpoint as good as required is rolled back while it is rolled "
        "out, and that a worse one becomes live, at most",
    )
    run_length: float = Field(
        100_000.0,
        gt=1,
        description="mean number of comparisons of a live checkpoint before a false alarm rolls it back, at "
        "least",
    )
    lora_rank: int | None = Field(
        None,
        ge=1,
        le=512,
        description="highest rank of checkpoints that are LoRA adapters, which the reference policy's engine "
        "then serves; default: checkpoints are whole models with engines of their own",
    )

    @property
    def policies(self) -> tuple[str, ...]:
        """The names under which the live checkpoint and the one that is rolled out are served."""
        return () if self.policy is None else (self.policy, f"{self.policy}-next")

    @field_validator("policy")
    @classmethod
    def _is_a_name(cls, policy: str | None) -> str | None:
        if policy is not None and not _NAME.match(policy):
            raise ValueError(f"{policy!r} must be lower-case letters, digits, . _ -")
        return policy

    @field_validator("shares")
    @classmethod
    def _shares_grow(cls, shares: list[float]) -> list[float]:
        if shares != sorted(set(shares)) or shares[-1] != 1:
            raise ValueError(f"{shares} must grow from one to the next and end with 1")
        return shares


class TunedSettings(BaseModel):
    """The setting that mode ``tuned`` uses; ``vbon tune`` writes it (docs/tuning.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Annotated[str | None, NoneWord] = Field(
        None,
        description="mode that answers: a strategy, or a policy for one sample of it; default: there is no "
        "mode tuned",
    )
    policy: Annotated[str | None, NoneWord] = Field(
        None, description="policy that the strategy draws from; default: ref"
    )
    n: int | None = Field(
        None, ge=1, description="N of requests that name none; default: default_n"
    )
    temperature: float | None = Field(
        None, ge=0, le=MOST_TEMPERATURE, description="temperature of requests that name none"
    )
    top_p: float | None = Field(None, gt=0, le=1, description="top_p of requests that name none")
    top_k: int | None = Field(None, ge=-1, description="top_k of requests that name none")
    max_tokens: int | None = Field(None, ge=1, description="max_tokens of requests that name none")
    settings: Annotated[dict[str, Any], BeforeValidator(parse_values)] = Field(
        default={},
        description='settings of the strategy, as JSON: {"reward_temperature": 0.5}',
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """The sampling fields that are set, by name."""
        values = self.model_dump(include={"temperature", "top_p", "top_k", "max_tokens"})
        return {name: value for name, value in values.items() if value is not None}


class AutoSettings(BaseModel):
    """Mode ``auto`` by price: the best of measured settings (docs/auto.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    table: Annotated[str | None, NoneWord] = Field(
        None,
        description="table of measured settings, which `vbon tune` or `vbon loadtest table` wrote; it adds "
        "the mode auto, as PUT /auto/table does; the newer one of this and the store's is used",
    )
    gain: Literal["reward", "gold"] = Field(
        "reward",
        description="reward that is weighed: that of the serving or of the gold reward model",
    )
    token_price: float = Field(
        0.0, ge=0, description="price of a generated token, in units of that reward"
    )
    latency_price: float = Field(
        0.0, ge=0, description="price of a second of latency, in units of that reward"
    )
    p95_ms: Annotated[float | None, NoneWord] = Field(
        None,
        gt=0,
        description="highest 95th percentile of latency of a setting, by the upper end of its interval, ms",
    )
    price_per_hour: Annotated[float | None, NoneWord] = Field(
        None, gt=0, description="money for an hour of this server, for budgets in money"
    )
    price_per_million_tokens: Annotated[float | None, NoneWord] = Field(
        None, gt=0, description="money for a million generated tokens, for budgets in money"
    )


class OtelSettings(BaseModel):
    """OpenTelemetry traces; OTEL_* variables set what has no setting here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str | None, NoneWord] = Field(
        None,
        pattern=r"^https?://\S+$",
        description="collector that takes OTLP over HTTP, such as http://HOST:4318; needs the extra "
        "`otel`",
    )


class ServiceSettings(Settings):
    """Serve policies and a reward model over HTTP.

    Each policy is a mode of its name, which answers with one sample; `bon` and its relatives sample the
    reference policy N times and rerank with the reward model. A page at / shows them side by side.

    Examples:
      vbon serve --policies ref=sandbox/policy --policies vbon=sandbox/vbon --reward sandbox/reward
      VBON_PORT=9000 vbon serve --config service.toml
      vbon serve --policies ref=http://host1:8001/v1,http://host2:8001/v1 --reward DIR
    """

    option_groups: ClassVar[OptionGroups] = {
        "Models": (
            "policies",
            "expected",
            "reward",
            "gold",
            "embedder",
            "evaluation",
            "trust_remote_code",
        ),
        "Server": ("host", "port", "workers", "hosts", "cors_origins", "store"),
        "Defaults of requests": (
            "default_mode",
            "default_n",
            "default_max_tokens",
            "default_chat_max_tokens",
            "default_temperature",
        ),
        "Reward models": (
            "reward_batch_size",
            "reward_threads",
            "reward_timeout_s",
            "reward_stall_timeout_s",
        ),
        "Logs": ("log_level", "log_format", "access_log", "log_user_errors"),
    }

    model_config = SettingsConfigDict(
        env_prefix="VBON_", title="vbon service", hide_input_in_errors=True
    )
    other_variables = frozenset({REMOTE_API_KEY})

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="front-end processes, which share the engines and the limits; more than one only pays "
        "where the HTTP API takes a whole core",
    )
    policies: dict[str, str] = Field(
        default={REFERENCE: "sandbox/policy", "vbon": "sandbox/vbon"},
        description="NAME=DIR (or hub id) of each policy, which becomes a mode of that name; `ref` is "
        "the reference policy that best-of-N samples from; the directory of a LoRA "
        "adapter is served on the reference engine; http://HOST:PORT/v1#MODEL is a policy "
        "on an OpenAI-compatible server, and several URLs separated by commas are "
        "replicas of it",
    )
    expected: list[str] = Field(
        default=[],
        description="names of policies whose checkpoints may not exist yet; the service starts without "
        "them, and each becomes a mode as soon as its directory is complete (not for LoRA adapters)",
    )
    reward: Annotated[str | None, NoneWord] = Field(
        "sandbox/reward",
        description="reward model that selects: the directory of a one-logit sequence classifier "
        "(with-eos:DIR if it was trained with EOS after each text), python:package.module:function or "
        "python:./file.py:function, the URL of a scorer, or SCHEME:ARGUMENT of a plug-in; `none` for none",
    )
    gold: Annotated[str | None, NoneWord] = Field(
        None,
        description="held-out reward model in the same forms; it never selects and only reports in "
        "/compare",
    )
    embedder: str = Field(
        "ngrams",
        description="similarity of candidates for mbr-bon and srbon-wd: ngrams, sentences:MODEL "
        "(sentence-transformers) or hidden:DIR (hidden states of a language model)",
    )
    reward_batch_size: int = Field(64, ge=1, description="texts scored in one forward pass")
    reward_threads: int = Field(
        1,
        ge=1,
        description="CPU threads of the reward models where there is no GPU; more of them compete "
        "with the engines and slow both down",
    )
    reward_timeout_s: float = Field(
        30.0, gt=0, description="seconds that one call of a remote scorer may take"
    )
    reward_stall_timeout_s: float = Field(
        60.0,
        gt=0,
        description="seconds after which a batch of a local reward model counts as hung and its "
        "worker is restarted",
    )
    trust_remote_code: bool = Field(False, description="let checkpoints run their own code")
    default_mode: str = Field("bon", description="mode of a request that names none")
    default_n: Annotated[int, Field(ge=1)] = Field(16, description="N of a request that names none")
    default_max_tokens: Annotated[int | None, NoneWord] = Field(
        None,
        ge=1,
        description="max_tokens of a request that names none; default: what the served checkpoints were "
        "trained with, by their cards, or 64 where they have none or differ",
    )
    default_chat_max_tokens: Annotated[int | None, NoneWord] = Field(
        None,
        ge=1,
        description="most tokens of the answer to a chat whose request names no max_tokens, if the context "
        "has room for them; default: default_max_tokens or the cards, or else limits.max_tokens",
    )
    default_temperature: Annotated[float | None, NoneWord] = Field(
        None,
        ge=0,
        le=MOST_TEMPERATURE,
        description="temperature of a request that names none; default: that of the cards, or 1",
    )
    engine: EngineSettings = Field(EngineSettings(), description="engines")
    limits: LimitSettings = Field(LimitSettings(), description="limits")
    hosts: list[str] = Field(
        default=[],
        description="further names under which clients reach this server; without API keys it serves only "
        "under these, loopback names and its address, because web pages can pretend to be others",
    )
    cors_origins: list[str] = Field(
        default=[],
        description="origins whose pages may call this service from a browser, https://HOST[:PORT]; "
        "default: none",
    )
    restarts: RestartSettings = Field(RestartSettings(), description="restarts")
    auth: AuthSettings = Field(AuthSettings(), description="API keys")
    store: Annotated[str | None, NoneWord] = Field(
        "vbon-runs.db",
        description="place of runs and preferences: a SQLite file, a database URL "
        "(postgresql+psycopg://...) or `none`; made when first needed",
    )
    evaluation: Annotated[str | None, NoneWord] = Field(
        None,
        description="evaluation.json that `vbon evaluate` wrote for these models; shown at /frontier",
    )
    log_level: str = Field(
        "info", description="least severe level to log: debug, info, warning or error"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="format of the log; json writes one object per line, for machines"
    )
    access_log: bool | None = Field(
        None, description="log each request that has ended; default: on with --log-format json"
    )

    log_user_errors: bool = Field(
        False,
        description="log the texts of unexpected errors and of those that reward functions raise, which may "
        "contain prompts and answers; by default only their types are logged",
    )

    tuned: TunedSettings = Field(
        TunedSettings(), description="setting of the mode tuned, as `vbon tune` writes it"
    )
    otel: OtelSettings = Field(OtelSettings(), description="traces")
    distil: DistilSettings = Field(
        DistilSettings(),
        description="collection of answers for training, and rollout of checkpoints",
    )

    auto: AutoSettings = Field(
        AutoSettings(), description="mode auto, which chooses among measured settings by price"
    )

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

    @model_validator(mode="after")
    def _expected_are_policies(self) -> ServiceSettings:
        for name in self.expected:
            if name not in self.policies or name == REFERENCE:
                raise ValueError(
                    f"expected policy {name!r} must be one of policies, and not {REFERENCE!r}; these are "
                    f"{', '.join(self.policies)}"
                )
            if self.policies[name].startswith(("http://", "https://")):
                raise ValueError(
                    f"expected policy {name!r} is a URL; a server that is not reachable yet is waited for "
                    "without this setting"
                )
        return self

    @model_validator(mode="after")
    def _workers_can_share(self) -> ServiceSettings:
        if self.workers == 1:
            return self
        for setting, is_set in (
            ("expected", bool(self.expected)),
            ("distil.dir", self.distil.dir is not None),
            ("distil.policy", self.distil.policy is not None),
            ("a store in memory", _is_in_memory(self.store)),
        ):
            if is_set:
                raise ValueError(
                    f"{setting} needs a server of one process; leave it out, or set workers to 1"
                )
        return self

    @model_validator(mode="after")
    def _collects_rewards(self) -> ServiceSettings:
        if self.distil.dir is not None and self.reward is None:
            raise ValueError(
                "distil.dir needs a reward model, because only answers with rewards can be trained on; set "
                "reward, or leave distil.dir out"
            )
        return self

    @model_validator(mode="after")
    def _can_roll_out(self) -> ServiceSettings:
        distil = self.distil
        if distil.policy is None:
            return self
        for needed in ("dir", "store"):
            if (distil.dir if needed == "dir" else self.store) is None:
                setting = "distil.dir" if needed == "dir" else "store"
                raise ValueError(
                    f"distil.policy needs {setting}, where checkpoints and decisions are kept; set it, or "
                    "leave distil.policy out"
                )
        for name in (*distil.policies, AUTO):
            if name in self.policies:
                raise ValueError(
                    f"the name {name!r} of policies is needed for the rollout of checkpoints; rename that "
                    "policy, or choose another distil.policy"
                )
        if distil.policy == AUTO:
            raise ValueError(f"distil.policy is {AUTO!r}, the name of a mode; choose another")
        if self.auto_n > self.limits.max_n:
            raise ValueError(f"distil.n {self.auto_n} is over limits.max_n {self.limits.max_n}")
        running = self.limits.running_sequences
        if self.auto_n > distil.shadow_load * running:
            raise ValueError(
                f"the {self.auto_n} candidates of a comparison (distil.n) never have room in "
                f"distil.shadow_load {distil.shadow_load:g} of limits.running_sequences {running}, so no "
                "live checkpoint would be watched; raise one of these two, or lower distil.n"
            )
        return self

    @model_validator(mode="after")
    def _tuned_can_be_served(self) -> ServiceSettings:
        tuned = self.tuned
        if tuned.mode is None:
            if tuned != TunedSettings():
                raise ValueError(
                    "tuned has settings but no mode; set tuned.mode, or leave tuned out"
                )
            return self
        if TUNED in self.policies:
            raise ValueError(
                f"the policy name {TUNED!r} is needed for the mode of tuned.*; rename the policy"
            )
        if tuned.mode in (TUNED, AUTO):
            raise ValueError(f"tuned.mode is {tuned.mode!r}; name a strategy or a policy")
        for name, limit in (("n", self.limits.max_n), ("max_tokens", self.limits.max_tokens)):
            value = getattr(tuned, name)
            if value is not None and value > limit:
                raise ValueError(
                    f"tuned.{name} {value} is over limits.max_{name.removeprefix('max_')} {limit}"
                )
        return self

    @model_validator(mode="after")
    def _can_choose_by_price(self) -> ServiceSettings:
        if self.auto.table is not None and AUTO in self.policies:
            raise ValueError(
                f"the name {AUTO!r} of policies is needed for the mode that auto.table adds; rename that "
                "policy"
            )
        return self

    @property
    def auto_n(self) -> int:
        """The N of best-of-N in mode ``auto``."""
        return self.default_n if self.distil.n is None else self.distil.n

    @property
    def own_names(self) -> list[str]:
        """The names and addresses of this server that are configured."""
        return [*self.hosts, self.host]

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is not a host; write a name or address without a port")
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin; write https://HOST or https://HOST:PORT"
                )
        return origins

    @model_validator(mode="after")
    def _defaults_within_limits(self) -> ServiceSettings:
        if self.default_n > self.limits.max_n:
            raise ValueError(f"default_n {self.default_n} is over limits.max_n {self.limits.max_n}")
        for name in ("default_max_tokens", "default_chat_max_tokens"):
            value = getattr(self, name)
            if value is not None and value > self.limits.max_tokens:
                raise ValueError(
                    f"{name} {value} is over limits.max_tokens {self.limits.max_tokens}"
                )
        return self


def _is_in_memory(store: str | None) -> bool:
    """True if a store is SQLite's in the memory of one process."""
    if store is None or ("://" in store and not store.startswith("sqlite")):
        return False
    name = re.sub(r"^sqlite[^/]*///?", "", store).partition("?")[0]
    return not name or name.startswith(":memory:") or "mode=memory" in store
