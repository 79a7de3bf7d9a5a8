"""The settings of all strategies as fields of a request, collected from the registry.

Strategies may share a setting, since each is named for its effect. A request with a setting that its mode
does not take is rejected; the setting is not ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from service.strategies import STRATEGIES, Strategy
from vbon.errors import InvalidInputError

_REQUEST_FIELDS = """
    add_generation_prompt add_special_tokens allowed_token_ids audio bad_words best_of budget cache_salt
    chat_template chat_template_kwargs continue_final_message documents early_stopping echo
    frequency_penalty function_call functions gold guided_choice guided_grammar guided_json guided_regex
    ignore_eos include_reasoning include_stop_str_in_output kv_transfer_params length_penalty logit_bias
    logits_processors logprobs max_completion_tokens max_tokens media_io_kwargs messages metadata min_p
    min_tokens mm_processor_kwargs modalities model n parallel_tool_calls prediction presence_penalty
    priority prompt prompt_cache_key prompt_cache_retention prompt_logprobs prompts reasoning_effort
    repetition_detection repetition_penalty request_id response_format return_candidates
    return_token_ids return_tokens_as_token_ids safety_identifier score seed service_tier session_id
    skip_special_tokens spaces_between_special_tokens stop stop_token_ids store stream stream_interval
    stream_options structured_outputs suffix temperature thinking_token_budget timeout_s tool_choice
    tools top_k top_logprobs top_p truncate_prompt_tokens use_beam_search user verbosity vllm_xargs
    web_search_options
"""
# Fields of the requests in service/schemas, whose names no setting may have.
RESERVED = frozenset(_REQUEST_FIELDS.split())
# Settings of earlier versions, and what a request that sends one is told.
REPLACED = {
    "prior_candidates": "replaced by prior_mean_candidates, the certainty of prior_mean (variance of rewards "
    "within prompts over the variance of prompts' means), and prior_sd_candidates, that of prior_sd (31)",
}


def _collect_settings() -> dict[str, dict[str, FieldInfo]]:
    """The modes that take each setting. Leaves out plug-ins whose settings clash with others."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for mode, strategy in STRATEGIES.items():
        clash = _clash(strategy, found)
        if clash and mode not in STRATEGIES.built_in:
            STRATEGIES.refuse(mode, clash)
            continue
        if clash:
            raise TypeError(f"{mode}: {clash}")
        for name, info in strategy.model_fields.items():
            found.setdefault(name, {})[mode] = info
    return found


def _clash(strategy: type[Strategy], others: Mapping[str, Mapping[str, FieldInfo]]) -> str | None:
    """The reason why a strategy's settings cannot become request fields; ``None`` if they can."""
    for name, info in strategy.model_fields.items():
        if name in RESERVED:
            return f"its setting {name!r} has the name of a request field"
        if any(other.annotation != info.annotation for other in others.get(name, {}).values()):
            return f"its setting {name!r} has a different type than in {', '.join(others[name])}"
    return None


SETTINGS = _collect_settings()


def _request_field(users: Mapping[str, FieldInfo]) -> tuple[Any, Any]:
    """An optional field whose description names the modes that take it and their defaults."""
    annotation: Any = next(iter(users.values())).annotation
    by_text: dict[tuple[str | None, str], list[str]] = {}
    for mode, info in users.items():
        by_text.setdefault((info.description, repr(info.default)), []).append(mode)
    described = (
        f"{', '.join(modes)}: {text}" + ("" if default == "None" else f" (default {default})")
        for (text, default), modes in by_text.items()
    )
    return (annotation | None, Field(None, description="; ".join(described)))


def _replaced_field(remedy: str) -> tuple[Any, Any]:
    """A field that accepts no value but null, and whose error names the new settings."""

    def refuse(value: object) -> None:
        if value is not None:
            raise ValueError(remedy)

    hidden = SkipJsonSchema()  # type: ignore[type-arg]
    return (Annotated[Any, AfterValidator(refuse), hidden], Field(None, exclude=True))


def with_strategy_settings(name: str, base: type[BaseModel]) -> type[BaseModel]:
    """A subclass of the request model ``base`` that also has every strategy's settings."""
    fields: dict[str, Any] = {name: _request_field(users) for name, users in SETTINGS.items()}
    fields |= {name: _replaced_field(remedy) for name, remedy in REPLACED.items()}
    return create_model(name, __base__=base, __doc__=base.__doc__, **fields)


def settings_in(request: BaseModel) -> dict[str, Any]:
    """The strategy settings that a request sends."""
    return {name: value for name in SETTINGS if (value := getattr(request, name, None)) is not None}


def configured(mode: str, strategy: Strategy, settings: Mapping[str, Any]) -> Strategy:
    """The strategy with the settings a request sent, and its own settings for the others.

    Raises:
        InvalidInputError: the strategy does not have a setting, or a value is out of range.
    """
    if not settings:
        return strategy
    for name in settings:
        if name not in type(strategy).model_fields:
            users = ", ".join(SETTINGS.get(name, {})) or "none"
            raise InvalidInputError(
                f"mode {mode!r} does not take {name}; modes that do: {users}", field=name
            )
    try:
        own = strategy.model_dump(exclude_unset=True)
        return type(strategy).model_validate({**own, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "body"
        given = settings.get(name)
        raise InvalidInputError(
            f"{name}: {first['msg']}" + ("" if given is None else f" (got {given!r})"), field=name
        ) from error
