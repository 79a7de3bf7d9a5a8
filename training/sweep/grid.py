"""Parses the grid entries of a sweep into cells: one training configuration each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.configs import SweepConfig, TrainConfig
from training.sweep.choices import setting_text
from training.train.config import train_config_type
from vbon.errors import InvalidInputError

_ENTRY = re.compile(
    r"^(?P<variant>[^:=;]+)(=(?P<objective>[a-z0-9-]+))?:"
    r"\s*(?P<parameter>\w+)=(?P<values>[^;=]+)(;(?P<others>.+))?$"
)
_ENTRY_FORM = "NAME[=OBJECTIVE]: PARAMETER=V1 V2 ...[; SETTING=VALUE ...]"


@dataclass(frozen=True, slots=True)
class GridCell:
    """One training run of a sweep.

    Attributes:
        variant: the name of the method in the report.
        parameter: the setting that varies within the variant.
        value: the value of that setting.
        others: further settings that vary within the variant, by name.
    """

    variant: str
    objective: str
    parameter: str
    value: float
    others: dict[str, Any]
    seed: int
    config: TrainConfig

    @property
    def directory(self) -> Path:
        """The directory of the cell's record and checkpoint."""
        return self.config.out.parent

    @property
    def name(self) -> str:
        """The name of that directory, unique within the sweep."""
        return self.directory.name

    @property
    def setting(self) -> str:
        """The varied settings as text, the same for all seeds."""
        return setting_text({self.parameter: self.value, **self.others})


@dataclass(frozen=True, slots=True)
class _Entry:
    """A parsed grid entry: one variant with several values of one parameter, or of several.

    Attributes:
        text: the entry as given, for error messages.
        values: the values of each setting, not yet parsed; the parameter comes first.
    """

    text: str
    variant: str
    objective: str
    parameter: str
    values: dict[str, list[str]]

    def combinations(self) -> Iterator[dict[str, str]]:
        """The settings of each cell of one seed."""
        for chosen in itertools.product(*self.values.values()):
            yield dict(zip(self.values, chosen, strict=True))

    @property
    def varied(self) -> list[str]:
        """The settings with several values, besides the parameter."""
        return [n for n, v in self.values.items() if n != self.parameter and len(v) > 1]


def grid_cells(sweep: SweepConfig) -> list[GridCell]:
    """All cells of the grid, ordered by seed first, so that an unfinished sweep has complete seeds.

    Raises:
        InvalidInputError: an entry cannot be parsed, its objective rejects a setting, or two cells
            have the same name.
    """
    entries = [_parse_entry(text) for text in sweep.grid]
    kinds = {entry.objective: train_config_type(entry.objective) for entry in entries}
    cells = [
        _cell(sweep, entry, kinds[entry.objective], settings, seed)
        for seed in sweep.seeds
        for entry in entries
        for settings in entry.combinations()
    ]
    names = [cell.name for cell in cells]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise InvalidInputError(
            f"the grid contains {', '.join(duplicates)} twice; give the variants different names",
            field="grid",
        )
    return cells


def _parse_entry(text: str) -> _Entry:
    match = _ENTRY.match(text)
    if match is None:
        raise InvalidInputError(
            f"grid entry {text!r} must have the form {_ENTRY_FORM!r}", field="grid"
        )
    variant = match["variant"].strip()
    others = [part for part in (match["others"] or "").split(";") if part.strip()]
    return _Entry(
        text=text,
        variant=variant,
        objective=match["objective"] or variant,
        parameter=match["parameter"],
        values={
            match["parameter"]: _split(match["values"]),
            **dict(_parse_setting(text, part) for part in others),
        },
    )


def _parse_setting(entry: str, part: str) -> tuple[str, list[str]]:
    name, separator, value = part.partition("=")
    if not separator or not value.strip():
        raise InvalidInputError(
            f"grid entry {entry!r}: {part!r} must have the form SETTING=VALUE", field="grid"
        )
    return name.strip(), _split(value)


def _split(values: str) -> list[str]:
    return values.replace(",", " ").split()


def _cell(
    sweep: SweepConfig,
    entry: _Entry,
    config_type: type[TrainConfig],
    settings: dict[str, str],
    seed: int,
) -> GridCell:
    unknown = sorted(settings.keys() - config_type.model_fields.keys())
    if unknown:
        raise InvalidInputError(
            f"grid entry {entry.text!r}: {entry.objective} has no setting {', '.join(unknown)}",
            field="grid",
        )
    varied = {name: settings[name] for name in (entry.parameter, *entry.varied)}
    label = ",".join(f"{name}={value}" for name, value in varied.items())
    name = re.sub(r"[^\w.=-]+", "_", f"{entry.variant}-{label}-seed={seed}")
    out = sweep.out / "cells" / name / "checkpoint"
    shared = _shared_settings(sweep) | {"seed": seed, "out": out, "replace": True}
    try:
        config = _config_within_budget(config_type, shared | settings)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        raise InvalidInputError(f"{entry.variant}: {problems}", field="grid") from error
    return GridCell(
        variant=entry.variant,
        objective=entry.objective,
        parameter=entry.parameter,
        value=float(getattr(config, entry.parameter)),
        others={name: getattr(config, name) for name in entry.varied},
        seed=config.seed,
        config=config,
    )


# Settings that all cells share although an objective may have a default of its own: the budget, for one.
_SHARED = {"gold", "heldout", "steps", "prompts_per_step", "samples_per_prompt"}


def _shared_settings(sweep: SweepConfig) -> dict[str, Any]:
    """The training settings that the sweep gives to all of its cells."""
    return {
        field: getattr(sweep, field)
        for field in TrainConfig.model_fields
        if field in sweep.model_fields_set or field in _SHARED
    }


def _config_within_budget(config_type: type[TrainConfig], settings: dict[str, Any]) -> TrainConfig:
    """The configuration of a cell, with the steps of its warm start counted in the sweep's steps.

    All cells thus train for the same number of steps. A warm start that the settings do not mention keeps
    the share of the steps that it has by default.
    """
    config = config_type(**settings)
    warm_start = config.warm_start_steps
    if not warm_start:
        return config
    if "warm_start_steps" not in settings:
        default_steps = config_type.model_fields["steps"].default
        warm_start = round(config.steps * warm_start / (warm_start + default_steps))
    steps = {"warm_start_steps": warm_start, "steps": config.steps - warm_start}
    return config_type(**(settings | steps))
