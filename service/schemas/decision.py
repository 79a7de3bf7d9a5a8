"""``GET /decision``: a tuned checkpoint against live best-of-N, with all that a verdict is computed from."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from vbon.maths.intervals import MeanInterval

Judge = Literal["reward", "gold"]


class MeasuredRound(BaseModel):
    """The throughput of one round of a load level."""

    round: int
    answers_per_s: float = Field(description="within the SLOs of the load test, if it had any")


class LoadLevel(BaseModel):
    """One load level at which a variant was measured."""

    load: str = Field(description="in words, such as `64 in flight`")
    p95_ms: float | None = Field(description="p95 of E2E; null if no answer was timed")
    above: float = Field(
        description="by how much the true rate may exceed one that a search confirmed, as a factor; else 1"
    )
    rounds: list[MeasuredRound]


class DecisionSide(BaseModel):
    """One variant, a mode with its N, as the load test measured it."""

    variant: str
    mode: str
    n: int
    tokens_per_answer: float | None = Field(
        description="generated tokens, those of discarded candidates included"
    )
    rewards: dict[Judge, MeanInterval] = Field(
        description="mean reward by the serving and by the gold reward model; absent: not measured"
    )
    win_rates: dict[Judge, MeanInterval] = Field(description="against one sample of the baseline")
    truncated_share: float | None
    levels: list[LoadLevel] = Field(description="empty: it answered nothing")


class PeopleVerdict(BaseModel):
    """The verdicts of people on blind pairs of the two variants."""

    wins: int = Field(description="verdicts for the tuned checkpoint")
    losses: int
    ties: int
    win_rate: MeanInterval = Field(
        description="share of verdicts for the tuned checkpoint, a tie counting 1/2, Wilson interval"
    )


class DecisionPair(BaseModel):
    """A tuned checkpoint against one variant that samples several candidates."""

    tuned: str = Field(description="a variant of `sides`")
    sampled: str = Field(description="a variant of `sides`")
    state: Literal["not measured", "preliminary", "decided"]
    reasons: list[str] = Field(description="what the load test lacks for a decision")
    training_hours: float | None = Field(description="device hours; null if unknown")
    training_source: str
    given_up: dict[Judge, MeanInterval] = Field(
        description="reward of sampled minus tuned, paired by prompt; absent: not measured"
    )
    judged_by: Judge = Field(description="the judge of `equal_n` and of `state`")
    equal_n: float | None = Field(
        description="N at which best-of-N reaches the reward of the tuned checkpoint"
    )
    equal_n_low: float | None
    equal_n_high: float | None
    equal_n_beyond: bool = Field(description="true: outside the values of N that were measured")
    people: PeopleVerdict | None = Field(description="null: nobody has judged such a pair")


class Decision(BaseModel):
    """The newest load test of the models served that compares a tuned checkpoint with best-of-N."""

    run: str | None = Field(description="id of the load test; null if there is none")
    measured: datetime | None
    currency: str
    price_per_hour: float
    machine: str | None = Field(description="the machine that ran the load test")
    prompts: int
    pairs: list[DecisionPair] = Field(description="largest N first")
    sides: list[DecisionSide]
    warnings: list[str] = Field(description="what may mislead in the load test")
    missing: list[str] = Field(description="why there is no comparison; empty if there is one")
