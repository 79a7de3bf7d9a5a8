"""One contract, whatever the engine: the fake, also over the wire, and HTTP to an imitation must behave as
real vLLM does, and so must a fleet of fakes on Ray, which test_fleet.py holds to the same tests.

Real vLLM is started once a session on the tiny sandbox policy, in our care and as a server that is
reached over HTTP (see conftest).
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jsonschema
import pytest

from service.wire import WireServer
from service.wire.engine import WireEngine
from service.wire.hosted import ENGINES, HostedEngines
from service.wire.replicas import Address, FixedReplicas
from tests.unit.openai_imitation import imitation
from vbon.engine import Candidate, Engine, Partial, Sampling
from vbon.engine.fake import FakeEngine
from vbon.engine.remote.engine import RemoteEngine
from vbon.errors import InvalidInputError, NotReadyError, PromptTooLongError
from vbon.prompts import Prompt

SAMPLING = Sampling(max_tokens=8, seed=11)
PROMPT = Prompt(text="the film was")


@pytest.fixture
async def fake_engine() -> Engine:
    fake = FakeEngine(seconds_per_token=0.002)
    await fake.start()
    return fake


@pytest.fixture
async def remote_engine() -> AsyncGenerator[Engine, None]:
    async with imitation(seconds_per_token=0.002) as server:
        remote = RemoteEngine(server.url)
        await remote.start()
        try:
            yield remote
        finally:
            await remote.stop()


@pytest.fixture
async def wire_engine(fake_engine: Engine, tmp_path: Path) -> AsyncGenerator[Engine, None]:
    server = WireServer(f"ipc://{tmp_path}/s", HostedEngines({"ref": fake_engine}), ENGINES)
    await server.start()
    addresses = {"only": Address(server.address, server.secret)}
    engine = WireEngine(FixedReplicas("ref", ENGINES, addresses), "ref", "fake", 20)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
        await server.stop()


# Not async: the real engine's fixtures run commands that have an event loop of their own.
@pytest.fixture(
    params=[
        "fake_engine",
        "wire_engine",
        "remote_engine",
        pytest.param("vllm_ref", marks=pytest.mark.vllm),
        pytest.param("vllm_over_http", marks=pytest.mark.vllm),
    ]
)
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(request.param)


async def draw(engine: Engine, sampling: Sampling, n: int, name: str) -> list[Candidate]:
    stream = engine.generate(await engine.encode(PROMPT), sampling, n, name)
    async with aclosing(stream):
        return [candidate async for candidate in stream]


async def test_exactly_n_candidates_each_index_once(engine: Engine) -> None:
    candidates = await draw(engine, SAMPLING, 6, "contract-count")
    assert sorted(c.index for c in candidates) == list(range(6))
    for candidate in candidates:
        assert 1 <= len(candidate.token_ids) <= 8
        assert candidate.cumulative_logprob < 0
        assert candidate.finish_reason == "stop" or len(candidate.token_ids) == 8


async def test_same_seed_same_candidates_and_the_first_does_not_depend_on_n(engine: Engine) -> None:
    first = {c.index: c for c in await draw(engine, SAMPLING, 4, "contract-seed-a")}
    again = {c.index: c for c in await draw(engine, SAMPLING, 4, "contract-seed-b")}
    single = await draw(engine, SAMPLING, 1, "contract-seed-c")
    assert [first[i].token_ids for i in range(4)] == [again[i].token_ids for i in range(4)]
    assert single[0].token_ids == first[0].token_ids


async def test_adjacent_seeds_share_no_more_than_chance(engine: Engine) -> None:
    a = await draw(engine, Sampling(max_tokens=8, seed=1), 8, "contract-adjacent-a")
    b = await draw(engine, Sampling(max_tokens=8, seed=2), 8, "contract-adjacent-b")
    assert len({c.token_ids for c in a} & {c.token_ids for c in b}) <= 2


async def test_greedy_candidates_are_all_alike(engine: Engine) -> None:
    greedy = await draw(engine, Sampling(max_tokens=6, temperature=0.0), 3, "contract-greedy")
    assert len({c.token_ids for c in greedy}) == 1


async def test_temperatures_reach_as_far_as_vllm_s(engine: Engine) -> None:
    for temperature in (1e-300, 2.0):
        hot = Sampling(max_tokens=4, seed=1, temperature=temperature)
        assert len(await draw(engine, hot, 2, f"contract-t{temperature}")) == 2
    hotter = Sampling(max_tokens=4, temperature=2.001)
    for attempt in (draw(engine, hotter, 1, "contract-hot"), watch(engine, hotter, 1, "hot-b")):
        with pytest.raises(InvalidInputError, match="at up to 2") as refused:
            await attempt
        assert refused.value.field == "temperature"


async def test_stop_strings_end_a_candidate_and_are_not_part_of_it(engine: Engine) -> None:
    whole = (await draw(engine, SAMPLING, 1, "contract-stop-a"))[0].text
    stop = whole.split()[0]
    sampling = Sampling(max_tokens=8, seed=11, stop=(stop,))
    cut = (await draw(engine, sampling, 1, "contract-stop-b"))[0]
    assert stop not in cut.text
    assert cut.finish_reason == "stop"


async def test_too_long_a_prompt_tells_the_limit(engine: Engine) -> None:
    limit = engine.info.max_model_len
    ids = await engine.encode(PROMPT)
    sampling = Sampling(max_tokens=limit)
    with pytest.raises(PromptTooLongError, match=f"limit of {limit}"):
        async for _ in engine.generate(ids, sampling, 1, "contract-long"):
            pass


async def test_a_chat_needs_a_chat_template(engine: Engine) -> None:
    chat = Prompt(messages=({"role": "user", "content": "hello"},))
    with pytest.raises(InvalidInputError, match="chat template"):
        await engine.encode(chat)


async def test_closing_early_aborts_and_the_engine_goes_on(engine: Engine) -> None:
    sampling = Sampling(max_tokens=60, seed=3)
    stream = engine.generate(await engine.encode(PROMPT), sampling, 16, "contract-abort")
    async with aclosing(stream):
        async for _ in stream:
            break
    assert engine.alive
    assert len(await draw(engine, SAMPLING, 2, "contract-after")) == 2


async def test_a_priority_changes_no_candidate_and_is_refused_where_there_is_none(
    engine: Engine,
) -> None:
    urgent = replace(SAMPLING, priority=-1)
    plain = {c.index: c.token_ids for c in await draw(engine, SAMPLING, 2, "contract-plain")}
    ids = await engine.encode(PROMPT)
    if engine.info.by_priority:
        drawn = await draw(engine, urgent, 2, "contract-urgent")
        assert {c.index: c.token_ids for c in drawn} == plain
        assert (await watch(engine, urgent, 1, "contract-urgent-b"))[-1].token_ids == plain[1]
        scored = await engine.logprobs(ids, list(plain[0]), "contract-urgent-c", -1)
        assert len(scored) == len(plain[0])
        for edge in (-(2**63), 2**63 - 1):  # of the API's schema
            drawn = await draw(engine, replace(SAMPLING, priority=edge), 2, f"contract{edge}")
            assert {c.index: c.token_ids for c in drawn} == plain
    else:
        for attempt in (
            draw(engine, urgent, 2, "contract-urgent"),
            watch(engine, urgent, 1, "contract-urgent-b"),
            engine.logprobs(ids, list(plain[0]), "contract-urgent-c", -1),
        ):
            with pytest.raises(InvalidInputError, match="first come") as refused:
                await attempt
            assert refused.value.field == "priority"


async def test_cancelling_aborts_and_the_engine_goes_on(engine: Engine) -> None:
    task = asyncio.create_task(draw(engine, Sampling(max_tokens=60), 16, "contract-cancel"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.alive
    assert len(await draw(engine, SAMPLING, 2, "contract-after-cancel")) == 2


async def test_fake_refuses_before_it_is_started() -> None:
    with pytest.raises(NotReadyError):
        await draw(FakeEngine(), SAMPLING, 1, "contract-not-started")


async def watch(engine: Engine, sampling: Sampling, index: int, name: str) -> list[Partial]:
    stream = engine.stream(await engine.encode(PROMPT), sampling, index, name)
    async with aclosing(stream):
        return [partial async for partial in stream]


async def test_candidates_from_an_index_on_are_the_same_ones(engine: Engine) -> None:
    whole = {c.index: c for c in await draw(engine, SAMPLING, 5, "contract-whole")}
    stream = engine.generate(await engine.encode(PROMPT), SAMPLING, 2, "contract-part", 3)
    async with aclosing(stream):
        part = {c.index: c async for c in stream}
    assert part.keys() == {3, 4}
    assert [part[i].token_ids for i in (3, 4)] == [whole[i].token_ids for i in (3, 4)]


async def test_token_logprobs_add_up(engine: Engine) -> None:
    for candidate in await draw(engine, SAMPLING, 3, "contract-logprobs"):
        assert len(candidate.token_logprobs) == len(candidate.token_ids)
        assert sum(candidate.token_logprobs) == pytest.approx(candidate.cumulative_logprob)
        assert all(logprob <= 0 for logprob in candidate.token_logprobs)


async def test_the_likeliest_tokens_of_each_position(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    fakes = {"fake_engine", "wire_engine", "remote_engine", "ray_engine"}
    made_up = request.node.callspec.params["engine"] in fakes
    without = {c.index: c for c in await draw(engine, SAMPLING, 3, "contract-top-a")}
    for candidate in await draw(engine, replace(SAMPLING, top_logprobs=5), 3, "contract-top-b"):
        assert candidate.token_ids == without[candidate.index].token_ids
        assert candidate.token_logprobs == pytest.approx(
            without[candidate.index].token_logprobs, abs=1e-4
        )
        assert len(candidate.top_logprobs) == len(candidate.token_ids)
        for top, own in zip(candidate.top_logprobs, candidate.token_logprobs, strict=True):
            assert len(top) == 5
            assert list(top) == sorted(top, reverse=True)
            assert sum(map(math.exp, top)) <= 1 + 1e-4
            assert own <= top[0] + 1e-4
            if not made_up:
                assert own <= top[-1] + 1e-4 or min(abs(own - one) for one in top) < 1e-4
    assert without[0].top_logprobs is None
    assert len(await draw(engine, replace(SAMPLING, top_logprobs=20), 1, "contract-top-c")) == 1


async def test_a_stream_grows_into_the_candidate(engine: Engine) -> None:
    sampling = replace(SAMPLING, max_tokens=24, ignore_eos=True)
    whole = {c.index: c for c in await draw(engine, sampling, 3, "contract-stream-a")}
    grew = False
    # A reader that wakes late sees several steps as one, by the engines' own promise. On a busy machine that
    # can be all of them, so an engine has several streams to show that it sends more than the end.
    for attempt in range(10):
        partials = await watch(engine, sampling, 2, f"contract-stream-b{attempt}")
        for before, after in pairwise(partials):
            assert before.finish_reason is None
            assert len(before.token_ids) < len(after.token_ids)
            assert after.token_ids[: len(before.token_ids)] == before.token_ids
            assert after.text.startswith(before.text)
        last = partials[-1]
        assert (last.text, last.token_ids, last.finish_reason) == (
            whole[2].text,
            whole[2].token_ids,
            whole[2].finish_reason,
        )
        assert last.token_logprobs == pytest.approx(whole[2].token_logprobs, abs=1e-4)
        grew = grew or len(partials) > 1
        if grew:
            break
    assert grew


async def test_a_slow_reader_misses_nothing(engine: Engine) -> None:
    stream = engine.stream(await engine.encode(PROMPT), SAMPLING, 1, "contract-slow")
    async with aclosing(stream):
        async for partial in stream:
            last = partial
            await asyncio.sleep(0.05)
    whole = {c.index: c for c in await draw(engine, SAMPLING, 2, "contract-slow-whole")}
    assert last.token_ids == whole[1].token_ids
    assert last.text == whole[1].text


async def test_leaving_a_stream_aborts_it(engine: Engine) -> None:
    sampling = Sampling(max_tokens=60, seed=3)
    stream = engine.stream(await engine.encode(PROMPT), sampling, 0, "contract-leave")
    async with aclosing(stream):
        async for _ in stream:
            break
    assert len(await draw(engine, SAMPLING, 2, "contract-after-leaving")) == 2


async def test_logprobs_of_a_completion(engine: Engine, request: pytest.FixtureRequest) -> None:
    candidate = (await draw(engine, SAMPLING, 1, "contract-scored"))[0]
    ids = await engine.encode(PROMPT)
    scored = await engine.logprobs(ids, list(candidate.token_ids), "contract-scoring")
    assert len(scored) == len(candidate.token_ids)
    fakes = request.node.callspec.params["engine"] in {"fake_engine", "wire_engine", "ray_engine"}
    if not fakes:  # whose numbers are made up
        assert scored == pytest.approx(candidate.token_logprobs, abs=2e-3)
    assert await engine.logprobs(ids, [], "contract-scoring-nothing") == []


async def test_decoding_gives_the_text_of_the_candidate(engine: Engine) -> None:
    """Compare vLLM's step-by-step detokenization, which stop strings need, with ours at the end."""
    ids = await engine.encode(PROMPT)
    sampling = Sampling(max_tokens=30, seed=5, stop=("@never@",))
    step_by_step = {c.index: c for c in await draw(engine, sampling, 8, "contract-decode-a")}
    at_once = await draw(engine, Sampling(max_tokens=30, seed=5), 8, "contract-decode-b")
    for candidate in at_once:
        assert candidate.token_ids == step_by_step[candidate.index].token_ids
        assert candidate.text == step_by_step[candidate.index].text
        decoded = await engine.decode(ids, list(candidate.token_ids))
        if isinstance(engine, RemoteEngine):
            # `/detokenize` writes special tokens out, and does not tell which they are: such a policy
            # as this, that puts them into the middle of a text, needs a tokenizer here.
            decoded = re.sub("<s>|<pad>|<unk>", "", decoded)
        assert decoded == candidate.text


