"""Building blocks that the requests and responses of several routes share."""

from __future__ import annotations

import json
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

Text = Annotated[str, Field(min_length=1)]

# vLLM's own limit for JSON schemas. Deeper values would exhaust Python's stack when they are written as JSON.
MOST_LEVELS = 64


def _encodable(text: str) -> str:
    """The text itself; JSON may write half of a surrogate pair, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} is half of a surrogate pair, which UTF-8 cannot encode; leave it out"
        ) from error
    return text


# A text that may be empty.
AnyText = Annotated[str, AfterValidator(_encodable)]


def writable(value: dict[str, Any]) -> dict[str, Any]:
    """The object itself, if it can be written as JSON again.

    Raises:
        ValueError: it is nested too deeply, or has a text that UTF-8 cannot encode.
    """
    level: list[Any] = [value]
    for _ in range(MOST_LEVELS):
        inner = [part for part in level if isinstance(part, dict | list)]
        level = [
            child for part in inner for child in (part.values() if isinstance(part, dict) else part)
        ]
    if any(isinstance(part, dict | list) for part in level):
        raise ValueError(f"objects and lists may be nested at most {MOST_LEVELS} levels deep")
    _encodable(json.dumps(value, ensure_ascii=False))
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(writable)]


_LISTS = (list, tuple)


def form_of(value: Any) -> str:
    """The form of a field that takes one value or a list of them: ``several`` or ``one``.

    As a discriminator, it gives a wrong value one message instead of one per form.
    """
    return "several" if isinstance(value, _LISTS) else "one"


class Wire(BaseModel):
    """Base class of requests; rejects unknown fields, and takes null for a field that is left out.

    That holds for unknown fields too: the dumps of clients write out fields of their own as null.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _as_json_means(cls, data: Any) -> Any:
        """Leave out null, and write out booleans given for numbers, which Python takes for 0 and 1."""
        if not isinstance(data, dict):
            return data
        values = data.values()
        # Almost no message of a chat has such a value, and 2,000 of them hold the event loop. 1 equals True.
        if None not in values and True not in values and False not in values:
            return data
        fields = cls.model_fields
        found = {k: v for k, v in data.items() if v is not None}
        for name, value in found.items():
            if isinstance(value, bool) and name in fields and not _takes_bool(cls, name):
                found[name] = str(value).lower()
        return found

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        inner = handler.resolve_ref_schema(found)
        for name in inner.get("properties", {}).keys() - set(inner.get("required", ())):
            inner["properties"][name] = _nullable(inner["properties"][name])
        if inner.get("additionalProperties") is False:
            inner["additionalProperties"] = {"type": "null"}
        return found


@cache
def _takes_bool(model: type[BaseModel], field: str) -> bool:
    """Tell whether a field may be true or false; one of any type may."""
    parts = [model.model_fields[field].annotation]
    while parts:
        part = parts.pop()
        if part is bool or part is Any:
            return True
        parts.extend(get_args(part))
    return False


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """The schema, which also accepts null; its annotations stay at the top."""
    if schema.keys().isdisjoint({"type", "$ref", "anyOf", "oneOf", "enum", "const"}):
        return schema  # accepts everything
    if {"type": "null"} in schema.get("anyOf", []) or None in schema.get("enum", []):
        return schema
    outer = {k: v for k, v in schema.items() if k in {"title", "description", "default"}}
    rest = {k: v for k, v in schema.items() if k not in outer}
    forms = rest["anyOf"] if rest.keys() == {"anyOf"} else [rest]
    return {"anyOf": [*forms, {"type": "null"}], **outer}


class ModelRef(BaseModel):
    """A model's identity: its name on this server, its path and the revision of its content."""

    name: str
    path: str
    revision: str
    earlier_revisions: list[str] = Field(
        default=[],
        exclude_if=lambda revisions: not revisions,
        description="only if the weights were changed in place while the request was in flight, or replicas "
        "of a fleet had different ones: the other revisions, of which some of its tokens may be",
    )

    @property
    def fingerprint(self) -> str:
        """All revisions that may have had a part in an answer, in order."""
        return "+".join([*self.earlier_revisions, self.revision])
