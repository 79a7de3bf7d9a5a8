"""The axes of a search space: one value, several values, or a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import optuna

Scalar = bool | int | float | str


class Range(BaseModel):
    """All numbers from ``low`` to ``high``.

    Attributes:
        log: whether to search on a logarithmic scale.
        integer: whether only whole numbers count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    high: float
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(
                f"low {self.low:g} must be below high {self.high:g}; write one number for a fixed value"
            )
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(
                f"a range of whole numbers must have whole ends, and it is {self.low:g} to {self.high:g}"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, and low is {self.low:g}")
        return self

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class Values(BaseModel):
    """Some values, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    values: tuple[Scalar, ...] = Field(min_length=1)

    def __str__(self) -> str:
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in self.values)


def _parsed(data: Any) -> Any:
    """A number or a text is one value, a list several, and a table with low and high a range."""
    if isinstance(data, Range | Values):
        return data
    if isinstance(data, dict) and "values" not in data:
        return Range.model_validate(data)
    if isinstance(data, dict) and len(data) > 1:
        raise ValueError("is a list of values or a range with low and high, not both")
    values = data["values"] if isinstance(data, dict) else data
    listed = values if isinstance(values, list | tuple) else [values]
    if any(isinstance(one, list | tuple | dict) for one in listed):
        raise ValueError("takes a list of numbers or texts, not other lists or tables in it")
    return Values(values=tuple(dict.fromkeys(listed)))


Axis = Annotated[Range | Values, BeforeValidator(_parsed)]


def is_fixed(axis: Range | Values) -> bool:
    """True if the axis has one value only."""
    return isinstance(axis, Values) and len(axis.values) == 1


def count_of(axis: Range | Values) -> float:
    """The number of values; infinite for a range of real numbers."""
    if isinstance(axis, Values):
        return len(axis.values)
    return int(axis.high) - int(axis.low) + 1 if axis.integer else float("inf")


def suggest(trial: optuna.Trial, name: str, axis: Range | Values) -> Any:
    """The value that an Optuna trial proposes; the study has no parameter for a value that is fixed."""
    if isinstance(axis, Range):
        if axis.integer:
            return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
        return float(f"{trial.suggest_float(name, axis.low, axis.high, log=axis.log):.6g}")
    if is_fixed(axis):
        return axis.values[0]
    return trial.suggest_categorical(name, list(axis.values))
