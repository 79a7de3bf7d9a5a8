"""Random instances of JSON schemas, for the fake engine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from vbon.errors import InvalidInputError

_TEXTS = ("good", "bad", "dull", "superb")
_FORMATS = {
    "date": "2024-01-31",
    "date-time": "2024-01-31T12:00:00Z",
    "email": "a@example.org",
    "time": "12:00:00Z",
    "uri": "https://example.org/",
    "uuid": "123e4567-e89b-12d3-a456-426614174000",
}
_ANNOTATIONS = frozenset(
    ["$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples"]
)
_FORMS = frozenset(["$ref", "const", "enum", "anyOf", "oneOf", "allOf"])
# The keywords of each type; any other keyword is rejected, because an instance might not fit it.
_KEYWORDS = {
    "object": frozenset(["properties", "required", "additionalProperties"]),
    "array": frozenset(["items", "prefixItems", "minItems", "maxItems"]),
    "string": frozenset(["minLength", "maxLength", "format"]),
    "integer": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
    "number": frozenset(["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]),
    "boolean": frozenset[str](),
    "null": frozenset[str](),
}
_DEEPEST = 24
_LONGEST = 100


def random_instance(schema: Mapping[str, Any], source: random.Random) -> Any:
    """A random value that fits the schema.

    Raises:
        InvalidInputError: the schema is wrong, or has a keyword that is not supported.
    """
    try:
        instance = _Drawer(schema, source).draw(schema, 0)
        json.dumps(instance, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise _refused(f"it is wrong ({error})") from error
    return instance


class _Drawer:
    def __init__(self, root: Mapping[str, Any], source: random.Random) -> None:
        self._root, self._source = root, source

    def draw(self, schema: Any, depth: int) -> Any:
        """A value that fits the schema; deep ones leave out all that is optional."""
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping) or depth > _DEEPEST:
            raise _refused("a schema must be an object, and end")
        if "$ref" in schema:
            return self.draw(self._at(schema["$ref"]), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._source.choice(_listed(schema["enum"]))
        for form in ("anyOf", "oneOf", "allOf"):
            if form in schema:
                return self._one_of(form, schema, depth)
        return self._of_type(schema, depth)

    def _one_of(self, form: str, schema: Mapping[str, Any], depth: int) -> Any:
        choices = _listed(schema[form])
        if form == "allOf" and len(choices) > 1:
            raise _refused("several schemas of allOf at once")
        # The last one usually ends a recursion, as null does.
        chosen = choices[-1] if depth > 4 else self._source.choice(choices)
        return self.draw(chosen, depth + 1)

    def _at(self, pointer: Any) -> Any:
        found: Any = self._root
        try:
            for part in str(pointer).removeprefix("#").strip("/").split("/"):
                found = found[part] if part else found
        except (KeyError, TypeError) as error:
            raise _refused(f"$ref {pointer!r}") from error
        return found

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = kind[-1] if depth > 4 else self._source.choice(_listed(kind))
        if kind not in _KEYWORDS:
            raise _refused(f"type {kind!r:.40}")
        others = schema.keys() - _KEYWORDS[kind] - _ANNOTATIONS - _FORMS - {"type"}
        if others:
            raise _refused(f"{min(others)} of type {kind}")
        draw: dict[str, Callable[[Mapping[str, Any], int], Any]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda _schema, _depth: self._source.random() < 0.5,
            "null": lambda _schema, _depth: None,
        }
        return draw[kind](schema, depth)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", [])
        properties = schema.get("properties", {})
        names = [
            name
            for name in properties
            if name in required or (depth < 4 and self._source.random() < 0.5)
        ]
        if not properties and not required and schema.get("additionalProperties", True) is True:
            return {name: self._source.choice(_TEXTS) for name in self._source.sample(_TEXTS, 2)}
        return {name: self.draw(properties[name], depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = [self.draw(one, depth + 1) for one in schema.get("prefixItems", [])]
        least = int(schema.get("minItems", 0))
        if least > _LONGEST:
            raise _refused(f"minItems {least}")
        most = min(int(schema.get("maxItems", least + 2)), least + 2)
        count = least if depth > 4 else self._source.randint(least, max(least, most))
        items = schema.get("items", {"type": "string"})
        return first + [self.draw(items, depth + 1) for _ in range(count - len(first))]

    def _string(self, schema: Mapping[str, Any], _: int) -> str:
        if "format" in schema:
            if schema["format"] not in _FORMATS:
                raise _refused(f"format {schema['format']!r:.40}")
            return _FORMATS[schema["format"]]
        if int(schema.get("minLength", 0)) > _LONGEST:
            raise _refused(f"minLength {schema['minLength']}")
        text = self._source.choice(_TEXTS).ljust(int(schema.get("minLength", 0)), "!")
        return text[: int(schema["maxLength"])] if "maxLength" in schema else text

    def _integer(self, schema: Mapping[str, Any], _: int) -> int:
        low, high = self._range(schema, 1)
        return self._source.randint(int(-(-low // 1)), int(high // 1))

    def _number(self, schema: Mapping[str, Any], _: int) -> float:
        low, high = self._range(schema, 0.25)
        return low + (high - low) * self._source.choice((0.0, 0.25, 0.5, 1.0))

    def _range(self, schema: Mapping[str, Any], step: float) -> tuple[float, float]:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10 + step) - step)
        if low > high:
            raise _refused("a range without numbers")
        return low, high


def _listed(choices: Any) -> list[Any]:
    if not isinstance(choices, list) or not choices:
        raise _refused("an empty list of choices")
    return choices


def _refused(what: str) -> InvalidInputError:
    return InvalidInputError(
        f"this engine cannot generate JSON of the schema: {what}; simplify it",
        field="response_format",
    )
