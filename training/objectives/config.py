"""The settings of one objective's command: the common ones, its own defaults, and its own fields."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError, create_model, model_validator

from training.configs import TrainConfig
from training.objectives import objective_type
from training.objectives.protocol import Objective


def train_config_type(name: str) -> type[TrainConfig]:
    """``TrainConfig`` with the fields and defaults of a registered objective.

    Raises:
        InvalidInputError: if there is no such objective.
    """
    objective = objective_type(name)
    fields: dict[str, Any] = {}
    for field_name, value in {"out": Path(f"sandbox/{name}"), **objective.defaults}.items():
        field = copy(TrainConfig.model_fields[field_name])
        field.default = value
        fields[field_name] = (field.annotation, field)
    for field_name, field in objective.model_fields.items():
        fields[field_name] = (field.annotation, field)

    def checked(config: TrainConfig) -> TrainConfig:
        """The objective's own rules hold for its fields here too."""
        try:
            objective_of(name, config)
        except ValidationError as error:
            said = (str(e.get("ctx", {}).get("error", e["msg"])) for e in error.errors())
            raise ValueError("; ".join(said)) from error
        return config

    made: type[TrainConfig] = create_model(
        f"{objective.__name__}Config",
        __base__=TrainConfig,
        __validators__={"objective_rules": cast("Any", model_validator(mode="after")(checked))},
        **fields,
    )
    made.__doc__ = objective.__doc__
    made.option_groups = {"Objective": tuple(objective.model_fields), **TrainConfig.option_groups}
    return made


def objective_of(name: str, config: TrainConfig) -> Objective:
    """The objective with its settings.

    Raises:
        pydantic.ValidationError: a ValueError that names the setting; N = 1, for one.
    """
    kind = objective_type(name)
    return kind(**{field: getattr(config, field) for field in kind.model_fields})
