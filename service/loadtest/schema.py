"""The versioned ``result.json`` of a load test.

``vbon loadtest schema`` prints its JSON schema. Within a major version, fields are only added.
Times are in milliseconds, rates per second, rewards as the reward model returns them, KL in nats.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vbon.maths.intervals import MeanInterval, MedianRange
from vbon.storage.training_record import TrainingRecord

SCHEMA_VERSION = "1.3"


class ResultPart(BaseModel):
    """Base class that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Quantiles(ResultPart):
    """Mean and percentiles over the requests of all rounds together."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    count: int


class ServedModel(ResultPart):
    """Name, path and revision of a model's weights."""

    name: str
    path: str
    revision: str


class ServedMode(ResultPart):
    """A mode as the server describes it."""

    name: str
    reranks: bool
    policy: ServedModel | None = None
    reward_model: ServedModel | None = None
    settings: dict[str, Any] = {}
    training: TrainingRecord | None = None
    adapter: bool = Field(False, description="served as an unmerged LoRA adapter")


class ServerDescription(ResultPart):
    """The server under test: its address, API, modes and models."""

    url: str
    api: Literal["native", "openai"]
    modes: list[ServedMode]
    policies: list[ServedModel] = []
    default_sampling: dict[str, float] = Field(
        {},
        description="max_tokens and temperature of requests that set none, if the server tells them",
    )
    gold_model: ServedModel | None = None
    running_sequences: int | None = Field(
        None, description="candidates in the engines at once, at most; further ones wait"
    )
    waiting_sequences: int | None = Field(
        None, description="candidates that may wait; beyond, requests are refused"
    )
    hardware: str | None = Field(None, description="its GPUs or CPU; null if it does not tell")
    collects: bool = Field(
        False,
        description="whether the server keeps answers for training; the load test forbids it",
    )


class RoundResult(ResultPart):
    """Figures of one block, used to compare runs; latencies are ``None`` if no request was answered."""

    round: int
    requests: int
    requests_per_s: float
    returned_tokens_per_s: float
    p50_e2e_ms: float | None
    p95_e2e_ms: float | None
    goodput_per_s: float | None = Field(None, description="null if no SLO is set")
    goodput_share: float | None = Field(
        None, description="share of the requests sent that met every SLO; null if no SLO is set"
    )


class CellResult(ResultPart):
    """One variant at one load level."""

    variant: str
    mode: str
    n: int
    load_kind: Literal["closed", "open"]
    load: float = Field(description="requests in flight (closed) or requests a second (open)")
    requests: int = Field(description="answered requests, without the lead-in")
    errors: dict[str, int] = Field(
        description="failed requests by kind; no other figure includes them"
    )
    streamed: bool
    requests_per_s: MedianRange
    generated_tokens_per_s: MedianRange = Field(description="including discarded candidates")
    returned_tokens_per_s: MedianRange
    goodput_per_s: MedianRange | None = Field(
        description="answers within every SLO; null if no SLO is set"
    )
    goodput_share: float | None = Field(
        description="share of all requests sent, failed ones included"
    )
    e2e_ms: Quantiles | None
    ttft_ms: Quantiles | None = Field(description="equals E2E if the answer is not streamed")
    tpot_ms: Quantiles | None
    itl_ms: Quantiles | None = Field(description="gaps between events that carry text")
    queue_ms: Quantiles | None
    rerank_ms: Quantiles | None = Field(
        description="scoring time that did not overlap with decoding"
    )
    scoring_ms: Quantiles | None
    truncated_share: float | None = Field(
        None,
        description="share of the answers that the token limit cut off; null if the server does not tell",
    )
    send_lag_ms: Quantiles | None = Field(description="open loop: delay between due and sent")
    client_cpu: float = Field(
        description="largest share of one core that the client used in a block"
    )
    block_s: float | None = Field(
        None, description="length of its shortest block; null in results of earlier versions"
    )
    rounds: list[RoundResult]
    generated_tokens: MeanInterval | None = Field(
        None, description="tokens of an answer, discarded candidates included, over prompts"
    )
    latency_mean_s: MeanInterval | None = Field(None, description="E2E in seconds, over prompts")
    latency_p95_s: MeanInterval | None = Field(
        None,
        description="95th percentile of E2E in seconds, in `mean`, with its interval, which is too "
        "narrow below about 90 answers",
    )


