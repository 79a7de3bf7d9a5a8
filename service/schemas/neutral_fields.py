"""Fields of OpenAI's and vLLM's requests that are taken only with values that change no answer.

Clients and load testers send many of them by default. This table is the whole list: any other field acts on
the answer. A value that would change the answer is rejected with the remedy, and null is taken everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema


# Compared by identity: typing caches annotations, and would take True for 1.
@dataclass(frozen=True, eq=False)
class Neutral:
    """Accepts only null and the given values, in validation and in the schema."""

    values: tuple[Any, ...] = ()
    remedy: str = "leave it out"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"enum": [*self.values, None]}

    def _check(self, value: Any) -> Any:
        if value is None or any(_equal(value, neutral) for neutral in self.values):
            return value
        taken = " or ".join(repr(neutral) for neutral in self.values) or "null"
        raise ValueError(f"this server supports only {taken}; {self.remedy}")


@dataclass(frozen=True)
class Label:
    """Accepts every value of a type, because no value of this field changes an answer."""

    kind: Any
    reason: str


Table = Mapping[str, Neutral | Label]


def _equal(value: Any, neutral: Any) -> bool:
    """Equality as JSON has it: true is not 1."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


_CHECKPOINT = "the checkpoint decides it"
_SCHEMA = "send response_format with a JSON schema"
_NO_TEXTS = "send it to the server that makes such content"

# Of both routes.
COMMON: Table = {
    "metadata": Label(dict[str, Any], "an answer is found by its request id"),
    "prompt_cache_key": Label(str, "the engine caches prefixes by their tokens"),
    "prompt_cache_retention": Label(str, "the engine caches prefixes by their tokens"),
    "safety_identifier": Label(str, "names the user, whom this server does not judge"),
    "session_id": Label(str, "sessions share nothing here"),
    "user": Label(str, "names the user"),
    "service_tier": Neutral(("auto", "default"), "for an order of service, use priority"),
    # vLLM's
    "allowed_token_ids": Neutral(remedy="use logit_bias or response_format"),
    "bad_words": Neutral(([],), "use logit_bias"),
    "cache_salt": Neutral(remedy="prefixes are cached for all callers together"),
    "early_stopping": Neutral((False,), "beam search is not supported; for best-of-N send best_of"),
    "guided_choice": Neutral(remedy=_SCHEMA),
    "guided_grammar": Neutral(remedy=_SCHEMA),
    "guided_json": Neutral(remedy=_SCHEMA),
    "guided_regex": Neutral(remedy=_SCHEMA),
    "include_stop_str_in_output": Neutral((False,), "append the stop string yourself"),
    "kv_transfer_params": Neutral(),
    "length_penalty": Neutral((1,), "beam search is not supported; for best-of-N send best_of"),
    "logits_processors": Neutral(([],), "use logit_bias"),
    "prompt_logprobs": Neutral(remedy="only the answer's tokens have log-probabilities: logprobs"),
    "repetition_detection": Neutral(remedy="use repetition_penalty"),
    "request_id": Neutral(remedy="send the header x-request-id"),
    "return_token_ids": Neutral((False,), "POST /generate with logprobs returns token ids"),
    "return_tokens_as_token_ids": Neutral(
        (False,), "POST /generate with logprobs returns token ids"
    ),
    "skip_special_tokens": Neutral((True,), "special tokens are never part of an answer's text"),
    "spaces_between_special_tokens": Neutral((True,), "answers contain no special tokens"),
    "stream_interval": Neutral((1,)),
    "structured_outputs": Neutral(remedy=_SCHEMA),
    "truncate_prompt_tokens": Neutral((-1,), "shorten the prompt yourself"),
    "use_beam_search": Neutral((False,), "for best-of-N send best_of"),
    "vllm_xargs": Neutral(({},)),
}
COMPLETION: Table = {
    "echo": Neutral((False,), "put the prompt before the answer yourself"),
    "suffix": Neutral(("",), "this server only continues texts"),
}
CHAT: Table = {
    "audio": Neutral(remedy=_NO_TEXTS),
    "chat_template": Neutral(remedy=_CHECKPOINT),
    "add_generation_prompt": Neutral((True,)),
    "continue_final_message": Neutral((False,), "POST /v1/completions continues a text"),
    "documents": Neutral(([],), "put the documents into the messages"),
    "echo": Neutral((False,), "put the prompt before the answer yourself"),
    "function_call": Neutral(("none", "auto"), "use tool_choice"),
    "functions": Neutral(([],), "use tools"),
    "include_reasoning": Neutral((True,), "answers are returned whole"),
    "media_io_kwargs": Neutral(({},), _NO_TEXTS),
    "mm_processor_kwargs": Neutral(({},), _NO_TEXTS),
    "modalities": Neutral((["text"],), _NO_TEXTS),
    "prediction": Neutral(),
    "reasoning_effort": Neutral(
        remedy="if the chat template has such a variable, send it in chat_template_kwargs"
    ),
    "thinking_token_budget": Neutral((-1,), "use max_tokens"),
    "top_logprobs": Neutral(
        (0,), "logprobs: true returns the log-probabilities of the answer's tokens"
    ),
    "verbosity": Neutral(("medium",), "ask for it in the messages"),
    "web_search_options": Neutral(remedy="put what you find into the messages"),
}
# Of a message, and of a part of its content.
MESSAGE: Table = {
    "annotations": Label(list[Any], "describes a text that the model gets anyway"),
    "provider_specific_fields": Label(dict[str, Any], "litellm's notes on an earlier answer"),
    "parsed": Label(Any, "OpenAI's client's parsed form of the content"),
    "audio": Neutral(remedy="send the text as content"),
    "function_call": Neutral(remedy="use tool_calls"),
    "refusal": Neutral(("",), "send the text as content"),
}
PART: Table = {"cache_control": Label(dict[str, Any], "the engine caches prefixes by itself")}


def with_neutral_fields(name: str, base: type[BaseModel], *tables: Table) -> type[BaseModel]:
    """A subclass of the request model ``base`` that also has the fields of the tables."""
    fields: dict[str, Any] = {}
    for table in tables:
        for field, row in table.items():
            if isinstance(row, Label):
                note = Field(None, exclude=True, description=f"ignored: {row.reason}")
                fields[field] = (row.kind | None, note)
            else:
                note = Field(None, exclude=True, description=_described(row))
                fields[field] = (Annotated[Any, row], note)
    return create_model(name, __base__=base, __doc__=base.__doc__, **fields)


def _described(row: Neutral) -> str:
    return f"changes nothing; otherwise: {row.remedy}"