async def test_without_logprobs_there_are_none(engine: Engine) -> None:
    sampling = Sampling(max_tokens=8, seed=11, logprobs=False)
    with_them = {c.index: c for c in await draw(engine, SAMPLING, 3, "contract-with")}
    for candidate in await draw(engine, sampling, 3, "contract-without"):
        assert candidate.token_logprobs is None
        assert candidate.cumulative_logprob is None
        assert candidate.token_ids == with_them[candidate.index].token_ids
    last = (await watch(engine, sampling, 0, "contract-without-stream"))[-1]
    assert last.token_logprobs is None


# Parameters that steer what is sampled


def schema(**properties: object) -> dict[str, object]:
    return {
        "type": "json_schema",
        "json_schema": {
            "schema": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        },
    }


FORMATS = {
    "object": {"type": "json_object"},
    "mood": schema(mood={"enum": ["good", "bad"]}, sure={"type": "boolean"}),
}


@pytest.mark.parametrize("name", FORMATS)
async def test_a_finished_candidate_fits_the_format(engine: Engine, name: str) -> None:
    """One in eight is cut by the limit of tokens; the others are JSON, streamed and whole alike."""
    sampling = Sampling(max_tokens=64, seed=11, response_format=FORMATS[name])
    drawn = await draw(engine, sampling, 8, f"contract-format-{name}")
    finished = [candidate for candidate in drawn if candidate.finish_reason == "stop"]
    assert finished or name == "object"  # any object can go on for ever
    for candidate in finished:
        jsonschema.validate(json.loads(candidate.text), sampling.json_schema)
    last = (await watch(engine, sampling, 0, f"contract-format-stream-{name}"))[-1]
    assert last.text == {c.index: c for c in drawn}[0].text


