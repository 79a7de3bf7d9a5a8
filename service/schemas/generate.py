"""``POST /generate``: the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.config import JsonDict

from service.schemas.budget import MayBudget
from service.schemas.messages import MESSAGES, ChatMessage
from service.schemas.sampling import SamplingFields
from service.schemas.wire import JsonObject, Text, form_of
from service.strategies.request_fields import with_strategy_settings
from vbon.prompts import Prompt

EXAMPLE: JsonDict = {"prompt": "the film was", "n": 16, "max_tokens": 48, "seed": 7}


TemplateVariables = Annotated[JsonObject, Field(max_length=64)] | None
MayStore = Annotated[
    bool | None,
    Field(
        description="false: this answer is not kept for training, on a server that collects answers "
        "(docs/distil.md); true is refused where none are collected"
    ),
]
Count = Annotated[int, Field(ge=1)]
# The form is chosen before validation, so that a wrong value gets one message instead of one per form.
Counts = Annotated[
    Annotated[Count, Tag("one")]
    | Annotated[list[Count], Field(fail_fast=True, min_length=1, max_length=1024), Tag("several")],
    Discriminator(form_of),
]


class GenerateFields(SamplingFields):
    """One prompt, several prompts or a chat, with sampling parameters and options."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    n: Counts | None = Field(
        None,
        description="candidates per prompt; single-sample modes draw 1. Mode bon also takes a list: the "
        "answer is that of the largest n, and reward_curve estimates all of them from the same candidates",
    )
    prompt: Text | None = Field(None, description="text to continue")
    prompts: Annotated[list[Text], Field(fail_fast=True, min_length=1)] | None = Field(
        None, description="several texts; the answers come as a list in the same order"
    )
    messages: Annotated[list[ChatMessage], MESSAGES] | None = Field(
        None, description="a chat, for policies with a chat template"
    )
    return_candidates: bool = Field(False, description="also return every candidate")
    score: bool = Field(
        True,
        description="single-sample modes: score the answer and report its reward (off by default on /v1)",
    )
    gold: bool = Field(
        False,
        description="also report gold rewards, of the answer and of the candidates that it returns: scored "
        "by the held-out gold reward model after the answer, outside its timings; not with stream",
    )
    logprobs: bool = Field(
        False,
        description="also return token ids and their log-probabilities (nats, temperature 1)",
    )
    stream: bool = Field(
        False,
        description="answer with server-sent events: token, candidate, progress, then answer or error",
    )
    store: MayStore = None
    budget: MayBudget = None
    timeout_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="time limit, seconds; at most the server's, which is the default",
    )

    chat_template_kwargs: TemplateVariables = Field(
        None, description="further variables of the policy's chat template, with messages"
    )
    tools: Annotated[list[JsonObject], Field(max_length=128)] | None = Field(
        None,
        description="tools, in OpenAI's form, that the policy's chat template shows; the answer is the "
        "policy's text, whatever it calls",
    )
    add_special_tokens: bool | None = Field(
        None,
        description="whether the tokenizer adds its own, such as BOS; default: not to messages",
    )

    @model_validator(mode="after")
    def _exactly_one_input(self) -> Self:
        given = [
            name for name in ("prompt", "prompts", "messages") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of prompt, prompts and messages; got "
                + (", ".join(given) if given else "none")
            )
        if (self.chat_template_kwargs or self.tools) and self.messages is None:
            raise ValueError(
                "chat_template_kwargs and tools need messages, since texts have no chat template"
            )
        return self

    @property
    def num_samples(self) -> int | None:
        """N; the largest if ``n`` is a list."""
        return max(self.n) if isinstance(self.n, list) else self.n

    def to_prompts(self) -> list[Prompt]:
        """The prompts to answer."""
        special = self.add_special_tokens
        if self.messages is None:
            texts = [self.prompt] if self.prompts is None else self.prompts
            return [Prompt(text=text, special_tokens=special) for text in texts]
        turns = tuple(turn.to_message() for turn in self.messages)
        return [
            Prompt(
                messages=turns,
                template_kwargs=self.chat_template_kwargs,
                tools=tuple(self.tools or ()),
                special_tokens=special,
            )
        ]


if TYPE_CHECKING:

    class GenerateRequest(GenerateFields):
        """The request with the settings of every strategy, added from the registry."""

else:
    GenerateRequest = with_strategy_settings("GenerateRequest", GenerateFields)
