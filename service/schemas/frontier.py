"""``GET /frontier``: how far each policy has moved from the reference, and what that bought."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.schemas.wire import ModelRef
from vbon.maths.intervals import MeanInterval
from vbon.storage.training_record import TrainingRecord


@dataclass(frozen=True, slots=True)
class Distance(MeanInterval):
    """KL from the reference policy, nats."""

    kind: Annotated[
        str | None, Field(description="estimator, or `upper bound`; null: the record does not say")
    ]


class PolicyPoint(BaseModel):
    """A served policy, by the record that its training left; null is what nobody measured."""

    name: str
    policy: ModelRef
    kl_nats: Distance | None
    win_rate: MeanInterval | None
    reward: MeanInterval | None
    gold: MeanInterval | None
    gold_win_rate: MeanInterval | None
    training: TrainingRecord | None = Field(
        description="its card: objective, settings, steps, cost"
    )
    source: Literal["evaluation", "training record", "definition"] | None = Field(
        description="where the figures are from; null: there are none"
    )
    notes: list[str] = Field(description="what is not known of it, or not the same as here")


class BestOfNPoint(BaseModel):
    """Best-of-n of the reference, as `training evaluate` measured it."""

    n: int
    kl_nats: Distance
    win_rate: MeanInterval
    reward: MeanInterval
    gold: MeanInterval | None
    gold_win_rate: MeanInterval | None


class LivePoint(BaseModel):
    """A mode as a load test of this server measured it."""

    mode: str
    n: int
    kl_nats: Distance | None = Field(description="null: nobody knows it for this mode")
    win_rate: MeanInterval | None
    reward: MeanInterval | None
    run: str = Field(description="id of the load test")
    measured: datetime


class Bound(BaseModel):
    """Best-of-n in theory: no KL is above the bound, no win rate above the ceiling."""

    n: int
    kl_nats: float = Field(description="upper bound log n - (n-1)/n")
    win_rate: float = Field(description="n/(n+1), the most without ties")


class Frontier(BaseModel):
    """Everything known of (KL, win rate, reward) here."""

    policies: list[PolicyPoint]
    best_of_n: list[BestOfNPoint] = Field(description="empty without an evaluation of these models")
    live: list[LivePoint] = Field(description="newest load test of each mode and N on these models")
    bounds: list[Bound]
    reward_model: ModelRef | None
    gold_model: ModelRef | None
    evaluation: str | None = Field(description="file of the evaluation shown; null: none")
    notes: list[str] = Field(description="what is missing, with the command that makes it")
