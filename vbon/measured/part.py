"""The base of measured tables and reports: frozen, finite, strict about names and about what a number is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Part(BaseModel):
    """Part of a file or of a request, without unknown keys, infinities, or booleans for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        taking = _taking_booleans(cls)
        return {
            name: value if name in taking else no_boolean(value) for name, value in data.items()
        }


class _Misplaced:
    """A boolean in the place of something else, which no field of another type takes."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __repr__(self) -> str:
        return str(self._value).lower()


def no_boolean(value: Any) -> Any:
    """The value, or in the place of a boolean an object that is refused where Python would take 0 or 1."""
    return _Misplaced(value) if isinstance(value, bool) else value


@cache
def _taking_booleans(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(
        name for name, field in model.model_fields.items() if _takes_boolean(field.annotation)
    )


def _takes_boolean(annotation: Any) -> bool:
    return annotation is bool or any(_takes_boolean(one) for one in get_args(annotation))
