"""``GET /frontier``: each policy's KL from the reference policy, with its win rate and reward."""

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
        str | None,
        Field(description="the estimator, or `upper bound`; null if the record does not say"),
    ]


class PolicyPoint(BaseModel):
    """A served policy's figures, from its records; null if not measured."""

    name: str
    policy: ModelRef
    kl_nats: Distance | None
    win_rate: MeanInterval | None
    reward: MeanInterval | None
    gold: MeanInterval | None
    gold_win_rate: MeanInterval | None
    training: TrainingRecord | None = Field(
        description="the training record: objective, settings, steps, cost"
    )
    source: Literal["evaluation", "training record", "definition"] | None = Field(
        description="where the figures come from; null if there are none"
    )
    notes: list[str] = Field(
        description="figures that are missing, and models that differ from those served here"
    )


class BonPoint(BaseModel):
    """Best-of-n over the reference policy, as ``training evaluate`` measured it."""

    n: int
    kl_nats: Distance
    win_rate: MeanInterval
    reward: MeanInterval
    gold: MeanInterval | None
    gold_win_rate: MeanInterval | None


class LivePoint(BaseModel):
    """One mode and N, as a load test of this server measured it."""

    mode: str
    n: int
    kl_nats: Distance | None = Field(description="null if it is unknown for this mode")
    win_rate: MeanInterval | None
    reward: MeanInterval | None
    run: str = Field(description="id of the load test")
    measured: datetime


class Bound(BaseModel):
    """Best-of-n in theory: the upper bounds of its KL and of its win rate over the reference policy."""

    n: int
    kl_nats: float = Field(description="upper bound of the KL, log n - (n-1)/n")
    win_rate: float = Field(description="n/(n+1), the win rate without ties")


class Frontier(BaseModel):
    """All known KLs, win rates and rewards of the models that this server serves."""

    policies: list[PolicyPoint]
    best_of_n: list[BonPoint] = Field(
        description="empty if no evaluation of these models is configured"
    )
    live: list[LivePoint] = Field(
        description="the newest load test of each mode and N with these models"
    )
    bounds: list[Bound]
    reward_model: ModelRef | None
    gold_model: ModelRef | None
    evaluation: str | None = Field(
        description="the evaluation file that is shown; null if there is none"
    )
    notes: list[str] = Field(description="what is missing, with the command that produces it")
