"""The search space of training: objectives with their own settings, and settings that all of them share."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.objectives import OBJECTIVES
from training.train.config import train_config_type
from vbon.errors import DataError, InvalidInputError
from vbon.storage.atomic import read_errors
from vbon.storage.validation import first_problem
from vbon.tuning.axes import Axis, Range, Values, suggest

if TYPE_CHECKING:
    import optuna

WARM_START_SHARE = "warm_start_share"
# The strength of an objective, which every cell of a sweep has as its parameter.
_STRENGTHS = ("num_samples", "beta", "gamma", "alpha")
_RANGES: dict[str, Range] = {
    "num_samples": Range(low=2, high=64, log=True, integer=True),
    "beta": Range(low=0.05, high=4, log=True),
}
_DEFAULT_OBJECTIVES = ("vbon", "kl-rl", "bond")


class TrainingSpace(BaseModel):
    """The content of a space file; ``[objective.NAME]`` has the settings of one objective alone.

    Attributes:
        shared: settings of all objectives: learning_rate, steps, warm_start_share, lora_rank, cache, others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    objectives: list[str] = Field(min_length=1)
    shared: dict[str, Axis] = {}
    objective: dict[str, dict[str, Axis]] = {}

    def checked(self) -> TrainingSpace:
        """The space itself, if every objective has the settings that it names.

        Raises:
            InvalidInputError: an objective is unknown, or has no such setting, or no strength.
        """
        for name in [*self.objectives, *self.objective]:
            OBJECTIVES.entry(name)
        for name in self.objectives:
            fields = train_config_type(name).model_fields
            own = self.objective.get(name, {})
            for axes in (self.shared, own):
                if WARM_START_SHARE in axes:
                    _check_share(axes[WARM_START_SHARE])
            for setting in [*self.shared, *own]:
                if setting != WARM_START_SHARE and setting not in fields:
                    raise InvalidInputError(
                        f"objective {name!r} has no setting {setting!r}; remove it from the space",
                        field="space",
                    )
        return self

    def sampled(self, trial: optuna.Trial) -> tuple[str, dict[str, Any]]:
        """The objective and settings that a trial proposes."""
        name = str(suggest(trial, "objective", Values(values=tuple(self.objectives))))
        settings = {one: suggest(trial, one, axis) for one, axis in self.shared.items()}
        for one, axis in self.objective.get(name, {}).items():
            settings[one] = suggest(trial, f"{name}.{one}", axis)
        return name, settings

    def describe(self) -> str:
        """The space in a sentence."""
        shared = ", ".join(f"{name} {axis}" for name, axis in self.shared.items())
        own = "; ".join(
            f"{name}: " + ", ".join(f"{one} {axis}" for one, axis in axes.items())
            for name, axes in self.objective.items()
            if name in self.objectives
        )
        return f"Space: {', '.join(self.objectives)}; {shared}; {own}."


def _check_share(axis: Range | Values) -> None:
    """Refuse values that are not shares of the steps, from 0 to 1.

    Raises:
        InvalidInputError: a value, or an end of a range, is not a number from 0 to 1.
    """
    for value in axis.values if isinstance(axis, Values) else (axis.low, axis.high):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= float(value) <= 1:
            raise InvalidInputError(
                f"{WARM_START_SHARE} is {value!r}, and it must be a number from 0 to 1, a share of the steps",
                field="space",
            )


def default_space() -> TrainingSpace:
    """The objectives that differ most, each with its strength, and the settings that matter to all."""
    objectives = [name for name in _DEFAULT_OBJECTIVES if name in OBJECTIVES.built_in]
    own: dict[str, dict[str, Any]] = {}
    for name in objectives:
        fields = train_config_type(name).model_fields
        strength = strength_of(fields)
        if strength in _RANGES:
            own[name] = {strength: _RANGES[strength]}
    shared: dict[str, Any] = {
        "learning_rate": Range(low=1e-4, high=3e-3, log=True),
        WARM_START_SHARE: Range(low=0.0, high=0.6),
        "samples_per_prompt": [4, 8, 16],
    }
    return TrainingSpace(objectives=objectives, shared=shared, objective=own).checked()


def strength_of(fields: Mapping[str, Any]) -> str:
    """The setting that says how far an objective goes: N, beta or what it has in their place."""
    return next((name for name in _STRENGTHS if name in fields), "learning_rate")


def read_training_space(path: Path) -> TrainingSpace:
    """Read a space file.

    Raises:
        DataError: it cannot be read, is not TOML, or has a key or a value that is not allowed.
        InvalidInputError: an objective or a setting is unknown.
    """
    try:
        with read_errors(path):
            found = tomllib.loads(path.read_text(encoding="utf-8"))
        shared = {k: v for k, v in found.items() if k not in {"objectives", "objective"}}
        return TrainingSpace.model_validate(
            {
                "objectives": found.get("objectives", list(_DEFAULT_OBJECTIVES)),
                "shared": shared,
                "objective": found.get("objective", {}),
            }
        ).checked()
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error
