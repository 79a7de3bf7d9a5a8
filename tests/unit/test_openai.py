"""OpenAI's API over ASGI with the fake engine, and with the official client over a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import openai
import pytest

from service.runtime.runtime import Runtime
from service.strategies import STRATEGIES
from tests.unit.fakes import (
    ChatEngine,
    FakeEngine,
    FakeReward,
    make_runtime,
    on_a_port,
    score_text,
    serving,
    stream,
)
from tests.unit.virtual_clock import virtually
from vbon.maths.curves import expected_best

clocked = virtually("service", "vbon", "tests.unit")

BODY: dict[str, Any] = {
    "model": "bon",
    "prompt": "the film was",
    "best_of": 8,
    "max_tokens": 12,
    "seed": 3,
}
MESSAGES = [{"role": "user", "content": "the film was"}]
CHAT = {**{key: value for key, value in BODY.items() if key != "prompt"}, "messages": MESSAGES}


def chat_runtime(**options: Any) -> Runtime:
    names = ("ref", "vbon")
    return make_runtime(engines={name: ChatEngine(f"fake-{name}", **options) for name in names})


@clocked
async def test_completion_has_openais_shape_and_the_native_answer() -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/v1/completions", json=BODY)
        native = (
            await client.post(
                "/generate?mode=bon",
                json={"prompt": "the film was", "n": 8, "max_tokens": 12, "seed": 3},
            )
        ).json()
    found = response.json()
    assert set(found) == {
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "choices",
        "usage",
        "vbon",
    }
    assert (found["object"], found["model"]) == ("text_completion", "bon")
    assert found["id"] == f"cmpl-{response.headers['x-request-id']}"
    assert found["system_fingerprint"] == "fake"
    assert found["choices"] == [
        {
            "index": 0,
            "text": native["text"],
            "logprobs": None,
            "finish_reason": native["finish_reason"],
        }
    ]
    returned = native["usage"]["returned_tokens"]
    assert found["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": returned,
        "total_tokens": 12 + returned,
    }
    added = found["vbon"]
    assert added["generated_tokens"] == native["usage"]["generated_tokens"] > returned
    for name in ("mode", "reward", "selected_index", "policy", "strategy", "sampling"):
        assert added[name] == native[name]
    assert added["candidates"] is None
    assert added["timings_ms"]["total"] > 0


@clocked
async def test_chat_completion_has_openais_shape() -> None:
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "the film"}, {"type": "text", "text": " was"}],
        }
    ]
    async with serving(chat_runtime()) as (_, client):
        found = (await client.post("/v1/chat/completions", json=CHAT)).json()
        same = (await client.post("/v1/chat/completions", json={**CHAT, "messages": parts})).json()
    (choice,) = found["choices"]
    assert found["object"] == "chat.completion"
    assert found["id"].startswith("chatcmpl-")
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert choice["message"]["role"] == "assistant"
    assert found["vbon"]["reward"] == pytest.approx(score_text(choice["message"]["content"]))
    assert same["choices"] == found["choices"]


@clocked
async def test_chat_without_a_chat_template_is_refused() -> None:
    async with serving(make_runtime()) as (_, client):
        for extra in ({}, {"stream": True}):
            response = await client.post("/v1/chat/completions", json={**CHAT, **extra})
            assert response.status_code == 422
            assert response.json()["error"]["param"] == "messages"
            assert "chat template" in response.json()["error"]["message"]


@pytest.mark.parametrize("mode", ["ref", "vbon", *STRATEGIES])
@clocked
async def test_each_mode_is_a_model(mode: str) -> None:
    async with serving(make_runtime()) as (_, client):
        listed = (await client.get("/v1/models")).json()
        one = (await client.get(f"/v1/models/{mode}")).json()
        found = (await client.post("/v1/completions", json={**BODY, "model": mode})).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["ref", "vbon", *STRATEGIES]
    assert one in listed["data"]
    assert (one["object"], one["owned_by"], one["max_model_len"]) == ("model", "vbon", 256)
    assert found["model"] == found["vbon"]["mode"] == mode


@clocked
async def test_a_strategy_over_another_policy() -> None:
    async with serving(make_runtime()) as (_, client):
        found = (await client.post("/v1/completions", json={**BODY, "model": "bon@vbon"})).json()
        one = (await client.get("/v1/models/bon@vbon")).json()
    assert found["model"] == one["id"] == "bon@vbon"
    assert found["vbon"]["policy"]["name"] == "vbon"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("gpt-4", "ref, vbon, bon"),
        ("bon@gpt", "policy 'gpt'"),
        ("vbon@ref", "ask for mode 'ref'"),
        ("", "ref, vbon, bon"),
    ],
)
@clocked
async def test_an_unknown_model_is_not_found(model: str, words: str) -> None:
    async with serving(make_runtime()) as (_, client):
        responses = [
            await client.post("/v1/completions", json={**BODY, "model": model}),
            await client.post("/v1/completions", json={**BODY, "model": model, "stream": True}),
        ]
        if model:
            responses.append(await client.get(f"/v1/models/{model}"))
        metrics = (await client.get("/metrics")).text
    for response in responses:
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert words in error["message"]
    mode = model.partition("@")[0]
    label = mode if mode in {"bon", "vbon"} else "unknown"
    assert f'request_errors_total{{error="model_not_found",mode="{label}"}} 2.0' in metrics


@pytest.mark.parametrize("target", ["/v1/completions", "/v1/chat/completions"])
@clocked
async def test_a_name_that_utf8_cannot_say_is_not_found_either(target: str) -> None:
    """A lone surrogate such as JSON's ``\\ud800`` is valid in Python strings but not in UTF-8."""
    messages = [{"role": "user", "content": "a"}]
    body = {"model": "\ud800", **({"messages": messages} if "chat" in target else {"prompt": "a"})}
    async with serving(make_runtime()) as (_, client):
        response = await client.post(
            target, content=json.dumps(body), headers={"content-type": "application/json"}
        )
    assert response.status_code == 404
    assert r"'\ud800'" in response.json()["error"]["message"]


