"""Sampling parameters: as requests send them, and as answers echo them.

:class:`vbon.engine.Sampling` defines their names and types. :class:`SamplingFields` adds the bounds and
descriptions of the API; everything else here is derived from these two.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)

from service.schemas.wire import JsonObject, Wire, form_of
from vbon.engine import Sampling
from vbon.engine.protocol import HOTTER, LEAST_TEMPERATURE, MOST_TEMPERATURE

# Left out: each route has its own field for `logprobs`, and strategies set `top_logprobs` themselves.
_INTERNAL = frozenset({"logprobs", "top_logprobs"})
SAMPLING_NAMES = tuple(one.name for one in fields(Sampling) if one.name not in _INTERNAL)


def _within_the_engines_reach(temperature: float) -> float:
    if temperature > MOST_TEMPERATURE:
        raise ValueError(f"must be at most {MOST_TEMPERATURE:g}; {HOTTER}")
    return temperature


Temperature = Annotated[
    float,
    Field(ge=0, allow_inf_nan=False, json_schema_extra={"maximum": MOST_TEMPERATURE}),
    AfterValidator(_within_the_engines_reach),
]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# vLLM's clients write "no seed" and "every token" as -1.
SeedOrNone = Annotated[int, Field(ge=-1, lt=2**63)]
TopK = Annotated[int, Field(ge=-1, le=1_000_000), AfterValidator(lambda k: max(k, 0))]
StopString = Annotated[str, Field(max_length=256)]


Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False, strict=True)]
MOST_STOP_TOKENS = 128


class JsonSchema(Wire):
    """A JSON schema, with the name that OpenAI's clients give it."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = Field(None, description="ignored: names the schema")
    description: str | None = Field(None, description="ignored: the model does not see it")
    content: JsonObject = Field(alias="schema")
    strict: bool | None = Field(None, description="ignored: answers always fit the schema")


class ResponseFormat(Wire):
    """The form of an answer, in OpenAI's terms."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_if_named(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(
                'the type json_schema needs json_schema: {"schema": {...}}, and other types take none'
            )
        return self

    def to_sampling(self) -> dict[str, Any] | None:
        """The engine's form; ``None`` for any text."""
        if self.type == "text":
            return None
        if self.json_schema is None:
            return {"type": self.type}
        return {"type": self.type, "json_schema": {"schema": self.json_schema.content}}


class SamplingFields(Wire):
    """The sampling parameters of a request, shared by every request that generates."""

    max_tokens: int | None = Field(
        None,
        ge=1,
        description="most new tokens of a candidate; default: default_sampling of /modes",
    )
    temperature: Temperature | None = Field(
        None,
        description=f"0 is greedy and ignores top_p and top_k; positive values below "
        f"{LEAST_TEMPERATURE:g} are raised to it, as the answer reports; default: default_sampling of /modes",
    )
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: TopK = Field(0, description="0 and -1 keep every token")
    seed: SeedOrNone | None = Field(
        None, description="the same seed, parameters and batch give the same answer; -1 is none"
    )
    stop: (
        Annotated[
            Annotated[StopString, Tag("one")]
            | Annotated[list[StopString], Field(fail_fast=True, max_length=16), Tag("several")],
            Discriminator(form_of),
        ]
        | None
    ) = Field(None, description="strings that end a candidate; empty ones end none")
    ignore_eos: bool = Field(
        False,
        description="continue to max_tokens even after an end-of-sequence token; for load tests",
    )
    priority: int = Field(
        0,
        ge=-(2**63),
        lt=2**63,
        description="lower values are served first, in the queue and in the engine; a value other than 0 "
        "needs a server with engine.scheduling_policy=priority",
    )

    min_p: float = Field(
        0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="least probability relative to the largest",
    )
    min_tokens: int = Field(
        0, ge=0, description="neither EOS nor stop_token_ids end a candidate before"
    )
    stop_token_ids: Annotated[
        tuple[Annotated[TokenId, Field(strict=True)], ...],
        Field(fail_fast=True, max_length=MOST_STOP_TOKENS),
    ] = Field((), description="tokens that end a candidate, as EOS does")
    frequency_penalty: Penalty = Field(
        0.0, description="subtracted from a token's logit for each time the candidate has it"
    )
    presence_penalty: Penalty = Field(
        0.0, description="subtracted from the logit of every token that the candidate has"
    )
    repetition_penalty: float = Field(
        1.0,
        ge=0.1,
        le=10,
        allow_inf_nan=False,
        description="divides the logits of tokens that the prompt or the candidate has; 1 changes nothing",
    )
    logit_bias: (
        Annotated[
            dict[TokenId, Bias],
            Field(max_length=1024),
        ]
        | None
    ) = Field(None, description="added to the logits of tokens, by their ids")
    response_format: ResponseFormat | None = Field(
        None, description="constrains every candidate to JSON, or to JSON of a schema"
    )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The ``stop`` strings as a tuple, whichever form was sent."""
        strings = [self.stop or ""] if not isinstance(self.stop, list) else self.stop
        return tuple(filter(None, strings))

    def to_sampling(self, default_max_tokens: int, default_temperature: float = 1.0) -> Sampling:
        """The engine's form of these parameters."""
        values = {name: getattr(self, name) for name in SAMPLING_NAMES}
        values["stop"] = self.stop_strings
        values["seed"] = None if self.seed == -1 else self.seed
        values["logit_bias"] = self.logit_bias or None
        wanted = self.response_format
        values["response_format"] = None if wanted is None else wanted.to_sampling()
        if self.max_tokens is None:
            values["max_tokens"] = default_max_tokens
        if self.temperature is None:
            values["temperature"] = default_temperature
        return Sampling(**values)


def _used_fields() -> dict[str, Any]:
    hints = get_type_hints(Sampling)
    return {"n": (int, ...)} | {name: (hints[name], ...) for name in SAMPLING_NAMES}


if TYPE_CHECKING:

    class SamplingUsed(BaseModel):
        """The parameters that were used, defaults filled in, so that results can be compared."""

else:
    SamplingUsed = create_model(
        "SamplingUsed",
        __doc__="The parameters that were used, defaults filled in, so that results can be compared.",
        **_used_fields(),
    )


def sampling_used(sampling: Sampling, num_samples: int) -> SamplingUsed:
    """The wire form of the parameters an answer was made with, and its N."""
    values = {name: getattr(sampling, name) for name in SAMPLING_NAMES}
    return SamplingUsed(n=num_samples, **values)
