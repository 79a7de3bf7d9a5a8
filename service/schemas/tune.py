"""``/tune/runs``: runs of ``vbon tune`` that reported to this server."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from service.schemas.wire import Wire
from vbon.measured.tuning_run import Status, TuningReport


class TuneRunOut(BaseModel):
    """A run without its report."""

    id: str
    started: datetime
    updated: datetime = Field(description="when it reported last")
    age_s: float = Field(description="seconds since then")
    stale: bool = Field(
        description="true if it has not ended and has been silent for longer than it said: it may have died"
    )
    status: Status
    question: str
    trials: int = Field(description="trials that have ended, failed ones included")


class TuneRunsOut(BaseModel):
    """The runs that are kept, the one that started last first."""

    runs: list[TuneRunOut]


class TuneRunWhole(TuneRunOut):
    """A run with its latest report."""

    report: TuningReport | None = Field(
        description="null if another version of this program kept it"
    )
    has_table: bool = Field(description="whether its measured settings can be applied")
    applied: Literal["recommended", "measured"] | None = Field(
        description="the part of it that mode auto chooses from now; null if that has another table or none"
    )
    rolls_out: bool = Field(
        description="true if this server rolls out checkpoints: mode auto then answers by a table of "
        "measured settings only the requests that have a budget"
    )


class ApplyRequest(Wire):
    """The settings that mode ``auto`` shall choose from."""

    settings: Literal["recommended", "measured"] = Field(
        "recommended", description="the recommended setting alone, or all that the run measured"
    )
