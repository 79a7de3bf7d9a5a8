"""Settings of a load test."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from vbon.config import NoneWord, Settings

SLO_KINDS = ("e2e", "ttft", "tpot")
DEFAULT_CONCURRENCY = (1, 8, 32)

Level = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _fresh_directory() -> Path:
    return Path("runs") / f"loadtest-{datetime.now():%Y%m%d-%H%M%S}"


class LoadTestSettings(Settings):
    """Load a running server with several modes in turns; report latency, throughput, reward and cost.

    Closed loop: so many requests in flight, each answered one followed by the next (--concurrency).
    Open loop: requests arrive whether or not others were answered (--rate); latency then counts from
    the moment a request was due. Both may be given; each value is a load level of every mode.

    Examples:
      python -m service.loadtest --prompts heldout.jsonl --price-per-hour 2.50
      python -m service.loadtest --modes ref,bon,vbon --n 4,16 --concurrency 1,32 --rounds 5
      python -m service.loadtest --rate 2,4,8 --burstiness 0.5 --slo e2e:500
      python -m service.loadtest --saturate --slo e2e:500
      python -m service.loadtest --api openai --url http://host:8001 --modes my-model
    """

    model_config = SettingsConfigDict(title="vbon load test")

    url: str = Field("http://127.0.0.1:8000", description="the server, without /v1")
    api: Literal["native", "openai"] = Field(
        "native",
        description="native: this project's service; openai: any server with /v1/completions, for latency "
        "and throughput only",
    )
    api_key_env: str = Field(
        "VBON_REMOTE_API_KEY", description="environment variable with the server's key, if any"
    )
    wait_s: float = Field(0, ge=0, description="wait so long for the server to be ready, seconds")
    modes: list[str] = Field(
        ["ref", "bon", "vbon"],
        min_length=1,
        description="what to compare: modes of /modes, MODE@POLICY, or model names with --api openai",
    )
    n: list[Level] = Field([16], min_length=1, description="every N of the modes that draw several")
    baseline: str = Field("ref", description="mode that win rates are against")

    concurrency: list[Level] = Field(
        default=[],
        description="closed loop: requests in flight, a level each; default 1,8,32 where there is no rate",
    )
    rate: list[Rate] = Field(default=[], description="open loop: requests a second, a level each")
    arrival: Literal["random", "constant"] = Field(
        "random", description="open loop: gaps drawn (Poisson, or gamma by --burstiness), or equal"
    )
    burstiness: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="shape of the gaps' gamma distribution: 1 is Poisson, less is burstier, more is steadier",
    )
    max_in_flight: int = Field(
        1024,
        ge=1,
        description="open loop: most connections; who waits for one is late, and that counts",
    )
    rounds: int = Field(
        5, ge=1, le=1000, description="blocks of each cell, in turns with the others"
    )
    order: Literal["alternating", "random"] = Field(
        "alternating", description="order of the cells in a round: there and back, or shuffled"
    )
    duration_s: float = Field(
        5.0,
        gt=0,
        allow_inf_nan=False,
        description="length of a block, seconds, its lead-in not counted",
    )
    requests: int | None = Field(
        None, ge=1, description="end a block after so many requests instead of after a time"
    )
    ramp_s: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="a block's load rises for so long; left out"
    )
    warmup_s: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="and goes on for so long at its level; left out"
    )
    timeout_s: float = Field(60.0, gt=0, allow_inf_nan=False, description="of one request, seconds")

    prompts: Path | None = Field(
        None, description="JSONL with `prompt`, or one a line; default: a few built in"
    )
    prompt_words: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,4}(:[1-9]\d{0,4})?$",
        description="make prompts of so many words instead, 20 or 20:200 (uniform)",
    )
    prompt_count: int = Field(64, ge=1, description="prompts used, the first of the file, or made")
    max_tokens: int = Field(48, ge=1, description="most new tokens of a candidate")
    temperature: float = Field(1.0, ge=0, le=10, description="1 samples the policy itself")
    ignore_eos: bool = Field(False, description="decode on to max_tokens, for fixed lengths")
    stream: bool = Field(
        True,
        description="stream modes of one sample, for TTFT, TPOT and ITL; --no-stream saves what events cost",
    )
    seed: int = Field(
        0, ge=0, description="of arrivals, orders, made prompts, and the scored answers"
    )

    slo: list[str] = Field(
        default=[],
        description="goodput counts answers within KIND:MS, such as e2e:500 and ttft:100",
    )
    saturate: bool = Field(
        False,
        description="find the highest rate at which 95% of requests meet the e2e SLO, per mode",
    )
    saturate_tolerance: float = Field(
        0.1,
        gt=0.01,
        lt=1,
        description="stop when the bracket is this narrow, relative to its lower end",
    )
    saturate_duration_s: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="length of one probe, seconds"
    )

    quality_prompts: int = Field(
        64,
        ge=0,
        description="prompts answered once more, scored, off the clock; 0: no reward, no win rate",
    )
    quality_samples: int = Field(4, ge=1, description="answers scored per prompt and mode")
    quality_concurrency: int = Field(16, ge=1, description="requests in flight while scoring")

    price_per_hour: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="of the machine that serves"
    )
    training_price_per_hour: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="of one training process; default: price_per_hour",
    )
    training_hours: Annotated[float | None, NoneWord] = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="device hours the training cost in all; default: the checkpoint's card, which leaves "
        "out the cached samples",
    )
    currency: str = Field("USD", max_length=8, description="name of the price's unit")

    out: Path = Field(
        default_factory=_fresh_directory,
        description="directory of the results; one that was begun is continued",
    )
    store: Annotated[str | None, NoneWord] = Field(
        "vbon-runs.db",
        description="where runs are kept: a SQLite file, a database URL (postgresql+psycopg://...), or none",
    )
    tag: list[str] = Field(default=[], description="tags of the run in the store")
    run_id: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{12}$",
        description="id of a new run, for who must know it before; default: a random one",
    )
    supervised: bool = Field(
        False,
        description="for a program that starts this one: keep progress.json and result.json up to date "
        "while measuring, and stop like Ctrl-C when standard input ends",
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
                raise ValueError(f"{text!r} is not KIND:MS with KIND of {', '.join(SLO_KINDS)}")
        return slo

    @model_validator(mode="after")
    def _consistent(self) -> LoadTestSettings:
        if self.saturate and "e2e" not in self.slos:
            raise ValueError("saturate needs an SLO to meet, such as --slo e2e:500")
        if self.prompts is not None and self.prompt_words is not None:
            raise ValueError("give prompts or prompt_words, not both")
        return self

    @property
    def slos(self) -> dict[str, float]:
        """Milliseconds by kind."""
        return {kind: float(limit) for kind, _, limit in (text.partition(":") for text in self.slo)}

    @property
    def levels(self) -> list[int]:
        """Closed-loop levels, the default ones where nothing else is asked for."""
        if self.concurrency or self.rate or self.saturate:
            return self.concurrency
        return list(DEFAULT_CONCURRENCY)