class Quality(ResultPart):
    """Rewards and win rate of one variant, measured outside the timed blocks."""

    variant: str
    mode: str
    n: int
    reward: MeanInterval | None
    win_rate: MeanInterval | None = Field(
        description="against the baseline on the same prompts; ties count 1/2"
    )
    gold: MeanInterval | None = Field(
        None, description="mean gold reward; null without a gold reward model"
    )
    gold_win_rate: MeanInterval | None = Field(
        None, description="by the gold reward, against the baseline on the same prompts"
    )
    prompt_golds: dict[str, float] = Field({}, description="mean gold reward by prompt")
    answers: int = Field(description="number of scored answers")
    unscored: int = Field(description="answers or candidates without a score; they are left out")
    errors: dict[str, int]
    truncated_share: float | None = Field(
        None,
        description="share of the answers that the token limit cut off; null if the server does not tell",
    )
    rewards: list[float] = Field(
        description="rewards of single answers, to show their distribution"
    )
    prompt_rewards: dict[str, float] = Field(
        description="mean reward by prompt; prompts without a score are absent"
    )


class RewardAtN(ResultPart):
    """Mean reward of best-of-n, by the unbiased estimator over the sampled candidates."""

    n: int
    reward: MeanInterval


class Probe(ResultPart):
    """One trial rate in the search for the saturation point."""

    rate: float
    requests: int
    late_share: float = Field(description="share of requests over the SLO or failed")
    p95_ms: float | None
    passed: bool


class Saturation(ResultPart):
    """The highest rate at which 95% of requests were answered within the SLO."""

    variant: str
    slo_ms: float
    rate: float | None = Field(
        description="passed twice if confirmed; null if even the lowest rate failed"
    )
    above: float | None = Field(description="lowest rate that failed")
    p95_ms: float | None
    probes: list[Probe]
    confirmed: bool = Field(
        True,
        description="false: the search did not finish; the rate passed once, and a higher one may pass",
    )


class VariantCost(ResultPart):
    """Price of 1,000 answers of a variant at its highest measured throughput."""

    variant: str
    source: str = Field(description="load level at which the throughput was measured")
    requests_per_s: MedianRange
    per_1000: float
    low: float
    high: float = Field(description="price in the slowest round with an answer")
    rising: bool = Field(
        False,
        description="not fully loaded: throughput still rose at the highest level measured, or only one "
        "level was measured, so the price is an upper bound",
    )