@clocked
async def test_without_a_reward_model_bon_is_no_model() -> None:
    async with serving(make_runtime(without_reward=True)) as (_, client):
        response = await client.post("/v1/completions", json=BODY)
        single = await client.post("/v1/completions", json={**BODY, "model": "ref"})
    assert response.status_code == 404
    assert "reward model" in response.json()["error"]["message"]
    assert single.json()["vbon"]["reward"] is None


@clocked
async def test_single_modes_are_scored_only_on_request() -> None:
    reward = FakeReward()
    async with serving(make_runtime(reward=reward)) as (_, client):
        plain = (await client.post("/v1/completions", json={**BODY, "model": "vbon"})).json()
        assert reward.batches == []
        body = {**BODY, "model": "vbon", "score": True}
        scored = (await client.post("/v1/completions", json=body)).json()
    assert plain["vbon"]["reward"] is None
    assert scored["vbon"]["reward"] == pytest.approx(score_text(scored["choices"][0]["text"]))


@clocked
async def test_several_prompts_are_choices_in_order() -> None:
    async with serving(make_runtime()) as (_, client):
        found = (
            await client.post("/v1/completions", json={**BODY, "prompt": ["one", "another"]})
        ).json()
        alone = (await client.post("/v1/completions", json={**BODY, "prompt": "another"})).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1]
    assert found["choices"][1]["text"] == alone["choices"][0]["text"]
    assert found["usage"]["prompt_tokens"] == 10
    assert [added["returned_tokens"] for added in found["vbon"]][1] == (
        alone["usage"]["completion_tokens"]
    )


@clocked
async def test_settings_and_extensions_are_body_fields() -> None:
    body = {
        **BODY,
        "model": "soft-bon",
        "reward_temperature": 0.25,
        "top_k": 7,
        "return_candidates": True,
        "priority": -2,
    }
    engines = {"ref": FakeEngine("fake-ref", by_priority=True)}
    async with serving(make_runtime(engines=engines)) as (_, client):
        found = (await client.post("/v1/completions", json=body)).json()["vbon"]
        wrong = await client.post("/v1/completions", json={**body, "model": "bon"})
    assert found["strategy"] == {"reward_temperature": 0.25}
    assert (found["sampling"]["top_k"], found["sampling"]["priority"]) == (7, -2)
    assert len(found["candidates"]) == 8
    assert wrong.status_code == 422
    assert wrong.json()["error"]["param"] == "reward_temperature"


