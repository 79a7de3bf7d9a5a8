"""Settings of a load test."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from vbon.config import PROMPT_FILE, FileEncoding, NoneWord, OptionGroups, PromptColumn, Settings
from vbon.engine.protocol import MOST_TEMPERATURE

SLO_KINDS = ("e2e", "ttft", "tpot")
BLOCK_S, WARMUP_S = 5.0, 1.0  # of a block whose level was given
AIM_S = 300.0  # of all blocks of a calibrated load test

Level = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _fresh_directory() -> Path:
    return Path("runs") / f"loadtest-{datetime.now():%Y%m%d-%H%M%S}"


class LoadTestSettings(Settings):
    """Load a running server with several modes in turns; report latency, throughput, reward and cost.

    A closed loop keeps a number of requests in flight and sends the next one when one is answered
    (--concurrency). In an open loop requests arrive whether or not others were answered (--rate), and
    latency counts from the moment a request was due. Both may be given; each value is a load level of
    every mode. The same --out continues a run that was interrupted.

    Examples:
      vbon loadtest --prompts heldout.jsonl --price-per-hour 2.50
      vbon loadtest --modes ref,bon,vbon --n 4,16 --concurrency 1,32 --rounds 5
      vbon loadtest --rate 2,4,8 --burstiness 0.5 --slo e2e:500
      vbon loadtest --saturate --slo e2e:500
      vbon loadtest --api openai --url http://host:8001 --modes my-model
    """

    model_config = SettingsConfigDict(title="vbon load test")
    option_groups: ClassVar[OptionGroups] = {
        "Server": ("url", "api", "api_key_env", "wait_s"),
        "Modes": ("modes", "n", "baseline"),
        "Load": (
            "concurrency",
            "rate",
            "arrival",
            "burstiness",
            "max_in_flight",
            "rounds",
            "extend",
            "order",
            "duration_s",
            "requests",
            "ramp_s",
            "warmup_s",
            "max_s",
            "timeout_s",
        ),
        "Requests": (
            "prompts",
            "prompt_column",
            "encoding",
            "prompt_words",
            "prompt_count",
            "max_tokens",
            "temperature",
            "ignore_eos",
            "stream",
            "seed",
        ),
        "Objectives": ("slo", "saturate", "saturate_tolerance", "saturate_duration_s"),
        "Quality": ("quality_prompts", "quality_samples", "quality_concurrency"),
        "Cost": ("price_per_hour", "training_price_per_hour", "training_hours", "currency"),
        "Results": ("out", "store", "tag", "run_id", "supervised", "limit_s"),
    }

    url: str = Field("http://127.0.0.1:8000", description="address of the server, without /v1")
    api: Literal["native", "openai"] = Field(
        "native",
        description="interface of the server: native is this project's service; openai is any server "
        "with /v1/completions, measured for latency and throughput only",
    )
    api_key_env: str = Field(
        "VBON_REMOTE_API_KEY",
        description="environment variable with the server's API key, if it needs one",
    )
    wait_s: float = Field(0, ge=0, description="seconds to wait for the server to be ready")
    modes: list[str] = Field(
        ["ref", "bon", "vbon"],
        min_length=1,
        description="modes to compare: those of /modes, MODE@POLICY, or model names with --api openai",
    )
    n: list[Level] = Field(
        [16], min_length=1, description="every N of the modes that sample several candidates"
    )
    baseline: str = Field("ref", description="mode that win rates are measured against")

    concurrency: list[Level] = Field(
        default=[],
        description="closed loop: requests in flight, each value a load level of every mode; default "
        "where no rate is given: 1, and two levels that a short calibration chooses so that every mode is "
        "saturated",
    )
    rate: list[Rate] = Field(
        default=[], description="open loop: requests per second, each value a load level"
    )
    arrival: Literal["random", "constant"] = Field(
        "random",
        description="open loop: gaps between requests, random (Poisson, or gamma with --burstiness) "
        "or constant",
    )
    burstiness: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="open loop: shape of the gamma distribution of the gaps: 1 is Poisson, less is "
        "burstier, more is steadier",
    )
    max_in_flight: int = Field(
        1024,
        ge=1,
        description="requests in flight, at most, of a level that a calibration chooses; open loop: "
        "connections at once, where a request that waits for one is late, and its latency counts the wait",
    )
    rounds: int = Field(
        5, ge=1, le=1000, description="blocks of each mode and level, in turns with the others"
    )
    extend: bool = Field(
        True,
        description="add rounds once if the ranges over rounds are slightly too wide to decide; all blocks "
        "then take at most twice --max-s",
    )
    order: Literal["alternating", "random"] = Field(
        "alternating",
        description="order of modes and levels in a round: there and back, or shuffled",
    )
    duration_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="seconds of a block, without its lead-in; default: over twice the time of an answer by "
        "the calibration, or 5 for levels that are given",
    )
    requests: int | None = Field(
        None, ge=1, description="end a block after this many requests instead of after a time"
    )
    ramp_s: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="seconds in which the load of a block rises; not measured",
    )
    warmup_s: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="seconds that the load then stays at its level before measuring starts; default: the "
        "time of an answer by the calibration, or 1",
    )
    max_s: float = Field(
        AIM_S,
        gt=0,
        allow_inf_nan=False,
        description="seconds that the blocks of a calibrated load test should take in all; they take longer "
        "only if whole answers and the rounds need it",
    )
    limit_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="for programs that start this command: refuse a calibrated load test whose blocks need "
        "longer",
    )
    timeout_s: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="seconds that one request may take"
    )

    prompts: Path | None = Field(
        None,
        description=f"file of prompts: {PROMPT_FILE}; default: those of the evaluation that the "
        "server shows, or a few that are built in",
    )
    prompt_column: PromptColumn = None
    encoding: FileEncoding = None
    prompt_words: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,4}(:[1-9]\d{0,4})?$",
        description="make prompts of this many words instead: 20, or 20:200 for a uniform range",
    )
    prompt_count: int = Field(
        64, ge=1, description="prompts to use, the first of the file, or to make"
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="new tokens of a candidate, at most; default: that of the server, which takes it from "
        "the checkpoints' cards, or 40 with --api openai",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=MOST_TEMPERATURE,
        description="sampling temperature; default: that of the server, or 1 with --api openai",
    )
    ignore_eos: bool = Field(
        False, description="decode up to max_tokens whatever the policy says, for fixed lengths"
    )
    stream: bool | None = Field(
        None,
        description="stream the modes of one sample, which measures TTFT, TPOT and ITL, and costs the server "
        "an event per token; default: only if no measured mode reranks, since reranked answers come in one "
        "piece and the events would make the other side dearer",
    )
    seed: int = Field(
        0, ge=0, description="seed of arrivals, orders, made prompts and the scored answers"
    )

    slo: list[str] = Field(
        default=[],
        description="objective KIND:MS, such as e2e:500 or ttft:100; goodput counts the answers that "
        "meet all of them",
    )
    saturate: bool = Field(
        False,
        description="find the highest rate of each mode at which 95% of the requests meet the e2e "
        "objective",
    )
    saturate_tolerance: float = Field(
        0.1,
        gt=0.01,
        lt=1,
        description="stop the search when the bracket is this narrow, relative to its lower end",
    )
    saturate_duration_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="seconds of one probe of that search"
    )

    quality_prompts: int = Field(
        64,
        ge=0,
        description="prompts that are answered again and scored, outside the timed blocks; 0: no reward "
        "and no win rate",
    )
    quality_samples: int = Field(4, ge=1, description="answers scored per prompt and mode")
    quality_concurrency: int = Field(16, ge=1, description="requests in flight while scoring")

    price_per_hour: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="price of the machine that serves, per hour"
    )
    training_price_per_hour: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="price of one training process per hour; default: price_per_hour",
    )
    training_hours: Annotated[float | None, NoneWord] = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="device hours that the training cost in all; default: the record of the "
        "checkpoint, training and cached samples",
    )
    currency: str = Field("USD", max_length=8, description="currency of the prices")

    out: Path = Field(
        default_factory=_fresh_directory,
        description="directory of the results; a run that it holds is continued; default: "
        "runs/loadtest-DATE-TIME",
    )
    store: Annotated[str | None, NoneWord] = Field(
        "vbon-runs.db",
        description="place of the runs: a SQLite file, a database URL (postgresql+psycopg://...) or "
        "`none`",
    )
    tag: list[str] = Field(default=[], description="tags of the run in the store")
    run_id: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{12}$",
        description="id of a new run, for programs that must know it beforehand; default: a random "
        "one",
    )
    supervised: bool = Field(
        False,
        description="for programs that start this command: keep progress.json and result.json up to "
        "date while measuring, and stop when standard input ends",
    )

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url.rstrip("/").removesuffix("/v1")

    @field_validator("slo")
    @classmethod
    def _known_slo(cls, slo: list[str]) -> list[str]:
        for text in slo:
            kind, _, limit = text.partition(":")
            try:
                valid = kind in SLO_KINDS and float(limit) > 0
            except ValueError:
                valid = False
            if not valid:
                raise ValueError(
                    f"{text!r} is not KIND:MS; KIND must be one of {', '.join(SLO_KINDS)}"
                )
        return slo

    @model_validator(mode="after")
    def _consistent(self) -> LoadTestSettings:
        if self.saturate and "e2e" not in self.slos:
            raise ValueError("saturate needs an SLO to meet, such as --slo e2e:500")
        if self.prompts is not None and self.prompt_words is not None:
            raise ValueError("give prompts or prompt_words, not both")
        return self

    @property
    def sampling(self) -> tuple[int, float]:
        """``max_tokens`` and ``temperature``, with built-in values if neither this nor the server has any."""
        return (
            40 if self.max_tokens is None else self.max_tokens,
            1.0 if self.temperature is None else self.temperature,
        )

    @property
    def slos(self) -> dict[str, float]:
        """The SLOs in milliseconds by kind."""
        return {kind: float(limit) for kind, _, limit in (text.partition(":") for text in self.slo)}

    @property
    def chooses_levels(self) -> bool:
        """True if a calibration chooses the load levels."""
        return not (self.concurrency or self.rate or self.saturate)
