"""``/auto/table``: the table of measured settings in use."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from vbon.measured.table import MeasuredPrompts, MeasuredSetting


class AutoRow(BaseModel):
    """A measured setting, and what mode `auto` makes of it."""

    setting: MeasuredSetting
    usable: bool
    reason: str | None = Field(description="why it is not usable; null if it is")
    value: float | None = Field(
        description="its gain less the prices of its tokens and latency; null if a figure is missing"
    )
    price: float | None = Field(description="these prices, in units of the gain")
    money: float | None = Field(
        description="money an answer; null if the server has no prices of money"
    )


class AutoTable(BaseModel):
    """The table in use, with the rows that can be used now."""

    source: Literal["file", "store", "request"]
    stored: bool = Field(description="whether it is kept in the store, for the next start")
    made_at: datetime
    made_by: str
    prompts: MeasuredPrompts
    hardware: str
    policies: dict[str, str] = Field(description="revisions of the policies that were measured")
    reward_revision: str | None
    gold_revision: str | None
    concurrency: int | None = Field(
        description="requests in flight while latency was measured; null if it was not"
    )
    gain: Literal["reward", "gold"] = Field(description="the reward that is weighed")
    usable: int = Field(description="number of usable rows")
    reasons: list[str] = Field(description="why rows are not usable, each reason once")
    rows: list[AutoRow]
