"""Progress of a loop of ``vbon distil run``: the phase of its round, as it tells the service."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# The phase of a loop that has ended as it was told to, so that nobody waits for its next report.
STOPPED = "stopped"


class LoopProgress(BaseModel):
    """One report of a loop; the next one takes its place."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    round: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="id of the round, such as 0003"
    )
    phase: str = Field(
        pattern=r"^[a-z][a-z_-]{0,31}$",
        description="step of the round: collect, seal, cache, train, compare, decide, submit or done; "
        "stopped: the loop has ended",
    )
    done: float | None = Field(
        None, ge=0, description="how much of the phase is done, such as steps"
    )
    of: float | None = Field(None, gt=0, description="how much there is to do in the phase")
    left_s: float | None = Field(None, ge=0, description="seconds until the phase ends, estimated")
    next_within_s: float = Field(
        120.0,
        gt=0,
        le=86_400,
        description="seconds within which the loop reports again; after that, this report is stale",
    )

    @model_validator(mode="after")
    def _has_a_whole(self) -> Self:
        if self.done is not None and self.of is not None and self.done > self.of:
            raise ValueError(f"done is {self.done:g}, more than of, which is {self.of:g}")
        return self