class BreakEven(ResultPart):
    """One tuned checkpoint compared with one variant that samples several candidates."""

    tuned: str
    sampled: str
    training_hours: float | None = Field(description="device hours; null if unknown")
    training_cost: float | None
    training_source: str
    cost_ratio: MedianRange = Field(
        description="cost of the sampled variant divided by that of the tuned one, by round"
    )
    requests: float | None = Field(
        description="answers after which the training has paid for itself; null: never or unknown"
    )
    requests_low: float | None
    requests_high: float | None
    reward_given_up: MeanInterval | None = Field(
        description="reward of sampled minus tuned, paired by prompt"
    )
    win_rate_tuned: MeanInterval | None
    win_rate_sampled: MeanInterval | None
    equal_n: float | None = Field(
        description="N at which best-of-N reaches the reward of the tuned policy"
    )
    equal_n_low: float | None
    equal_n_high: float | None
    equal_n_beyond: bool = Field(
        description="true: outside the measured values of N, so equal_n is only a bound"
    )
    equal_n_low_open: bool = Field(
        False,
        description="true: the interval reaches below one sample, so equal_n_low is only a bound",
    )
    equal_n_high_open: bool = Field(
        False,
        description="true: the interval reaches above this N, so equal_n_high is only a bound",
    )
    judged_by: Literal["reward", "gold"] = Field(
        "reward",
        description="the rewards of this comparison: gold wherever the server has a gold reward model, as "
        "best-of-N selects by the serving one",
    )
    state: Literal["not measured", "preliminary", "decided"] = Field(
        "preliminary", description="whether the run supports a number; reports show none otherwise"
    )
    reasons: list[str] = Field([], description="what the run lacks for a decision")
    tuned_per_1000: MedianRange | None = Field(
        None,
        description="price of 1,000 answers in the rounds that cost_ratio is from; null: in half of them "
        "there was no answer",
    )
    sampled_per_1000: MedianRange | None = None
    equal_cost_ratio: MedianRange | None = Field(
        None,
        description="cost of best-of-equal_n divided by that of the tuned variant; the range joins the "
        "rounds and the interval of equal_n; null if equal_n is unknown, beyond, or above this N",
    )
    equal_cost_source: str | None = Field(
        None, description="how the cost of best-of-equal_n was interpolated"
    )
    equal_requests: float | None = Field(
        None,
        description="answers after which the training has paid at equal reward; null: never or unknown",
    )
    equal_requests_low: float | None = None
    equal_requests_high: float | None = Field(
        None, description="null: at an end of the range the fine-tune never pays"
    )


class CalibrationProbe(ResultPart):
    """One short closed loop, by which load levels and the lengths of blocks were chosen."""

    variant: str
    in_flight: int = Field(description="requests in flight")
    sequences: int = Field(description="candidates that these decode at once")
    requests_per_s: float
    e2e_s: float | None = Field(description="median time of an answer; null if none was whole")


class CalibratedCell(ResultPart):
    """One variant at one of the chosen levels, and the length of its blocks."""

    variant: str
    in_flight: int
    warmup_s: float
    duration_s: float
    expected_s: float = Field(
        description="seconds of a whole block, with the wait for the last answers"
    )


class Calibration(ResultPart):
    """The load levels that a calibration chose, and the probes that they follow from."""

    probes: list[CalibrationProbe]
    cells: list[CalibratedCell] = Field(description="in the order of the first round")
    flat: bool = Field(
        description="true: more load added little throughput to any variant, or cannot reach the engines"
    )


class Extension(ResultPart):
    """The rounds that were added because ranges were slightly too wide to decide."""

    rounds: int = Field(description="of the run, with those that were added")
    added: int
    because: str
    coverage: float = Field(
        description="lowest probability that a range over rounds encloses the true median, whatever decides "
        "on the extension"
    )


class ShownAnswer(ResultPart):
    """An answer shown as an example."""

    text: str
    reward: float | None


class Example(ResultPart):
    """One prompt with the first answer of each variant."""

    prompt: str
    answers: dict[str, ShownAnswer]


class LoadTestResult(ResultPart):
    """The result of a whole run."""

    schema_version: str = SCHEMA_VERSION
    id: str
    created: str
    complete: bool = Field(
        description="false: the run was interrupted, and this is what it measured"
    )
    blocks_done: int
    blocks_planned: int
    settings: dict[str, Any]
    provenance: dict[str, Any]
    server: ServerDescription
    prompts: int
    prompts_digest: str | None = Field(
        None, description="hash of the texts; equal for equal prompts"
    )
    cells: list[CellResult]
    calibration: Calibration | None = Field(
        None, description="null: the load levels were given, or the calibration was not finished"
    )
    extension: Extension | None = Field(None, description="null: no rounds were added")
    quality: list[Quality]
    curve: list[RewardAtN]
    gold_curve: list[RewardAtN] = Field(
        [], description="mean gold reward of best-of-n, chosen by the serving reward model"
    )
    saturation: list[Saturation]
    costs: list[VariantCost]
    break_even: list[BreakEven]
    decision: list[str] = Field(description="conclusions in words, the most important first")
    warnings: list[str]
    examples: list[Example]
