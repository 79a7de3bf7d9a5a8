"""What a load test writes: ``result.json``, versioned.

``python -m service.loadtest schema`` prints its JSON schema. Within a major version fields are only added.
Times are in ms, rates in 1/s, rewards raw, KL in nats.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vbon.maths.intervals import MeanInterval, MedianRange
from vbon.storage.training_record import TrainingRecord

SCHEMA_VERSION = "1.0"


class ResultPart(BaseModel):
    """Base of everything here."""

    model_config = ConfigDict(extra="forbid")


class Quantiles(ResultPart):
    """Over requests of all rounds together."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    count: int


class ServedModel(ResultPart):
    """Which weights."""

    name: str
    path: str
    revision: str


class ServedMode(ResultPart):
    """A mode as the server told of it."""

    name: str
    reranks: bool
    policy: ServedModel | None = None
    reward_model: ServedModel | None = None
    settings: dict[str, Any] = {}
    training: TrainingRecord | None = None


class ServerDescription(ResultPart):
    """What was measured."""

    url: str
    api: Literal["native", "openai"]
    modes: list[ServedMode]
    policies: list[ServedModel] = []
    gold_model: ServedModel | None = None


class RoundResult(ResultPart):
    """One block's figures, for comparing runs; ``None`` where no request was answered."""

    round: int
    requests: int
    requests_per_s: float
    returned_tokens_per_s: float
    p50_e2e_ms: float | None
    p95_e2e_ms: float | None
    goodput_per_s: float | None = Field(None, description="null without SLOs")


class CellResult(ResultPart):
    """One variant at one load level."""

    variant: str
    mode: str
    n: int
    load_kind: Literal["closed", "open"]
    load: float = Field(description="requests in flight (closed) or requests a second (open)")
    requests: int = Field(description="answered, lead-in not counted")
    errors: dict[str, int] = Field(description="failed requests by kind; in nothing else")
    streamed: bool
    requests_per_s: MedianRange
    generated_tokens_per_s: MedianRange = Field(description="discarded candidates' included")
    returned_tokens_per_s: MedianRange
    goodput_per_s: MedianRange | None = Field(
        description="answers within every SLO; null without SLOs"
    )
    goodput_share: float | None = Field(description="of all requests sent, failed ones included")
    e2e_ms: Quantiles | None
    ttft_ms: Quantiles | None = Field(description="where not streamed, the whole answer's time")
    tpot_ms: Quantiles | None
    itl_ms: Quantiles | None = Field(description="gaps between events with text")
    queue_ms: Quantiles | None
    rerank_ms: Quantiles | None = Field(description="scoring that decoding did not hide")
    scoring_ms: Quantiles | None
    send_lag_ms: Quantiles | None = Field(description="open loop: how late requests were sent")
    client_cpu: float = Field(description="most of one core that the client used, 0 to 1")
    rounds: list[RoundResult]


class Quality(ResultPart):
    """What the answers of one variant are worth, measured off the clock."""

    variant: str
    mode: str
    n: int
    reward: MeanInterval | None
    win_rate: MeanInterval | None = Field(
        description="against the baseline on the same prompts, ties 1/2"
    )
    answers: int = Field(description="scored answers")
    unscored: int = Field(description="answers, or candidates, without a score; left out")
    errors: dict[str, int]
    rewards: list[float] = Field(description="of single answers, for their distribution")
    prompt_rewards: dict[str, float] = Field(description="mean by prompt; those without are absent")


class RewardAtN(ResultPart):
    """What best-of-n is worth, by the unbiased estimator over the candidates drawn."""

    n: int
    reward: MeanInterval


class Probe(ResultPart):
    """One trial of the search for the saturation point."""

    rate: float
    requests: int
    late_share: float = Field(description="over the SLO or failed")
    p95_ms: float | None
    passed: bool


class Saturation(ResultPart):
    """The highest rate at which 95% of requests were answered within the SLO."""

    variant: str
    slo_ms: float
    rate: float | None = Field(
        description="passed twice if confirmed; null if not even the lowest rate passed"
    )
    above: float | None = Field(description="lowest rate that failed")
    p95_ms: float | None
    probes: list[Probe]
    confirmed: bool = Field(
        True, description="false: the search was not finished; the rate passed once, more may pass"
    )


class VariantCost(ResultPart):
    """A variant's price at its highest measured throughput."""

    variant: str
    source: str = Field(description="where the throughput was measured")
    requests_per_s: MedianRange
    per_1000: float
    low: float
    high: float = Field(description="of the worst round that answered at all")
    rising: bool = Field(
        False,
        description="throughput still rose at the highest level tried: this is an upper bound",
    )


class BreakEven(ResultPart):
    """One tuned checkpoint against one variant that draws several candidates."""

    tuned: str
    sampled: str
    training_hours: float | None = Field(description="device hours; null if no card tells them")
    training_cost: float | None
    training_source: str
    cost_ratio: MedianRange = Field(
        description="the sampled variant's cost over the tuned one's, by round"
    )
    requests: float | None = Field(
        description="answers after which the training has paid; null: never"
    )
    requests_low: float | None
    requests_high: float | None
    reward_given_up: MeanInterval | None = Field(
        description="sampled minus tuned, paired by prompt"
    )
    win_rate_tuned: MeanInterval | None
    win_rate_sampled: MeanInterval | None
    equal_n: float | None = Field(description="N at which best-of-N has the tuned reward")
    equal_n_low: float | None
    equal_n_high: float | None
    equal_n_beyond: bool = Field(description="not within the N measured: equal_n is then a bound")


class ShownAnswer(ResultPart):
    """An answer to look at."""

    text: str
    reward: float | None


class Example(ResultPart):
    """One prompt and what each variant answered first."""

    prompt: str
    answers: dict[str, ShownAnswer]


class LoadTestResult(ResultPart):
    """A whole run."""

    schema_version: str = SCHEMA_VERSION
    id: str
    created: str
    complete: bool = Field(description="false: interrupted, and this is what was measured")
    blocks_done: int
    blocks_planned: int
    settings: dict[str, Any]
    provenance: dict[str, Any]
    server: ServerDescription
    prompts: int
    prompts_digest: str | None = Field(None, description="of their texts: equal for equal prompts")
    cells: list[CellResult]
    quality: list[Quality]
    curve: list[RewardAtN]
    saturation: list[Saturation]
    costs: list[VariantCost]
    break_even: list[BreakEven]
    decision: list[str] = Field(description="in words, the most important first")
    warnings: list[str]
    examples: list[Example]
