"""Tools that an answer to a chat may call, and the choice among them, in OpenAI's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from service.schemas.wire import AnyText, JsonObject, Wire


class Function(Wire):
    """A function that a tool calls."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    description: AnyText | None = None
    parameters: JsonObject | None = Field(None, description="JSON schema of its arguments")
    strict: bool | None = Field(
        None, description="ignored: arguments fit the schema wherever they are constrained"
    )


class Tool(Wire):
    """A tool in the form that chat templates take."""

    type: Literal["function"]
    function: Function

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """The JSON schema of its arguments; by default that of an empty object."""
        return self.function.parameters or {"type": "object", "properties": {}}


class FunctionName(Wire):
    """The name of a function."""

    name: AnyText


class NamedTool(Wire):
    """The choice of one tool."""

    type: Literal["function"] = "function"
    function: FunctionName


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[NamedTool, Tag("tool")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "tool"),
]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The use that an answer may make of tools.

    Attributes:
        named: the one function that it must call; ``None`` leaves the choice to the policy.
        required: whether it must call at least one.
        parallel: whether it may call several.
    """

    tools: tuple[Tool, ...]
    named: str | None
    required: bool
    parallel: bool

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of the answer: arguments, or a list of calls; ``None`` for any text."""
        if self.named is not None:
            [tool] = [one for one in self.tools if one.function.name == self.named]
            return tool.schema_of_arguments
        return _schema_of_calls(self.tools, parallel=self.parallel) if self.required else None


def _schema_of_calls(tools: tuple[Tool, ...], *, parallel: bool) -> dict[str, Any]:
    """The schema of a list of ``{"name": ..., "parameters": ...}``, vLLM's form of required calls.

    Raises:
        ValueError: two tools define a schema of the same name differently.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        parameters = dict(tool.schema_of_arguments)
        own = parameters.pop("$defs", None) or {}
        if not isinstance(own, dict):
            raise ValueError("$defs of a tool's parameters must be an object")
        for name, schema in own.items():
            if definitions.setdefault(name, schema) != schema:
                raise ValueError(
                    f"two tools define {name!r:.60} in $defs differently; rename one of them"
                )
        properties = {"name": {"enum": [tool.function.name]}, "parameters": parameters}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    found: dict[str, Any] = {"type": "array", "items": {"anyOf": calls}, "minItems": 1}
    if not parallel:
        found["maxItems"] = 1
    return found | ({"$defs": definitions} if definitions else {})
