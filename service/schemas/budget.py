"""The budget of a request of mode ``auto``, in a field or a header."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from service.schemas.wire import Wire

KINDS = ("tokens", "money", "reward")


class Budget(Wire):
    """The most that an answer may cost on average, or the least reward that it must have on average."""

    tokens: int | None = Field(
        None, ge=1, lt=2**63, description="generated tokens, those of all candidates together"
    )
    money: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="in the currency of the server's prices"
    )
    reward: float | None = Field(
        None,
        allow_inf_nan=False,
        description="least reward; the cheapest setting is used whose interval is above it",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(KINDS)}; got {', '.join(given) or 'none'}"
            )
        return self


MayBudget = Annotated[
    Budget | None,
    Field(
        description="mode auto with a table of measured settings (docs/auto.md): what each answer may cost, "
        "or the reward that it must have"
    ),
]
# its_hub's header: the number of generations.
GENERATIONS = Field(
    ge=1,
    description="most candidates of each answer, as its_hub has it; in mode auto it counts as a budget",
)
