"""The result of comparing two runs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

LEVEL = 0.05
DIFFERS = ("better", "worse")
Verdict = Literal["better", "worse", "no difference seen", "too few rounds", "too few prompts"]


class Difference(BaseModel):
    """One figure measured in both runs."""

    model_config = ConfigDict(extra="forbid")

    what: str
    measure: str
    a: float = Field(
        description="run A: the figure of its own report for speeds; for rewards, the mean over the "
        "prompts that both runs have"
    )
    b: float
    change: float = Field(
        description="speeds: geometric mean over the rounds that both runs have, B divided by A; "
        "rewards: B - A"
    )
    low: float | None = Field(
        description="lower end of the 95% interval of the change, for this figure alone: Welch's t on "
        "logs for speeds, bootstrap over prompts for rewards; null if there is only one round, or so few "
        "that the ends differ by more than a factor of 100"
    )
    high: float | None
    relative: bool
    p: float | None = Field(
        description="two-sided p-value, for this figure alone; null: too few rounds or prompts"
    )
    p_adjusted: float | None = Field(
        description="p-value adjusted for all speeds, or all rewards, together"
    )
    level: float | None = Field(description="the figure differs if p_adjusted is at most this")
    verdict: Verdict


class Comparison(BaseModel):
    """All figures that both runs have, and the conclusion from them."""

    model_config = ConfigDict(extra="forbid")

    a: str
    b: str
    statement: str
    settings_changed: dict[str, tuple[object, object]]
    models_changed: dict[str, tuple[str | None, str | None]] = Field(
        {}, description="revisions of models that both runs have, or that one lacks, by name"
    )
    only_in_one: list[str]
    differences: list[Difference]

    @property
    def worse(self) -> bool:
        """True if B is worse in any figure by more than chance explains."""
        return any(one.verdict == "worse" for one in self.differences)

    @property
    def differs(self) -> bool:
        """True if any figure differs by more than chance explains."""
        return any(one.verdict in DIFFERS for one in self.differences)
