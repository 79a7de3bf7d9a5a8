"""The settings of ``vbon tune``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from service.tune.question import Question
from vbon.config import PROMPT_FILE, FileEncoding, NoneWord, OptionGroups, PromptColumn
from vbon.measured.target import Metric
from vbon.tuning.durations import Duration
from vbon.tuning.registry import DEFAULT_SAMPLER, SAMPLERS
from vbon.tuning.search_fields import SamplerName, Searching, TargetText


def _fresh_directory() -> Path:
    return Path("runs") / f"tune-{datetime.now():%Y%m%d-%H%M%S}"


class TuneSettings(Searching):
    """Find the cheapest setting of a running server that reaches a reward.

    A setting is a mode, a policy, N, the sampling and the mode's own settings. Candidates are drawn once for
    each sampling and policy; every N and every rule is replayed from them. The winner is measured again on
    other prompts with other seeds, and under load, before it is recommended. The same --out continues a run
    that was interrupted.

    Examples:
      vbon tune --prompts prompts.jsonl --target "reward >= best-of-8" --p95-ms 400 --minimise cost
      vbon tune --target "gold >= best-of-16" --minimise tokens --budget 30m --out runs/tune
      vbon tune --maximise gold --max-tokens-per-answer 200 --concurrency 16
      vbon tune training --target "win-rate >= 0.8" --kl-nats 1.8 --trials 20
    """

    model_config = SettingsConfigDict(title="vbon tune")
    option_groups: ClassVar[OptionGroups] = {
        "Server": ("url", "api_key_env", "wait_s", "timeout_s", "in_flight"),
        "Question": (
            "target",
            "maximise",
            "minimise",
            "p95_ms",
            "max_tokens_per_answer",
            "price_per_hour",
            "currency",
        ),
        "Load": ("concurrency", "rate", "block_s", "stress_s"),
        "Search": (
            "space",
            "trials",
            "budget",
            "sampler",
            "workers",
            "seed",
            "storage",
            "finalists",
        ),
        "Prompts": (
            "prompts",
            "prompt_column",
            "encoding",
            "prompt_count",
            "validation_share",
            "test_share",
        ),
        "Results": ("out", "pareto", "apply", "report"),
    }

    url: str = Field("http://127.0.0.1:8000", description="address of the server, without /v1")
    api_key_env: str = Field(
        "VBON_REMOTE_API_KEY",
        description="environment variable with the server's API key, if it needs one",
    )
    wait_s: float = Field(0, ge=0, description="seconds to wait for the server to be ready")
    timeout_s: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="seconds that one request may take"
    )
    in_flight: int = Field(
        16, ge=1, description="requests in flight while candidates are drawn, outside the load"
    )

    target: TargetText = Field(
        None,
        description="gain to reach: reward, gold or win-rate, then >= and a number or best-of-K, which is "
        "that of the reference policy on the same prompts: 'reward >= best-of-8'",
    )
    maximise: Literal["reward", "gold", "win-rate"] | None = Field(
        None, description="instead of a target: the highest gain within the limits below"
    )
    minimise: Literal["tokens", "cost", "latency"] = Field(
        "tokens",
        description="price of an answer: decoded tokens, money under the stated load, or mean latency",
    )
    p95_ms: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="highest 95th percentile of latency, ms"
    )
    max_tokens_per_answer: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="tokens decoded for an answer, of all candidates together, at most",
    )
    price_per_hour: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="price of the serving machine per hour; without it, --minimise cost takes cost as "
        "proportional to tokens",
    )
    currency: str = Field("USD", max_length=8, description="currency of the price")

    concurrency: int | None = Field(
        None, ge=1, le=4096, description="stated load: requests in flight; default: 8"
    )
    rate: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="stated load instead: requests per second"
    )
    block_s: float = Field(
        4.0, gt=0, allow_inf_nan=False, description="seconds of each measurement of latency"
    )
    stress_s: float = Field(
        15.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds under the stated load before a setting is recommended",
    )

    space: Path | None = Field(
        None,
        description="TOML file of the search space; default: all policies and modes of the server, as the "
        "space.toml of the results says",
    )
    trials: int | None = Field(
        None,
        ge=1,
        description="drawings and live settings to try; default: 20, or until the budget",
    )
    budget: Duration | None = Field(
        None,
        description="time of the whole run, such as 30m; trials end in time for the final checks",
    )
    sampler: SamplerName = Field(
        DEFAULT_SAMPLER, description=f"optimiser of the trials: {', '.join(SAMPLERS.built_in)}"
    )
    workers: int = Field(1, ge=1, le=64, description="trials at once")
    seed: int = Field(
        0, ge=0, description="seed of the search, the split of the prompts and all draws"
    )
    storage: Annotated[str | None, NoneWord] = Field(
        None, description="Optuna storage of the trials; default: study.db in the results"
    )
    finalists: int = Field(
        5, ge=1, le=20, description="settings that are measured again on validation prompts"
    )

    prompts: Path | None = Field(
        None,
        description=f"file of prompts: {PROMPT_FILE}; default: those of the evaluation that the server "
        "shows, or a few that are built in",
    )
    prompt_column: PromptColumn = None
    encoding: FileEncoding = None
    prompt_count: int = Field(256, ge=6, description="prompts to use, at most")
    validation_share: float = Field(
        0.25, gt=0, lt=0.5, description="share of the prompts on which finalists are measured again"
    )
    test_share: float = Field(
        0.25, gt=0, lt=0.5, description="share of the prompts on which the choice is tested once"
    )

    out: Path = Field(
        default_factory=_fresh_directory,
        description="directory of the results; a run that it holds is continued; default: "
        "runs/tune-DATE-TIME",
    )
    pareto: bool = Field(
        False, description="print all settings that no other beats in gain and price"
    )
    apply: bool = Field(
        False,
        description="give the server the table afterwards, for mode auto; needs an admin's key",
    )
    report: bool = Field(
        True,
        description="show the run on the server's page, in its view Tune; needs an admin's key where the "
        "server has keys",
    )

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url.rstrip("/").removesuffix("/v1")

    @model_validator(mode="after")
    def _one_question(self) -> TuneSettings:
        if (self.target is None) == (self.maximise is None):
            raise ValueError(
                "give --target, such as 'reward >= best-of-8', or --maximise with a limit, and not both"
            )
        if self.maximise is not None and self.p95_ms is None and self.max_tokens_per_answer is None:
            raise ValueError(
                "--maximise needs a limit, or the largest N always wins: give --p95-ms or "
                "--max-tokens-per-answer"
            )
        if self.rate is not None and self.concurrency is not None:
            raise ValueError("give --concurrency or --rate as the stated load, not both")
        if self.rate is not None and self.minimise == "cost" and self.price_per_hour is not None:
            raise ValueError(
                "money per answer needs the answers per second of a full server, which --rate does not show; "
                "give --concurrency, or minimise tokens"
            )
        if self.validation_share + self.test_share > 0.8:
            raise ValueError(
                "validation_share and test_share leave less than a fifth of the prompts to tune on; lower "
                "them"
            )
        return self

    @property
    def question(self) -> Question:
        """The question that these settings ask."""
        target = self.goal
        metric: Metric = target.metric if target is not None else self.maximise or "reward"
        return Question(
            target,
            metric,
            self.minimise,
            self.p95_ms,
            self.max_tokens_per_answer,
            self.price_per_hour,
        )

    @property
    def asked(self) -> dict[str, Any]:
        """The settings that decide the answer; a run with others is another run."""
        names = {
            "target", "maximise", "minimise", "p95_ms", "max_tokens_per_answer", "price_per_hour",
            "concurrency", "rate", "sampler", "seed", "prompt_count", "validation_share", "test_share",
        }  # fmt: skip
        return self.model_dump(mode="json", include=names)
