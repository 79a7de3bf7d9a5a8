"""The cells of a sweep: parses grid entries into configurations of the objectives' commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.configs import SweepConfig, TrainConfig
from training.objectives.config import train_config_type
from vbon.errors import InvalidInputError

_ENTRY = re.compile(
    r"^(?P<variant>[^:=;]+)(=(?P<objective>[a-z0-9-]+))?:"
    r"\s*(?P<parameter>\w+)=(?P<values>[^;=]+)(;(?P<fixed>.+))?$"
)


@dataclass(frozen=True, slots=True)
class GridCell:
    """One training run of a sweep.

    Attributes:
        variant: what the report calls the method.
        parameter: what is varied along it.
    """

    variant: str
    objective: str
    parameter: str
    value: float
    seed: int
    config: TrainConfig

    @property
    def directory(self) -> Path:
        """Where its record and checkpoint go."""
        return self.config.out.parent


def cells(sweep: SweepConfig) -> list[GridCell]:
    """All cells; seeds outermost, so that an unfinished sweep has whole seeds.

    Raises:
        InvalidInputError: an entry that cannot be read, or settings its objective refuses.
    """
    made = [
        cell for seed in sweep.seeds for entry in sweep.grid for cell in _entry(sweep, entry, seed)
    ]
    names = [cell.directory for cell in made]
    twice = {name.name for name in names if names.count(name) > 1}
    if twice:
        raise InvalidInputError(
            f"the grid has {', '.join(sorted(twice))} twice; name variants apart", field="grid"
        )
    return made


def _entry(sweep: SweepConfig, entry: str, seed: int) -> list[GridCell]:
    match = _ENTRY.match(entry)
    if match is None:
        raise InvalidInputError(
            f"grid entry {entry!r} is not "
            "'NAME[=OBJECTIVE]: PARAMETER=V1 V2 ...[; SETTING=VALUE ...]'",
            field="grid",
        )
    variant = match["variant"].strip()
    objective = match["objective"] or variant
    config_type = train_config_type(objective)
    fixed = dict(_pair(entry, part) for part in (match["fixed"] or "").split(";") if part.strip())
    made = []
    for text in match["values"].replace(",", " ").split():
        settings = {match["parameter"]: text, **fixed}
        unknown = sorted(settings.keys() - config_type.model_fields.keys())
        if unknown:
            raise InvalidInputError(
                f"grid entry {entry!r}: {objective} has no setting {', '.join(unknown)}",
                field="grid",
            )
        name = re.sub(r"[^\w.=-]+", "_", f"{variant}-{match['parameter']}={text}-seed={seed}")
        shared = {
            field: getattr(sweep, field)
            for field in TrainConfig.model_fields
            if field in sweep.model_fields_set or field in {"gold", "heldout", "steps"}
        }
        shared |= {"seed": seed, "out": sweep.out / "cells" / name / "checkpoint", "replace": True}
        made.append(_cell(variant, objective, match["parameter"], config_type, shared | settings))
    return made


def _pair(entry: str, part: str) -> tuple[str, str]:
    name, separator, value = part.partition("=")
    if not separator:
        raise InvalidInputError(f"grid entry {entry!r}: {part!r} is no SETTING=VALUE", field="grid")
    return name.strip(), value.strip()


def _cell(
    variant: str,
    objective: str,
    parameter: str,
    config_type: type[TrainConfig],
    settings: dict[str, Any],
) -> GridCell:
    try:
        config = config_type(**settings)
        # Equal budgets: the sweep's steps are all of a cell's steps. A warm start that is only the
        # objective's default keeps its share of them.
        if config.warm_start_steps:
            warm = config.warm_start_steps
            if "warm_start_steps" not in settings:
                usual = config_type.model_fields["steps"].default
                warm = round(config.steps * warm / (warm + usual))
            steps = {"warm_start_steps": warm, "steps": config.steps - warm}
            config = config_type(**(settings | steps))
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        raise InvalidInputError(f"{variant}: {said}", field="grid") from error
    value = float(getattr(config, parameter))
    return GridCell(variant, objective, parameter, value, config.seed, config)
