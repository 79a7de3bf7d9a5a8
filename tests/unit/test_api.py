"""The real application over ASGI with the fake engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

import httpx
import pytest
from starlette.types import Message

from service.runtime.batching_scorer import BatchingScorer
from service.runtime.runtime import Runtime
from service.settings import ServiceSettings
from service.strategies import STRATEGIES
from tests.unit.fakes import FakeReward, Irreplaceable, make_runtime, score_text, serving
from tests.unit.virtual_clock import virtually
from vbon.engine.fake import FakeEngine
from vbon.errors import CheckpointError
from vbon.rewards import Scorable

clocked = virtually("service", "vbon", "tests.unit")

BODY = {"prompt": "the film was", "n": 8, "max_tokens": 12, "seed": 3}


async def post(client: httpx.AsyncClient, mode: str | None, **changes: object) -> httpx.Response:
    body = {**BODY, **changes}
    body = {key: value for key, value in body.items() if value is not ...}
    params = {} if mode is None else {"mode": mode}
    return await client.post("/generate", params=params, json=body)


@clocked
async def test_bon_returns_the_candidate_with_the_highest_reward() -> None:
    async with serving(make_runtime()) as (_, client):
        answer = (await post(client, "bon", return_candidates=True)).json()
    candidates = answer["candidates"]
    assert [c["index"] for c in candidates] == list(range(8))
    assert [c["reward"] for c in candidates] == [
        pytest.approx(score_text(c["text"])) for c in candidates
    ]
    best = max(candidates, key=lambda c: (c["reward"], -c["index"]))
    assert answer["selected_index"] == best["index"]
    assert (answer["text"], answer["reward"]) == (best["text"], best["reward"])
    assert answer["usage"] == {
        "prompt_tokens": len("the film was"),
        "generated_tokens": sum(c["num_tokens"] for c in candidates),
        "returned_tokens": best["num_tokens"],
    }
    assert answer["unscored_candidates"] == 0


@clocked
async def test_answer_says_what_made_it() -> None:
    async with serving(make_runtime()) as (_, client):
        response = await post(client, "bon", temperature=0.7, stop="superb")
        answer = response.json()
    assert answer["sampling"] == {
        "n": 8,
        "max_tokens": 12,
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "seed": 3,
        "stop": ["superb"],
        "ignore_eos": False,
        "priority": 0,
        "min_p": 0.0,
        "min_tokens": 0,
        "stop_token_ids": [],
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": None,
        "response_format": None,
    }
    assert answer["policy"] == {"name": "ref", "path": "fake-ref", "revision": "fake"}
    assert answer["reward_model"]["path"] == "fake-reward"
    assert answer["request_id"] == response.headers["x-request-id"]
    timings = answer["timings_ms"]
    parts = timings["queue"] + timings["decode"] + timings["rerank"]
    assert 0 < parts <= timings["total"] + 0.01


@clocked
async def test_a_priority_is_refused_where_there_is_none_and_changes_no_answer() -> None:
    by_priority = {name: FakeEngine(name, by_priority=True) for name in ("ref", "vbon")}
    async with serving(make_runtime(engines=by_priority)) as (_, client):
        answers = {p: (await post(client, "treebon", priority=p)).json() for p in (0, -3)}
        beyond = await post(client, "bon", priority=2**63)
    async with serving(make_runtime()) as (_, client):
        refused = await post(client, "bon", priority=-3)
        neutral = await post(client, "bon", priority=0)
    assert answers[-3]["sampling"]["priority"] == -3
    assert answers[-3]["text"] == answers[0]["text"]
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "priority")
    assert "--engine.scheduling-policy priority" in error["message"]
    assert (neutral.status_code, beyond.status_code) == (200, 422)


@clocked
async def test_who_waits_is_admitted_by_priority() -> None:
    engine = FakeEngine("slow", seconds_per_token=0.002, by_priority=True)
    runtime = make_runtime(engines={"ref": engine}, limits={"running_sequences": 8})
    finished: list[int] = []

    async def ask(client: httpx.AsyncClient, priority: int) -> None:
        assert (await post(client, "bon", priority=priority)).status_code == 200
        finished.append(priority)

    async with serving(runtime) as (_, client):
        await asyncio.gather(*(ask(client, priority) for priority in (0, 2, 1, -1)))
    assert finished == [0, -1, 1, 2]


@clocked
async def test_single_modes_draw_one_sample_of_their_own_policy() -> None:
    async with serving(make_runtime()) as (_, client):
        ref, vbon = (await post(client, "ref")).json(), (await post(client, "vbon")).json()
    assert (ref["policy"]["name"], vbon["policy"]["name"]) == ("ref", "vbon")
    for answer in (ref, vbon):
        assert answer["sampling"]["n"] == 1
        assert answer["usage"]["generated_tokens"] == answer["usage"]["returned_tokens"]
        assert answer["reward"] == pytest.approx(score_text(answer["text"]))


@clocked
async def test_score_false_spares_the_scoring() -> None:
    reward = FakeReward()
    async with serving(make_runtime(reward=reward)) as (_, client):
        answer = (await post(client, "vbon", score=False)).json()
    assert answer["reward"] is None
    assert answer["unscored_candidates"] is None
    assert reward.batches == []


@clocked
async def test_same_seed_same_answer_other_seed_other_answer() -> None:
    async with serving(make_runtime()) as (_, client):
        first, second, other = [
            (await post(client, "bon", seed=seed, return_candidates=True)).json()
            for seed in (3, 3, 4)
        ]
    assert first["candidates"] == second["candidates"]
    shared = {c["text"] for c in first["candidates"]} & {c["text"] for c in other["candidates"]}
    assert len(shared) <= 1  # adjacent seeds must not share their candidates


@clocked
async def test_prompts_are_answered_in_order_with_totals() -> None:
    async with serving(make_runtime()) as (_, client):
        batch = (await post(client, "bon", prompt=..., prompts=["one", "another"])).json()
        single = (await post(client, "bon", prompt="another")).json()
    assert [a["usage"]["prompt_tokens"] for a in batch["answers"]] == [3, 7]
    assert batch["answers"][1]["text"] == single["text"]
    assert batch["usage"]["generated_tokens"] == sum(
        a["usage"]["generated_tokens"] for a in batch["answers"]
    )


@clocked
async def test_curl_without_a_content_type_header_works() -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.post(
            "/generate?mode=bon",
            content=json.dumps(BODY),
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
    assert response.status_code == 200


@clocked
async def test_default_mode_and_n_are_the_servers() -> None:
    async with serving(make_runtime(default_n=5)) as (_, client):
        answer = (await post(client, None, n=...)).json()
    assert (answer["mode"], answer["sampling"]["n"]) == ("bon", 5)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": ...}, "body", "exactly one of prompt, prompts and messages; got none"),
        ({"prompts": ["a"]}, "body", "got prompt, prompts"),
        ({"prompt": ..., "prompts": []}, "prompts", "at least 1"),
        ({"prompt": "x" * 250}, "prompt", "limit of 256"),
        ({"n": 0}, "n", "greater than or equal to 1 (got 0)"),
        ({"n": 129}, "n", "n is 129; this server allows at most 128"),
        ({"n": "many"}, "n", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 5000}, "max_tokens", "at most 4096"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0 (got -0.1)"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"seed": -2}, "seed", "greater than or equal to -1"),
        ({"temprature": 1}, "temprature", "this server has no such field"),
        ({"prompt": "\ud800"}, "prompt", "unicode string"),
        ({"prompt": ..., "messages": [{"role": "robot", "content": "x"}]}, "role", "robot"),
        ({"prompt": ..., "messages": [{"role": "user", "content": "x"}]}, "messages", "template"),
    ],
)
@clocked
async def test_bad_input_names_the_field_and_the_limit(
    changes: dict[str, object], field: str, words: str
) -> None:
    runtime = make_runtime()
    async with serving(runtime) as (_, client):
        body = {k: v for k, v in {**BODY, **changes}.items() if v is not ...}
        response = await client.post("/generate?mode=bon", content=json.dumps(body))
        error = response.json()["error"]
        good = await post(client, "bon")
    assert response.status_code == 422
    assert field in error["param"]
    assert words in error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    assert good.status_code == 200  # nothing else has changed


@clocked
async def test_not_a_number_is_refused_though_json_parsers_take_it() -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.post(
            "/generate?mode=bon", content='{"prompt": "a", "temperature": NaN}'
        )
    assert response.status_code == 422
    assert "finite number" in response.json()["error"]["message"]


@clocked
async def test_wrong_json_says_where() -> None:
    async with serving(make_runtime()) as (_, client):
        response = await client.post("/generate?mode=bon", content='{"prompt": "a",}')
    assert response.status_code == 422
    error = response.json()["error"]
    assert "not valid JSON" in error["message"]
    assert "character 15" in error["message"]
    assert error["param"] == "body"


@clocked
async def test_unknown_mode_lists_the_modes() -> None:
    async with serving(make_runtime()) as (_, client):
        error = (await post(client, "bond")).json()["error"]
        query = await client.post("/generate?moed=bon", json=BODY)
    assert error["param"] == "mode"
    assert "ref, vbon, bon" in error["message"]
    assert query.status_code == 422


@clocked
async def test_a_mode_without_its_model_says_what_is_missing() -> None:
    async with serving(make_runtime(without_reward=True)) as (_, client):
        error = (await post(client, "bon")).json()["error"]
        single = (await post(client, "ref")).json()
    assert "needs a reward model and none is configured" in error["message"]
    assert single["reward"] is None


@clocked
async def test_too_large_a_body_is_refused() -> None:
    async with serving(make_runtime(limits={"max_body_bytes": 2048})) as (_, client):
        response = await post(client, "bon", prompt="x" * 4000)

        async def chunks():
            for _ in range(5):
                yield b" " * 1000

        streamed = await client.post("/generate?mode=bon", content=chunks())
    for refused in (response, streamed):
        assert refused.status_code == 413
        assert "2048 bytes" in refused.json()["error"]["message"]
        assert "x-request-id" in refused.headers


@clocked
async def test_unscorable_candidates_are_passed_over_and_counted() -> None:
    class Picky(FakeReward):
        def score(self, items: list[Scorable]) -> list[float | None]:  # type: ignore[override]
            return [None if "good" in item.completion else 1.0 for item in items]

    async with serving(make_runtime(reward=Picky())) as (_, client):
        answer = (await post(client, "bon", return_candidates=True)).json()
    skipped = [c for c in answer["candidates"] if "good" in c["text"]]
    assert answer["unscored_candidates"] == len(skipped) > 0
    assert "good" not in answer["text"]


@clocked
async def test_a_failing_reward_model_is_one_clear_error_and_no_more() -> None:
    class Broken(FakeReward):
        def score(self, items: list[Scorable]) -> list[float | None]:  # type: ignore[override]
            if any("film" in (item.prompt.text or "") for item in items):
                raise RuntimeError("out of memory")
            return [1.0] * len(items)

    async with serving(make_runtime(reward=Broken())) as (_, client):
        failed = await post(client, "bon")
        fine = await post(client, "bon", prompt="another")
    assert failed.status_code == 502
    assert failed.json()["error"]["message"] == "scoring failed: RuntimeError"
    assert fine.status_code == 200


@clocked
async def test_scoring_overlaps_decoding_and_is_off_the_event_loop() -> None:
    import threading

    engine = FakeEngine("slow", seconds_per_token=0.01)
    reward = FakeReward()
    runtime = make_runtime(reward=reward, engines={"ref": engine})
    async with serving(runtime) as (_, client):
        await post(client, "bon", n=16)
    assert len(reward.batches) > 1  # the first finished were scored before the last were
    assert sum(reward.batches) == 16
    assert threading.get_ident() not in reward.threads


@clocked
async def test_scoring_is_batched_across_requests() -> None:
    reward = FakeReward(seconds=0.05)
    async with serving(make_runtime(reward=reward)) as (_, client):
        await asyncio.gather(*(post(client, "bon", seed=seed) for seed in range(6)))
    assert sum(reward.batches) == 48
    assert max(reward.batches) > 8


async def disconnect_after(
    app: object,
    seconds: float,
    target: str = "/generate?mode=bon",
    body: Mapping[str, object] = BODY | {"n": 16},
) -> list[Message]:
    """Drive the app as a server does, with a client that disconnects."""
    sent: list[Message] = []
    path, _, query = target.partition("?")
    inbox = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Message:
        if inbox:
            return inbox.pop()
        await asyncio.sleep(seconds)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": query.encode(),
        "headers": [],
        "http_version": "1.1",
        "scheme": "http",
        "asgi": {"version": "3.0"},
        "server": ("test", 80),
        "client": ("test", 1),
        "root_path": "",
    }
    await app(scope, receive, send)  # type: ignore[operator]
    return sent


@clocked
async def test_a_client_that_leaves_takes_its_sequences_along() -> None:
    engine = FakeEngine("slow", seconds_per_token=0.05)
    reward = FakeReward()
    runtime = make_runtime(reward=reward, engines={"ref": engine})
    async with serving(runtime) as (app, _):
        await disconnect_after(app, 0.12)
        assert engine.running == 0
        assert engine.aborted > 0
        assert runtime.admission.running == 0
        scored = sum(reward.batches)
        await asyncio.sleep(0.2)
        assert sum(reward.batches) == scored < 16


@clocked
async def test_overload_is_shed_with_retry_after() -> None:
    engine = FakeEngine("slow", seconds_per_token=0.05)
    runtime = make_runtime(
        engines={"ref": engine}, limits={"running_sequences": 8, "waiting_sequences": 16}
    )
    async with serving(runtime) as (_, client):
        responses = await asyncio.gather(*(post(client, "bon", seed=s) for s in range(6)))
    statuses = sorted(r.status_code for r in responses)
    assert statuses == [200, 200, 200, 429, 429, 429]
    refused = next(r for r in responses if r.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert (runtime.admission.running, runtime.admission.waiting) == (0, 0)
    queued = max(r.json()["timings_ms"]["queue"] for r in responses if r.status_code == 200)
    assert queued > 10


@clocked
async def test_a_request_past_its_time_limit_is_told_and_aborted() -> None:
    engine = FakeEngine("slow", seconds_per_token=0.5)
    runtime = make_runtime(engines={"ref": engine}, limits={"timeout_s": 0.1})
    async with serving(runtime) as (_, client):
        response = await post(client, "bon")
    assert response.status_code == 504
    assert "0.1 s" in response.json()["error"]["message"]
    assert engine.running == 0


@pytest.mark.parametrize("path", ["/readyz", "/health"])
@clocked
async def test_a_dead_engine_is_503_and_drops_readiness(path: str) -> None:
    engine = FakeEngine("mortal", seconds_per_token=0.02)
    engines = {"ref": engine, "vbon": FakeEngine()}
    runtime = make_runtime(engines=engines, restarts={"wait_s": 0})
    async with serving(runtime) as (_, client):
        ready = await client.get(path)
        pending = asyncio.create_task(post(client, "bon"))
        await asyncio.sleep(0.03)
        await engine.stop()
        failed = await pending
        after = await client.get(path)
        alive = await client.get("/healthz")
        other = await post(client, "bon")
    assert ready.status_code == 200
    assert (failed.status_code, failed.json()["error"]["type"]) == (503, "engine_dead")
    assert (after.status_code, alive.status_code, other.status_code) == (503, 200, 503)
    assert "ref has died" in after.json()["error"]["message"]
    assert "retry-after" in other.headers


@clocked
@pytest.mark.parametrize("mode", ["bon", "vbon", "treebon", "speculative-rejection"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_nobody_has_seen_is_begun_again_once_its_engine_is_back(
    mode: str, stream: bool
) -> None:
    engine = FakeEngine("mortal", seconds_per_token=0.02, endless=True)
    dying = "vbon" if mode == "vbon" else "ref"
    engines = {"ref": FakeEngine("other"), "vbon": FakeEngine("another"), dying: engine}
    runtime = make_runtime(engines=engines)
    async with serving(runtime) as (_, client):
        body = {"prompt": "x", "n": 4, "max_tokens": 4, "seed": 1, "stream": stream}
        expected = await client.post(f"/generate?mode={mode}", json=body)
        pending = asyncio.create_task(client.post(f"/generate?mode={mode}", json=body))
        await _until(lambda: engine.running, pending)
        await engine.stop()
        answer = await pending
        metrics = (await client.get("/metrics")).text
    assert answer.status_code == 200
    texts = [json.loads(_last_data(one))["text"] for one in (expected.text, answer.text)]
    assert texts[0] == texts[1]
    assert f'vbon:requests_begun_again_total{{mode="{mode}"}} 1.0' in metrics
    assert runtime.admission.own_running == 0


async def _until(condition: Callable[[], object], pending: asyncio.Task[httpx.Response]) -> None:
    while not condition():
        assert not pending.done(), (await pending).text
        await asyncio.sleep(0.001)


def _last_data(text: str) -> str:
    return text.rpartition("data: ")[2]


@clocked
async def test_what_cannot_be_begun_again_in_time_fails_with_the_engines_death() -> None:
    engine = Irreplaceable("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(engines={"ref": engine, "vbon": FakeEngine()})
    async with serving(runtime) as (_, client):
        for limits in ({"timeout_s": 0.5}, {"timeout_s": 5}):
            engine._alive = True
            pending = asyncio.create_task(post(client, "bon", max_tokens=9, **limits))
            await _until(lambda: engine.running, pending)
            engine.decoded_tokens = 1
            await engine.stop()
            failed = await pending
            assert (failed.status_code, failed.json()["error"]["type"]) == (503, "engine_dead")


@clocked
async def test_what_was_seen_is_not_begun_again() -> None:
    engine = FakeEngine("mortal", seconds_per_token=0.02, endless=True)
    runtime = make_runtime(engines={"ref": engine, "vbon": engine})
    async with serving(runtime) as (_, client):
        body = {"prompt": "x", "max_tokens": 9, "stream": True}
        pending = asyncio.create_task(client.post("/generate?mode=vbon", json=body))
        await _until(lambda: engine.decoded_tokens, pending)
        await asyncio.sleep(0.01)
        await engine.stop()
        text = (await pending).text
        metrics = (await client.get("/metrics")).text
    assert "event: token" in text
    assert "engine_dead" in _last_data(text)
    assert "requests_begun_again_total{" not in metrics


@clocked
async def test_other_modes_go_on_while_an_engine_is_dead_and_it_comes_back() -> None:
    class Stubborn(FakeEngine):
        held_back = False

        async def start(self) -> None:
            if self.held_back:
                raise CheckpointError("not yet")
            await super().start()

    engine = Stubborn("mortal")
    runtime = make_runtime(
        engines={"ref": FakeEngine(), "vbon": engine}, restarts={"backoff_s": 0.01}
    )
    async with serving(runtime) as (_, client):
        engine.held_back = True
        await engine.stop()
        dead = await post(client, "vbon")
        other = await post(client, "bon")
        while "not yet" not in runtime.status():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        ready = await client.get("/readyz")
        engine.held_back = False
        while not runtime.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        back = await post(client, "vbon")
        metrics = (await client.get("/metrics")).text
    assert (dead.status_code, dead.json()["error"]["type"]) == (503, "engine_dead")
    assert "retry-after" in dead.headers
    assert ready.status_code == 503
    assert "vbon: it could not be started: not yet" in ready.json()["error"]["message"]
    assert (other.status_code, back.status_code) == (200, 200)
    assert 'vbon:restarts_total{part="vbon"} 1.0' in metrics
    assert 'vbon:restarts_total{part="ref"} 0.0' in metrics


@clocked
async def test_without_its_reward_model_a_single_sample_is_answered_and_counted_unscored() -> None:
    runs = True
    scorer = BatchingScorer(FakeReward(), runs=lambda: runs)
    runtime = Runtime(ServiceSettings(), {"ref": FakeEngine(), "vbon": FakeEngine()}, scorer, None)
    async with serving(runtime) as (_, client):
        runs = False
        single, reranked = await post(client, "vbon"), await post(client, "bon")
        metrics = (await client.get("/metrics")).text
    assert (single.status_code, single.json()["reward"], single.json()["reward_model"]) == (
        200,
        None,
        None,
    )
    assert (reranked.status_code, reranked.json()["error"]["type"]) == (503, "reward_dead")
    assert 'vbon:unscored_candidates_total{mode="vbon"} 1.0' in metrics


@clocked
async def test_an_engine_that_returns_too_few_candidates_is_an_error() -> None:
    class Short(FakeEngine):
        async def generate(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def, override]
            stream = super().generate(*args, **kwargs)  # type: ignore[arg-type]
            async for candidate in stream:
                if candidate.index != 2:
                    yield candidate

    async with serving(make_runtime(engines={"ref": Short()})) as (_, client):
        response = await post(client, "bon")
    assert response.status_code == 500
    assert "7 candidates; 8 were requested" in response.json()["error"]["message"]


@clocked
async def test_modes_and_metrics() -> None:
    async with serving(make_runtime()) as (_, client):
        modes = (await client.get("/modes")).json()
        await post(client, "bon")
        await post(client, "vbon", n=0)
        metrics = (await client.get("/metrics")).text
    assert [(m["name"], m["default_n"]) for m in modes["modes"]] == [
        ("ref", 1),
        ("vbon", 1),
        *((name, 16) for name in STRATEGIES),
    ]
    soft = next(m for m in modes["modes"] if m["name"] == "soft-bon")
    assert soft["settings"] == {"reward_temperature": 1.0}
    assert 'vbon:request_success_total{mode="bon"} 1.0' in metrics
    assert 'vbon:candidates_total{mode="bon"} 8.0' in metrics
    assert 'vbon:request_errors_total{error="invalid_input",mode="vbon"} 1.0' in metrics
    assert 'vbon:e2e_request_latency_seconds_count{mode="bon"} 1.0' in metrics
    assert "vbon:ready 1.0" in metrics
    assert modes["records"] is True


@clocked
async def test_openapi_has_examples_and_every_route() -> None:
    async with serving(make_runtime()) as (_, client):
        schema = (await client.get("/openapi.json")).json()
        unknown = await client.get("/nowhere")
    assert {"/generate", "/compare", "/modes", "/healthz", "/readyz", "/metrics"} <= set(
        schema["paths"]
    )
    assert schema["components"]["schemas"]["GenerateRequest"]["examples"]
    assert unknown.status_code == 404
    assert unknown.json()["error"]["type"] == "not_found"


@clocked
async def test_a_list_is_looked_at_up_to_its_first_error() -> None:
    async with serving(make_runtime()) as (_, client):
        for field in ("prompts", "messages", "n", "stop"):
            wrong = {"prompt": "a"} if field in {"n", "stop"} else {}
            told = await client.post("/generate", json={**wrong, field: [[], []]})
            error = told.json()["error"]
            assert told.status_code == 422
            assert ".0" in error["message"] or "0:" in error["message"]
            assert ".1" not in error["message"], error
