"""Reads ``choices.json``: the settings that a search tried, and those that it chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vbon.errors import DataError
from vbon.maths.intervals import MeanInterval
from vbon.storage.atomic import read_errors
from vbon.storage.validation import first_problem

CHOICES = "choices.json"


def setting_text(settings: dict[str, Any]) -> str:
    """Varied settings as ``name=value, name=value``."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    )


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False, extra="ignore")


class TriedSetting(_Record):
    """A setting that the search tried, with its figures on the validation prompts.

    Attributes:
        kl_nats: ``None`` if the training diverged.
    """

    method: str
    setting: str
    status: Literal["ok", "diverged"]
    kl_nats: MeanInterval | None = None
    win_rate: MeanInterval | None = None
    cost: dict[str, Any] = {}


class Choice(_Record):
    """The setting chosen for one method and target.

    Attributes:
        kl_budget: the KL bound of best-of-N for the target N, in nats.
        setting: ``None`` if every training of the method diverged.
        within_budget: whether the setting spent no more than that on the validation prompts.
    """

    method: str
    target: int
    kl_budget: float
    setting: str | None
    within_budget: bool


class Choices(_Record):
    """The content of ``choices.json``.

    Attributes:
        validation: the number of validation prompts, and the checksum of their file.
    """

    validation: dict[str, Any]
    search_seed: int
    tried: list[TriedSetting]
    chosen: list[Choice]

    def targets_of(self, method: str, setting: str) -> tuple[int, ...]:
        """The targets for which a setting was chosen, ascending."""
        return tuple(
            sorted(c.target for c in self.chosen if (c.method, c.setting) == (method, setting))
        )


def read_choices(path: Path) -> Choices:
    """Read a ``choices.json``.

    Raises:
        DataError: the file is missing or malformed.
    """
    try:
        with read_errors(path):
            return Choices.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error
