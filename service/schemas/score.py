"""``POST /v1/score``: rewards of given texts, the request and the response."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from service.schemas.messages import ChatMessage
from service.schemas.prompts import PromptItem, to_prompt
from service.schemas.wire import AnyText, ModelRef, Text, Wire, form_of
from vbon.prompts import Prompt

# The fields of each form: those of the prompts, and those of the texts that are scored.
_FORMS = (
    ("prompt", "completions"),
    ("messages", "completions"),
    ("prompts", "completions"),
    ("text_1", "text_2"),
    ("queries", "documents"),
)
_NAMES = tuple(dict.fromkeys(name for form in _FORMS for name in form))

Texts = Annotated[list[AnyText], Field(fail_fast=True, min_length=1)]
OneOrMore = Annotated[
    Annotated[AnyText, Tag("one")] | Annotated[Texts, Tag("several")], Discriminator(form_of)
]


class ScoreRequest(Wire):
    """Completions to score, with their prompts in one of five forms."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "the film was", "completions": [" good", " too long"]}]
        }
    )

    model: Literal["reward", "gold"] = Field(
        "reward", description="the reward model that selects, or the held-out gold one"
    )
    prompt: Text | None = Field(None, description="one text that all completions continue")
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="one chat that all completions answer"
    )
    prompts: Annotated[list[PromptItem], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="a prompt for each completion: texts, or chats as objects with messages"
    )
    completions: Texts | None = Field(None, description="the texts to score")
    text_1: OneOrMore | None = Field(
        None, description="vLLM's name for the prompt of all texts, or for the prompts of each"
    )
    text_2: OneOrMore | None = Field(None, description="vLLM's name for the texts to score")
    queries: OneOrMore | None = Field(None, description="another name for text_1")
    documents: OneOrMore | None = Field(None, description="another name for text_2")
    timeout_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="time limit, seconds; at most the server's, which is the default",
    )

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = {name for name in _NAMES if getattr(self, name) is not None}
        if given not in [set(form) for form in _FORMS]:
            forms = "; ".join(" and ".join(form) for form in _FORMS)
            got = ", ".join(name for name in _NAMES if name in given) or "none"
            raise ValueError(f"give exactly one of these pairs: {forms}; got {got}")
        prompts, texts = self._prompts_and_texts()
        if len(prompts) not in (1, len(texts)):
            first, second = next(form for form in _FORMS if set(form) == given)
            raise ValueError(
                f"{first} has {len(prompts)} elements and {second} has {len(texts)}; give one prompt for "
                "all texts, or one for each"
            )
        return self

    def pairs(self) -> list[tuple[Prompt, str]]:
        """The texts to score, each after its prompt."""
        prompts, texts = self._prompts_and_texts()
        if len(prompts) == 1:
            prompts *= len(texts)
        return list(zip(prompts, texts, strict=True))

    @property
    def field(self) -> str:
        """The field with the texts to score."""
        return next(
            name
            for name in ("completions", "text_2", "documents")
            if getattr(self, name) is not None
        )

    def _prompts_and_texts(self) -> tuple[list[Prompt], list[str]]:
        texts = _listed(getattr(self, self.field))
        if self.messages is not None:
            return [Prompt(messages=tuple(turn.to_message() for turn in self.messages))], texts
        if self.prompts is not None:
            return [to_prompt(item) for item in self.prompts], texts
        given = next(v for v in (self.prompt, self.text_1, self.queries) if v is not None)
        return [Prompt(text=text) for text in _listed(given)], texts


class ScoreElement(BaseModel):
    """One reward, in the form of vLLM's score API."""

    index: int
    object: Literal["score"] = "score"
    score: float | None


class ScoreTimings(BaseModel):
    """Milliseconds of the request's parts."""

    queue: float = Field(description="waiting for admission")
    scoring: float = Field(description="from admission to the last reward")
    total: float


class ScoreResponse(BaseModel):
    """The rewards, in the order of the texts."""

    id: str
    object: Literal["list"] = "list"
    created: int = Field(description="Unix time, seconds")
    model: str = Field(description="`reward` or `gold`")
    rewards: list[float | None] = Field(
        description="raw rewards, higher is better; null for a text that the model cannot score"
    )
    data: list[ScoreElement] = Field(description="the same rewards as vLLM's score API lists them")
    unscored: int = Field(description="number of texts without a reward")
    reward_model: ModelRef
    timings_ms: ScoreTimings


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
