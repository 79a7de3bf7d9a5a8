"""Fields that the settings of every search have: its target, its sampler, and its storage."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator

from vbon.config import NoneWord, Settings
from vbon.errors import InvalidInputError
from vbon.measured.target import Target, parse_target
from vbon.storage.database_urls import without_password
from vbon.tuning.registry import SAMPLERS


def _readable(text: str | None) -> str | None:
    if text is not None:
        try:
            parse_target(text)
        except InvalidInputError as error:
            raise ValueError(str(error)) from error
    return text


def _known_sampler(name: str) -> str:
    try:
        SAMPLERS.entry(name)
    except InvalidInputError as error:
        raise ValueError(str(error)) from error
    return name


TargetText = Annotated[str | None, NoneWord, AfterValidator(_readable)]
SamplerName = Annotated[str, AfterValidator(_known_sampler)]


class Searching(Settings):
    """Base class of the settings of a search, which define ``target`` and ``storage``."""

    @property
    def goal(self) -> Target | None:
        """The target; ``None`` if a gain is maximised."""
        text: str | None = getattr(self, "target", None)
        return None if text is None else parse_target(text)

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings as the results keep them, which get passed on: a storage without its password."""
        found = self.model_dump(mode="json")
        if found.get("storage") is not None:
            found["storage"] = without_password(found["storage"])
        return found
