"""Sampling parameters have one definition: the API's, the engine's and the echoed ones agree."""

from __future__ import annotations

from dataclasses import MISSING, fields

from service.schemas import SamplingFields, SamplingUsed
from service.schemas.sampling import sampling_used
from vbon.engine import Sampling

ENGINE = {one.name: one for one in fields(Sampling) if one.name != "logprobs"}


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
    }
    sampling = SamplingFields.model_validate(given).to_sampling(1)
    assert sampling == Sampling(**{**given, "stop": ("x", "y")})  # type: ignore[arg-type]
    assert sampling_used(sampling, 16).model_dump(mode="json") == {"n": 16, **given}
    assert list(SamplingUsed.model_fields) == ["n", *given]


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingFields(stop="x").to_sampling(1).stop == ("x",)
