"""What requests and answers of several routes share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]


class Wire(BaseModel):
    """Base of requests: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChatMessage(Wire):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: Text


class SamplingFields(Wire):
    """How to draw; shared by every request that generates."""

    max_tokens: int | None = Field(None, ge=1, description="most new tokens of a candidate")
    temperature: float = Field(1.0, ge=0, le=10, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=1_000_000, description="0 keeps every token")
    seed: int | None = Field(
        None, ge=0, lt=2**63, description="same seed, settings and batch: same answer"
    )
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True, max_length=16)] | None = (
        Field(None, description="strings that end a candidate")
    )
    ignore_eos: bool = Field(False, description="decode on to max_tokens, for load tests")
    priority: int = Field(
        0,
        ge=-(2**63),
        lt=2**63,
        description="the lower, the earlier it is served, here and in the engine; other than 0 only where "
        "the server runs with engine.scheduling_policy=priority",
    )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple whichever form was sent."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ModelRef(BaseModel):
    """Which weights: path and content revision."""

    name: str
    path: str
    revision: str


class SamplingUsed(BaseModel):
    """The sampling actually used, defaults filled in, so that results can be compared."""

    n: int
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: list[str]
    ignore_eos: bool
    priority: int
