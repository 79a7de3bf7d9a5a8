"""Sampling parameters have one definition: the API's, the engine's and the echoed ones agree."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from service.loadtest.config import LoadTestSettings
from service.schemas import CompareRequest, GenerateRequest, SamplingFields, SamplingUsed
from service.schemas.loadtests import LoadTestRequest
from service.schemas.openai_requests import ChatRequest, CompletionRequest
from service.schemas.preferences import PairRequest
from service.schemas.sampling import sampling_used
from training.configs import SampleConfig
from vbon.engine import ModelInfo, Sampling, check_fits
from vbon.errors import InvalidInputError

# Routes have a field of their own for logprobs, and strategies ask for top_logprobs.
INTERNAL = {"logprobs", "top_logprobs"}
ENGINE = {one.name: one for one in fields(Sampling) if one.name not in INTERNAL}


def test_the_api_has_the_engines_parameters_with_the_same_defaults() -> None:
    assert list(SamplingFields.model_fields) == list(ENGINE)
    for name, one in ENGINE.items():
        if one.default is not MISSING and name not in ("stop", "temperature"):
            assert SamplingFields.model_fields[name].default == one.default, name
    assert SamplingFields().to_sampling(7) == Sampling(max_tokens=7)
    assert SamplingFields().to_sampling(7, 0.5) == Sampling(max_tokens=7, temperature=0.5)


def test_every_parameter_reaches_the_engine_and_the_answer() -> None:
    given = {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 4,
        "stop": ["x", "y"],
        "ignore_eos": True,
        "priority": -2,
        "min_p": 0.1,
        "min_tokens": 2,
        "stop_token_ids": [5, 7],
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.25,
        "logit_bias": {3: -100.0},
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
    }
    sampling = SamplingFields.model_validate(given).to_sampling(1)
    assert sampling == Sampling(**{**given, "stop": ("x", "y"), "stop_token_ids": (5, 7)})  # type: ignore[arg-type]
    told = sampling_used(sampling, 16).model_dump(mode="json")
    assert told == {"n": 16, **given, "logit_bias": {"3": -100.0}}  # keys of JSON are texts
    assert list(SamplingUsed.model_fields) == ["n", *given]


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingFields(stop="x").to_sampling(1).stop == ("x",)


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ({"temperature": 1e-300}, {"temperature": 0.01}),
        ({"temperature": 0.00999, "top_k": 3}, {"temperature": 0.01, "top_k": 3}),
        ({"temperature": 0.01}, {"temperature": 0.01}),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3}, {"temperature": 0}),
        ({"temperature": 2, "top_p": 0.5}, {"temperature": 2, "top_p": 0.5}),
    ],
)
def test_what_the_engine_changes_is_echoed_as_it_was_used(
    asked: dict[str, Any], used: dict[str, Any]
) -> None:
    sampling = SamplingFields.model_validate(asked).to_sampling(4)
    assert sampling == Sampling(max_tokens=4, **used)
    echoed = sampling_used(sampling, 1)
    wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": 0} | used
    assert {name: getattr(echoed, name) for name in wanted} == wanted


CHAT = {"model": "bon", "messages": [{"role": "user", "content": "x"}]}
PAIR = {"prompt": "x", "sides": [{"mode": "ref"}, {"mode": "bon"}]}


@pytest.mark.parametrize(
    ("request_type", "body"),
    [
        (GenerateRequest, {"prompt": "x"}),
        (CompareRequest, {"prompts": ["x"]}),
        (CompletionRequest, {"model": "bon", "prompt": "x"}),
        (ChatRequest, CHAT),
        (PairRequest, PAIR),
        (LoadTestRequest, {}),
        (LoadTestSettings, {}),
    ],
)
def test_every_request_ends_at_the_engine_s_highest_temperature(
    request_type: type[BaseModel], body: dict[str, Any]
) -> None:
    assert request_type.model_validate({**body, "temperature": 2}).temperature == 2  # type: ignore[attr-defined]
    schema = request_type.model_json_schema()["properties"]["temperature"]
    schema = schema.get("anyOf", [schema])[0]
    assert (schema["minimum"], schema["maximum"]) == (0, 2)
    for beyond in (2.0000001, 2.5, 1e308):
        with pytest.raises(ValidationError, match=r"at most 2|less than or equal to 2"):
            request_type.model_validate({**body, "temperature": beyond})


def test_engines_refuse_what_they_cannot_sample() -> None:
    info = ModelInfo("m", "r", 100)
    check_fits(info, [1], Sampling(max_tokens=4, temperature=2))
    with pytest.raises(InvalidInputError, match=r"temperature is 2\.5.*raise n") as refused:
        check_fits(info, [1], Sampling(max_tokens=4, temperature=2.5))
    assert refused.value.field == "temperature"


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_training_on_vllm_refuses_temperatures_that_it_would_change(temperature: float) -> None:
    cache = {"policy": "p", "reward": "r", "prompts": "x", "out": "o", "temperature": temperature}
    with pytest.raises(ValidationError, match=r"0\.01 to 2.*--backend transformers"):
        SampleConfig(**cache)
    assert SampleConfig(**cache, backend="transformers").temperature == temperature
