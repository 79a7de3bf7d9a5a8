"""The whole service over real vLLM."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.runtime.runtime import Runtime
from service.schemas import SamplingFields
from tests.unit.test_api import disconnect_after
from vbon.engine import Engine, Sampling
from vbon.engine.protocol import LEAST_TEMPERATURE, MOST_TEMPERATURE
from vbon.errors import InvalidInputError

pytestmark = [pytest.mark.vllm, pytest.mark.train]

BODY = {"prompt": "the film was", "n": 16, "max_tokens": 24, "seed": 7}


@pytest.fixture(scope="session")
async def app(runtime: Runtime) -> FastAPI:
    # The lifespan is the runtime fixture's: the app is driven without its own.
    return create_app(runtime)


@pytest.fixture(scope="session")
async def client(app: FastAPI) -> AsyncGenerator[httpx.AsyncClient, None]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def generate(client: httpx.AsyncClient, mode: str, **changes: object) -> httpx.Response:
    return await client.post("/generate", params={"mode": mode}, json={**BODY, **changes})


async def test_bon_and_vbon_answer_from_their_own_policies(client: httpx.AsyncClient) -> None:
    bon = (await generate(client, "bon", return_candidates=True)).json()
    vbon = (await generate(client, "vbon")).json()
    assert len(bon["candidates"]) == 16
    assert bon["reward"] == max(c["reward"] for c in bon["candidates"])
    assert bon["policy"]["revision"] != vbon["policy"]["revision"]
    assert bon["usage"]["generated_tokens"] == sum(c["num_tokens"] for c in bon["candidates"])
    assert vbon["usage"]["generated_tokens"] == vbon["usage"]["returned_tokens"] <= 24
    assert bon["policy"]["revision"].startswith("sha256:")


async def test_a_float32_checkpoint_is_served_in_float32(runtime: Runtime) -> None:
    """vLLM by itself would round it to bfloat16."""
    for policy in ("ref", "vbon"):
        config = runtime.policies[policy].host.llm.model_config  # type: ignore[attr-defined]
        assert str(config.dtype) == "torch.float32"


async def test_same_seed_same_answer(client: httpx.AsyncClient) -> None:
    first, second = [(await generate(client, "bon")).json() for _ in range(2)]
    other = (await generate(client, "bon", seed=8)).json()
    assert (first["text"], first["reward"]) == (second["text"], second["reward"])
    assert first["text"] != other["text"]


async def test_rewards_are_raw_logits(client: httpx.AsyncClient) -> None:
    """A sigmoid would keep every score within 0 and 1."""
    answer = (await generate(client, "bon", n=64, return_candidates=True)).json()
    assert min(c["reward"] for c in answer["candidates"]) < 0
    assert len({c["reward"] for c in answer["candidates"]}) > 32


async def test_logprob_is_the_policys_own(client: httpx.AsyncClient, runtime: Runtime) -> None:
    """Against transformers, at a temperature that must not change it."""
    import torch

    from training.rollouts.load_policy import load_policy

    answer = (await generate(client, "bon", temperature=0.5, n=4, return_candidates=True)).json()
    policy, tokenizer, _ = load_policy(answer["policy"]["path"])
    prompt = tokenizer("the film was")["input_ids"]
    for candidate in answer["candidates"]:
        response = tokenizer(candidate["text"], add_special_tokens=False)["input_ids"]
        if candidate["finish_reason"] == "stop":
            response = [*response, tokenizer.eos_token_id]
        if len(response) != candidate["num_tokens"]:
            continue  # the sampled spelling is not the tokenizer's
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            log_q = torch.log_softmax(policy(ids).logits[0, :-1], -1)
        expected = log_q.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum()
        assert candidate["cumulative_logprob"] == pytest.approx(float(expected), abs=2e-2)


async def test_compare_has_both_sides(client: httpx.AsyncClient) -> None:
    body = {"prompts": ["the film was", "in this drama"], "n": 8, "repeats": 2, "concurrency": 2}
    result = (await client.post("/compare", json=body)).json()
    modes = {mode["mode"]: mode for mode in result["modes"]}
    assert set(modes) == {"ref", "bon", "vbon", "lora"}
    for mode in modes.values():
        assert mode["reward"]["count"] == 2
        assert mode["gold_reward"]["count"] == 2
        assert mode["requests_per_s"]["median"] > 0
    assert modes["bon"]["generated_tokens"] > 3 * modes["vbon"]["generated_tokens"]


async def test_a_lora_adapter_is_served_on_the_reference_engine(
    client: httpx.AsyncClient, runtime: Runtime, lora_checkpoint: Path
) -> None:
    """Its log-probability of an answer is that of the merged weights, and not the reference's."""
    import torch

    from training.rollouts.load_policy import load_policy

    assert runtime.policies["lora"].host is runtime.policies["ref"].host  # type: ignore[attr-defined]
    served = (await client.get("/modes")).json()["modes"]
    assert {mode["name"] for mode in served if mode["adapter"]} == {"lora"}
    models = {
        name: load_policy(path)[:2]
        for name, path in (("merged", str(lora_checkpoint)), ("ref", answer_path(runtime, "ref")))
    }
    differences = []
    for seed in range(8):
        answer = (await generate(client, "lora", return_candidates=True, seed=seed)).json()
        (candidate,) = answer["candidates"]
        logprobs = {}
        for name, (policy, tokenizer) in models.items():
            prompt = tokenizer("the film was")["input_ids"]
            response = tokenizer(candidate["text"], add_special_tokens=False)["input_ids"]
            if candidate["finish_reason"] == "stop":
                response = [*response, tokenizer.eos_token_id]
            ids = torch.tensor([[*prompt, *response]])
            with torch.no_grad():
                log_q = torch.log_softmax(policy(ids).logits[0, :-1], -1)
            logprobs[name] = float(log_q.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum())
        if len(response) == candidate["num_tokens"]:
            assert candidate["cumulative_logprob"] == pytest.approx(logprobs["merged"], abs=5e-2)
            differences.append(abs(logprobs["ref"] - logprobs["merged"]))
    # At least one answer tells the two apart by far more than the tolerance.
    assert max(differences) > 0.4


