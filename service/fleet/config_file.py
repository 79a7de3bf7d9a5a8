"""The configuration file of Ray Serve, as far as it describes fleets."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import ValidationError

from service.fleet.settings import FleetSettings
from vbon.errors import InvalidInputError

IMPORT_PATH = "service.fleet:app"


def read_fleets(path: Path) -> dict[str, FleetSettings]:
    """The settings of each application of a file that is a fleet, by its name.

    Raises:
        InvalidInputError: the file is not such a configuration, or a setting is wrong; names it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        applications = content["applications"]
        found = {
            str(one.get("name", "default")): one.get("args") or {}
            for one in applications
            if one["import_path"] == IMPORT_PATH
        }
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise InvalidInputError(
            f"{path} is not a configuration of Ray Serve with `applications`: {error!r}",
            field="config",
        ) from error
    if not found:
        raise InvalidInputError(
            f"{path} has no application with import_path: {IMPORT_PATH}", field="config"
        )
    try:
        return {name: FleetSettings(**args) for name, args in found.items()}
    except (ValidationError, TypeError) as error:
        raise InvalidInputError(f"{path}: {error}", field="config") from error
