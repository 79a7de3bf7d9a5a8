"""Settings of each objective's command.

They are the settings that all objectives share, with this objective's defaults, plus its own fields.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError, create_model, model_validator

from training.configs import TrainConfig
from training.objectives import OBJECTIVES, objective_type
from training.objectives.protocol import Objective


def train_config_type(name: str) -> type[TrainConfig]:
    """A subclass of ``TrainConfig`` with the fields and defaults of a registered objective.

    Raises:
        InvalidInputError: no objective has this name, or its plug-in cannot be used.
    """
    objective = objective_type(name)
    common = TrainConfig.model_fields.keys()
    clash = (objective.model_fields.keys() & common) | (objective.defaults.keys() - common)
    if clash:
        names = ", ".join(sorted(clash))
        OBJECTIVES.refuse(
            name,
            f"its settings and defaults do not fit the settings that all objectives share: {names} "
            "(a setting must not have the name of a shared setting, and a default must)",
        )
        objective = objective_type(name)  # raises the error
    fields: dict[str, Any] = {}
    for field_name, value in {"out": Path(f"sandbox/{name}"), **objective.defaults}.items():
        field = copy(TrainConfig.model_fields[field_name])
        field.default = value
        fields[field_name] = (field.annotation, field)
    for field_name, field in objective.model_fields.items():
        fields[field_name] = (field.annotation, field)

    def checked(config: TrainConfig) -> TrainConfig:
        """Apply the objective's own validation to its fields."""
        try:
            objective_of(name, config)
        except ValidationError as error:
            messages = (str(e.get("ctx", {}).get("error", e["msg"])) for e in error.errors())
            raise ValueError("; ".join(messages)) from error
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
    """The objective, with its settings taken from a configuration.

    Raises:
        pydantic.ValidationError: a ValueError that names an invalid setting, for example N = 1.
    """
    kind = objective_type(name)
    return kind(**{field: getattr(config, field) for field in kind.model_fields})