@clocked
async def test_logprobs_of_the_answer() -> None:
    async with serving(chat_runtime()) as (_, client):
        found = (await client.post("/v1/completions", json={**BODY, "logprobs": 0})).json()
        chat = (await client.post("/v1/chat/completions", json={**CHAT, "logprobs": True})).json()
        native = (
            await client.post(
                "/generate?mode=bon",
                json={
                    "prompt": "the film was",
                    "n": 8,
                    "max_tokens": 12,
                    "seed": 3,
                    "logprobs": True,
                    "return_candidates": True,
                },
            )
        ).json()
    listed, text = found["choices"][0]["logprobs"], found["choices"][0]["text"]
    assert "".join(listed["tokens"]) == text
    assert listed["token_logprobs"] == native["token_logprobs"]
    assert listed["top_logprobs"] is None
    offsets = [text[offset:] for offset in listed["text_offset"]]
    assert all(
        rest.startswith(token) for rest, token in zip(offsets, listed["tokens"], strict=True)
    )
    content = chat["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == chat["choices"][0]["message"]["content"]
    assert bytes(content[0]["bytes"]).decode() == content[0]["token"]
    assert len(native["token_ids"]) == len(native["token_logprobs"])
    for candidate in native["candidates"]:
        assert candidate["cumulative_logprob"] == pytest.approx(sum(candidate["token_logprobs"]))


@clocked
async def test_what_load_testers_send_is_taken() -> None:
    neutral = {
        "n": 1,
        "frequency_penalty": 0.0,
        "presence_penalty": 0,
        "repetition_penalty": 1.0,
        "logit_bias": {},
        "echo": False,
        "suffix": None,
        "stop": None,
        "logprobs": None,
        "min_tokens": 0,
        "min_p": 0,
        "user": "me",
        "max_completion_tokens": 12,
        "top_p": 1,
        "ignore_eos": True,
    }
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/v1/completions", json={**BODY, **neutral})
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 12  # ignore_eos
    assert response.json()["vbon"]["sampling"]["ignore_eos"] is True


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 9}, "best_of", "best_of is 8, below n, the number of answers, which is 9"),
        ({"n": 129, "best_of": None}, "n", "n is 129; this server allows at most 128"),
        ({"best_of": 0}, "best_of", "greater than or equal to 1"),
        ({"best_of": 500}, "best_of", "best_of is 500; this server allows at most 128"),
        ({"frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
        ({"presence_penalty": -3}, "presence_penalty", "greater than or equal to -2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than or equal to 0.1"),
        ({"logit_bias": {"1": 200}}, "logit_bias.1", "less than or equal to 100"),
        ({"logit_bias": {"good": 1}}, "logit_bias", "valid integer"),
        ({"min_p": 1.5}, "min_p", "less than or equal to 1"),
        ({"min_tokens": 13}, "min_tokens", "min_tokens is 13, over max_tokens, which is 12"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0", "greater than or equal to 0"),
        ({"stop_token_ids": 5}, "stop_token_ids", "valid tuple"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_object'"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format",
            'needs json_schema: {"schema"',
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
            "required",
        ),
        ({"echo": True}, "echo", "supports only False"),
        ({"suffix": "x"}, "suffix", "supports only ''; this server only continues"),
        ({"logprobs": 3}, "logprobs", "0 returns the log-probabilities of the answer's tokens"),
        ({"prompt": [1, 2]}, "prompt", "token ids are not accepted"),
        ({"prompt": [[1, 2]]}, "prompt", "token ids are not accepted"),
        ({"prompt": []}, "prompt", "at least 1"),
        ({"max_completion_tokens": 5}, "body", "max_tokens and max_completion_tokens differ"),
        ({"stream_options": {"include_usage": True}}, "body", "requires stream"),
        ({"num_samples": 5}, "num_samples", "no such field; leave it out"),
        ({"tools": []}, "tools", "no such field; leave it out"),
        ({"timeout_s": 1000}, "timeout_s", "at most 120"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ],
)
@clocked
async def test_what_cannot_be_honoured_is_refused_by_name(
    changes: dict[str, Any], field: str, words: str
) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/v1/completions", json={**BODY, **changes})
    assert response.status_code == 422
    error = response.json()["error"]
    assert field in error["param"]
    assert words in error["message"]


@clocked
async def test_top_logprobs_are_refused() -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    async with serving(chat_runtime()) as (_, client):
        response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["param"] == "top_logprobs"


@clocked
async def test_errors_are_counted_under_their_model() -> None:
    async with serving(make_runtime()) as (_, client):
        await client.post("/v1/completions", json={**BODY, "model": "vbon", "top_p": 7})
        metrics = (await client.get("/metrics")).text
    assert 'vbon:request_errors_total{error="invalid_input",mode="vbon"} 1.0' in metrics


@clocked
async def test_routes_are_in_the_schema() -> None:
    async with serving(make_runtime()) as (_, client):
        schema = (await client.get("/openapi.json")).json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models"} <= set(schema["paths"])
    fields = schema["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"best_of", "reward_temperature", "top_k"} <= set(fields)


# Additions to the native route


@clocked
async def test_a_list_of_n_gives_the_curve_of_one_batch() -> None:
    body = {"prompt": "the film was", "n": [8, 1, 4, 1], "max_tokens": 12, "seed": 3}
    async with serving(make_runtime()) as (_, client):
        found = (
            await client.post("/generate?mode=bon", json={**body, "return_candidates": True})
        ).json()
        largest = (await client.post("/generate?mode=bon", json={**body, "n": 8})).json()
        other = await client.post("/generate?mode=soft-bon", json=body)
    rewards = np.array([candidate["reward"] for candidate in found["candidates"]])
    assert found["reward_curve"] == [
        {"n": n, "expected_reward": pytest.approx(expected_best(rewards, n))} for n in (1, 4, 8)
    ]
    assert found["reward_curve"][0]["expected_reward"] == pytest.approx(rewards.mean())
    assert found["reward_curve"][-1]["expected_reward"] == pytest.approx(found["reward"])
    assert (found["text"], found["sampling"]["n"]) == (largest["text"], 8)
    assert largest["reward_curve"] is None
    assert other.status_code == 422
    assert other.json()["error"]["param"] == "n"


@clocked
async def test_a_curve_says_where_too_few_were_scored() -> None:
    class Picky(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            return [None if "good" in item.completion else 1.0 for item in items]

    body = {"prompt": "the film was", "n": [1, 8], "max_tokens": 12, "seed": 3}
    async with serving(make_runtime(reward=Picky())) as (_, client):
        found = (await client.post("/generate?mode=bon", json=body)).json()
    assert found["unscored_candidates"] > 0
    assert [point["expected_reward"] for point in found["reward_curve"]] == [pytest.approx(1), None]


@pytest.mark.parametrize("n", [[], [0, 4], [4, 500], [4, "x"]])
@clocked
async def test_a_wrong_list_of_n(n: list[Any]) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/generate?mode=bon", json={"prompt": "a", "n": n})
    assert response.status_code == 422
    assert response.json()["error"]["param"].startswith("n")


@clocked
async def test_a_request_may_shorten_its_time_limit() -> None:
    engine = FakeEngine("slow", seconds_per_token=0.5)
    body = {"prompt": "the film was", "max_tokens": 12, "timeout_s": 0.1}
    async with serving(make_runtime(engines={"ref": engine})) as (_, client):
        response = await client.post("/generate?mode=bon", json=body)
        longer = await client.post("/generate?mode=bon", json={**body, "timeout_s": 121})
    assert response.status_code == 504
    assert "0.1 s (timeout_s)" in response.json()["error"]["message"]
    assert longer.status_code == 422
    assert engine.running == 0


# While the texts of the tokens are being found


class Detokenizer(FakeEngine):
    """Takes 0.03 s to decode each text."""

    asked = 0

    async def decode(self, prompt_token_ids: list[int], token_ids: list[int]) -> str:
        self.asked += 1
        await asyncio.sleep(0.03)
        return await super().decode(prompt_token_ids, token_ids)


LISTED = {**BODY, "logprobs": 0, "ignore_eos": True}
WAYS = pytest.mark.parametrize(
    "changes",
    [{}, {"stream": True}, {"model": "ref", "stream": True}, {"prompt": ["one", "another"]}],
    ids=["whole", "reranked stream", "stream", "batch"],
)


@WAYS
@clocked
async def test_the_time_limit_holds_for_the_texts_of_tokens(changes: dict[str, Any]) -> None:
    engine = Detokenizer()
    async with serving(make_runtime(engines={"ref": engine})) as (_, client):
        body = {**LISTED, **changes, "timeout_s": 0.15}
        response = await client.post("/v1/completions", json=body)
        asked = engine.asked
        await asyncio.sleep(0.05)
    assert response.status_code == (200 if "stream" in changes else 504)
    assert "0.15 s (timeout_s)" in response.text
    assert asked == engine.asked < 12


@WAYS
@clocked
async def test_a_client_that_leaves_wants_no_texts_of_tokens(changes: dict[str, Any]) -> None:
    engine = Detokenizer()
    runtime = make_runtime(engines={"ref": engine})
    async with serving(runtime) as (app, _):
        await stream(app, "/v1/completions", {**LISTED, **changes}, lambda _: engine.asked > 2)
        asked = engine.asked
        await asyncio.sleep(0.05)
    assert asked == engine.asked < 12
    assert len(runtime.in_flight) == 0


@WAYS
@pytest.mark.parametrize("limit_s", [30.0, 0.1])
@clocked
async def test_a_shutdown_waits_for_the_texts_of_tokens_too(
    changes: dict[str, Any], limit_s: float
) -> None:
    engine = Detokenizer()
    runtime = make_runtime(engines={"ref": engine})
    async with serving(runtime) as (_, client):
        asking = asyncio.create_task(client.post("/v1/completions", json={**LISTED, **changes}))
        while engine.asked == 0:  # noqa: ASYNC110
            await asyncio.sleep(0)
        ended = await runtime.in_flight.drain(limit_s)
        # `drain` ends requests by their time limits, which run out in the loop's next turn.
        for _ in range(3):
            await asyncio.sleep(0)
        asked = engine.asked
        response = await asking
    assert asked == engine.asked
    if limit_s > 1:
        assert (ended, response.status_code, '"error"' in response.text) == (0, 200, False)
    else:
        assert ended > 0
        assert response.status_code == (200 if "stream" in changes else 503)
        assert "shutting down" in response.text


@clocked
async def test_a_stream_lists_log_probabilities_only_if_asked() -> None:
    body = {**BODY, "stream": True, "return_candidates": True}
    async with serving(make_runtime()) as (app, _):
        seen = await stream(app, "/v1/completions", body)
    listed = [data["choices"][0]["logprobs"] for _, data in seen.events if data != "[DONE]"]
    assert listed == [None] * len(listed)


# The official client


@clocked
async def test_the_official_client() -> None:
    runtime = chat_runtime(seconds_per_token=0.005, endless=True)
    async with (
        on_a_port(runtime) as url,
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        assert [m.id async for m in client.models.list()] == ["ref", "vbon", *STRATEGIES]
        extra = {"best_of": 4}
        whole = await client.chat.completions.create(
            model="bon", messages=MESSAGES, max_tokens=8, seed=1, logprobs=True, extra_body=extra
        )
        assert whole.vbon["generated_tokens"] == 4 * 8
        assert whole.usage.completion_tokens == 8
        assert len(whole.choices[0].logprobs.content) == 8
        for model in ("bon", "vbon"):
            stream = await client.chat.completions.create(
                model=model,
                messages=MESSAGES,
                max_tokens=8,
                seed=1,
                extra_body=extra,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert chunks[-1].usage.completion_tokens == 8
            assert chunks[-2].choices[0].finish_reason == "length"
            if model == "bon":
                assert text == whole.choices[0].message.content
            else:
                assert len(chunks) == 1 + 8 + 1 + 1
        completion = await client.completions.create(
            model="bon@vbon", prompt="the film was", max_tokens=8, best_of=4
        )
        assert completion.choices[0].text
        with pytest.raises(openai.NotFoundError) as missing:
            await client.completions.create(model="gpt-4", prompt="a")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.UnprocessableEntityError, match="best_of"):
            await client.completions.create(model="bon", prompt="a", n=3, best_of=2)
        # A client that stops reading takes its sequence along, over a real socket too.
        stream = await client.completions.create(
            model="vbon", prompt="the film was", max_tokens=200, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        engine = runtime.policies["vbon"]
        assert isinstance(engine, FakeEngine)
        async with asyncio.timeout(60):
            while engine.running:  # noqa: ASYNC110  (the fake has no event for it)
                await asyncio.sleep(0.01)
        assert (engine.running, engine.aborted) == (0, 1)