def answer_path(runtime: Runtime, policy: str) -> str:
    return runtime.policies[policy].info.path


async def test_many_requests_at_once_each_get_their_own_answer(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(
        *(generate(client, mode, seed=seed, n=4) for seed in range(8) for mode in ("bon", "vbon"))
    )
    assert {r.status_code for r in responses} == {200}
    assert len({r.json()["request_id"] for r in responses}) == 16


async def test_bad_input_is_refused_and_nothing_else_changes(client: httpx.AsyncClient) -> None:
    too_long = await generate(client, "bon", prompt="film " * 200)
    assert too_long.status_code == 422
    assert "limit of 96" in too_long.json()["error"]["message"]
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    no_template = await client.post("/generate?mode=ref", json=chat)
    assert "no chat template" in no_template.json()["error"]["message"]
    assert (await generate(client, "bon")).status_code == 200


def unfinished(engine: Engine) -> int:
    return engine.host.llm.get_num_unfinished_requests()  # type: ignore[attr-defined]


async def test_a_client_that_leaves_frees_the_engine(app: FastAPI, runtime: Runtime) -> None:
    await disconnect_after(app, 0.02)
    assert unfinished(runtime.policies["ref"]) == 0
    assert runtime.admission.running == 0


def edges(field: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The outermost values that a field of a schema allows, and the nearest that it does not."""
    inside: list[Any] = []
    outside: list[Any] = []
    for form in field.get("anyOf", field.get("oneOf", [])):
        within, beyond = edges(form)
        inside, outside = inside + within, outside + beyond
    step = 1 if field.get("type") == "integer" else 1e-9
    if "minimum" in field:
        inside, outside = [*inside, field["minimum"]], [*outside, field["minimum"] - step]
    if "maximum" in field:
        inside, outside = [*inside, field["maximum"]], [*outside, field["maximum"] + step]
    if "exclusiveMinimum" in field:
        inside.append(math.nextafter(field["exclusiveMinimum"], math.inf))
        outside.append(field["exclusiveMinimum"])
    if "exclusiveMaximum" in field:
        beyond_it = int(field["exclusiveMaximum"])  # of integers only; the document shows 9.2e18
        inside.append(beyond_it - 1)
        outside.append(beyond_it)
    if "maxLength" in field:
        inside += ["x" * field.get("minLength", 0), "x" * field["maxLength"]]
        outside.append("x" * (field["maxLength"] + 1))
    if field.get("type") == "array":
        inside += [[], [edges(field["items"])[0][-1]] * field["maxItems"]]
        outside.append(["x"] * (field["maxItems"] + 1))
    return inside, outside


ROUTES: dict[str, dict[str, Any]] = {
    "/generate?mode=bon": {"prompt": "the film was", "n": 2, "max_tokens": 2},
    "/v1/completions": {"model": "bon", "prompt": "the film was", "best_of": 2, "max_tokens": 2},
    "/v1/chat/completions": {
        "model": "vbon",
        "messages": [{"role": "user", "content": "the film was"}],
        "max_tokens": 2,
    },
    "/compare": {"prompts": ["the film was"], "n": 2, "max_tokens": 2, "modes": ["ref", "bon"]},
}


@pytest.mark.parametrize("route", ROUTES)
async def test_every_value_that_the_schema_allows_is_decoded(
    client: httpx.AsyncClient, app: FastAPI, route: str
) -> None:
    """The engine's own validator draws the same bounds: nothing in between ends as an error of ours."""
    schemas = app.openapi()["components"]["schemas"]
    by_route = {
        path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for path, operations in app.openapi()["paths"].items()
        if path in {name.partition("?")[0] for name in ROUTES}
    }
    fields = schemas[by_route[route.partition("?")[0]].rpartition("/")[2]]["properties"]
    tried = 0
    for name in SamplingFields.model_fields:
        inside, outside = edges(fields[name])
        for value in inside:
            response = await client.post(route, json={**ROUTES[route], name: value})
            # The engines of this runtime serve first come, first served.
            expected = 422 if name == "priority" else 200
            if name == "stop_token_ids" and value:  # of a larger vocabulary
                expected = 422
            assert response.status_code == expected, (name, value, response.text)
        for value in outside:
            response = await client.post(route, json={**ROUTES[route], name: value})
            assert (response.status_code, response.json()["error"]["type"]) == (
                422,
                "invalid_input",
            )
        tried += len(inside) + len(outside)
    assert tried >= 20


def test_the_temperatures_are_those_of_vllm_s_own_validator() -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    def accepted(temperature: float) -> bool:
        try:
            return SamplingParams(temperature=temperature).temperature == temperature
        except VLLMValidationError:
            return False

    def border(inside: float, outside: float) -> float:
        """The last accepted value on the way from one that is accepted to one that is not."""
        for _ in range(80):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if accepted(middle) else (inside, middle)
        return inside

    assert border(1.0, 1e6) == MOST_TEMPERATURE
    assert border(1.0, 1e-300) == LEAST_TEMPERATURE
    assert SamplingParams(temperature=1e-300).temperature == LEAST_TEMPERATURE


async def test_what_vllm_refuses_beyond_our_bounds_is_the_caller_s_error(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a later vLLM draw its bounds more tightly, requests get 422 and not 500."""
    engine = runtime.policies["ref"]
    monkeypatch.setattr("vbon.engine.vllm.engine.check_fits", lambda *_: None)
    for sampling, field in (
        (Sampling(max_tokens=2, temperature=2.5), "temperature"),
        (Sampling(max_tokens=2, top_p=1.5), "top_p"),
        (Sampling(max_tokens=0), "max_tokens"),
    ):
        for stream in (
            engine.generate([5], sampling, 2, "x"),
            engine.stream([5], sampling, 0, "x"),
        ):
            with pytest.raises(InvalidInputError) as refused:
                await anext(stream)
            assert refused.value.field == field