async def test_a_format_that_cannot_be_made_is_refused(engine: Engine) -> None:
    wrong = {"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}}
    with pytest.raises(InvalidInputError):
        await draw(
            engine, Sampling(max_tokens=8, response_format=wrong), 2, "contract-wrong-format"
        )
    assert len(await draw(engine, SAMPLING, 1, "contract-after-wrong-format")) == 1


async def test_a_large_bias_decides_every_token(engine: Engine) -> None:
    token = (await draw(engine, SAMPLING, 1, "contract-bias-a"))[0].token_ids[0]
    biased = replace(SAMPLING, logit_bias={token: 100.0}, ignore_eos=True)
    for candidate in await draw(engine, biased, 3, "contract-bias-b"):
        assert set(candidate.token_ids) == {token}
    barred = replace(SAMPLING, logit_bias={token: -100.0})
    for candidate in await draw(engine, barred, 3, "contract-bias-c"):
        assert token not in candidate.token_ids


async def test_a_stop_token_ends_a_candidate_and_has_no_text(engine: Engine) -> None:
    whole = (await draw(engine, replace(SAMPLING, ignore_eos=True), 1, "contract-token-a"))[0]
    token = whole.token_ids[3]
    first = whole.token_ids.index(token)
    stopping = replace(SAMPLING, ignore_eos=True, stop_token_ids=(token,))
    cut = (await draw(engine, stopping, 1, "contract-token-b"))[0]
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert cut.finish_reason == "stop"
    before = await engine.decode(await engine.encode(PROMPT), list(cut.token_ids[:-1]))
    assert cut.text == before
    last = (await watch(engine, stopping, 0, "contract-token-c"))[-1]
    assert (last.text, last.token_ids) == (cut.text, cut.token_ids)


async def test_no_candidate_ends_before_its_least_number_of_tokens(engine: Engine) -> None:
    sampling = Sampling(max_tokens=24, seed=5, min_tokens=20)
    for candidate in await draw(engine, sampling, 8, "contract-least"):
        assert len(candidate.token_ids) >= 20
    with pytest.raises(InvalidInputError, match="min_tokens is 25, over max_tokens") as refused:
        await draw(engine, replace(sampling, min_tokens=25), 1, "contract-least-over")
    assert refused.value.field == "min_tokens"


@pytest.mark.parametrize("field", ["frequency_penalty", "presence_penalty"])
async def test_penalties_make_tokens_differ(engine: Engine, field: str) -> None:
    def distinct(candidates: list[Candidate]) -> int:
        return sum(len(set(candidate.token_ids)) for candidate in candidates)

    sampling = Sampling(max_tokens=24, seed=5, ignore_eos=True)
    plain = await draw(engine, sampling, 16, f"contract-{field}-a")
    penalised = await draw(engine, replace(sampling, **{field: 2.0}), 16, f"contract-{field}-b")
    favoured = await draw(engine, replace(sampling, **{field: -2.0}), 16, f"contract-{field}-c")
    assert distinct(favoured) < distinct(plain) < distinct(penalised)


async def test_the_least_probability_of_1_is_greedy(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    fakes = {"fake_engine", "wire_engine", "remote_engine", "ray_engine"}
    if request.node.callspec.params["engine"] in fakes:
        pytest.skip("all words of the fake and of the imitation have the same probability")
    greedy = await draw(engine, Sampling(max_tokens=6, temperature=0.0), 1, "contract-min-p-a")
    sampled = await draw(engine, Sampling(max_tokens=6, seed=2, min_p=1.0), 3, "contract-min-p-b")
    assert {candidate.token_ids for candidate in sampled} == {greedy[0].token_ids}


async def test_ids_outside_the_vocabulary_are_refused(engine: Engine) -> None:
    outside = 2**31 - 1
    for changes in ({"logit_bias": {outside: 1.0}}, {"stop_token_ids": (outside,)}):
        with pytest.raises(InvalidInputError):
            await draw(engine, replace(SAMPLING, **changes), 1, "contract-vocabulary")
    assert engine.alive
