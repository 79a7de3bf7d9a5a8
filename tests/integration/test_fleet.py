"""The service as a fleet on Ray: its API, its scorer, and what becomes of requests when parts are killed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

pytest.importorskip("ray", reason="a fleet needs the extra fleet")

from tests.integration import ray_jobs
from tests.integration import test_engine_contract as contract
from tests.unit.fakes import score_text
from vbon.engine import Engine, Sampling
from vbon.errors import EngineDeadError, RewardError
from vbon.prompts import Prompt

if TYPE_CHECKING:
    from service.admission.host import SharedState
    from tests.fleet_parts import Fleet

pytestmark = pytest.mark.ray

BODY = {"prompt": "the film was " + "long " * 20, "n": 8, "max_tokens": 24, "seed": 3}
LONG = {"prompt": "p" * 200, "n": 8, "max_tokens": 400, "ignore_eos": True}
# Statuses with which a request may end when a part that it used was killed.
CLEAR = {200, 500, 502, 503, 504}


# Ray's own processes take a fifth of a core even when nothing is asked, so they end with this module.
@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray cluster."""
    from tests.fleet_parts import started_cluster

    with started_cluster():
        yield


@pytest.fixture(scope="module")
def fleet(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of fake engines on that cluster."""
    from tests.fleet_parts import Fleet

    with Fleet.started(tmp_path_factory.mktemp("fleet")) as running:
        yield running


@pytest.fixture
async def ray_engine(fleet: Fleet) -> AsyncGenerator[Engine, None]:
    engine = fleet.engine("ref")
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture(params=["ray_engine"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine of the contract's tests."""
    return request.getfixturevalue(request.param)


# Jobs come before the fleet, so that its processes do not take the cores from them.
fake_config = ray_jobs.fake_config
globals().update({name: one for name, one in vars(ray_jobs).items() if name.startswith("test_")})
globals().update({name: one for name, one in vars(contract).items() if name.startswith("test_")})


@pytest.fixture
async def client(fleet: Fleet) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with httpx.AsyncClient(base_url=fleet.url, timeout=60) as found:
        await ready(found)
        yield found


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  (other processes' states)
            await asyncio.sleep(0.05)


async def ready(client: httpx.AsyncClient) -> None:
    """Wait until both front ends, which the proxy asks in turns, are ready."""

    async def well() -> bool:
        answers = [await client.get("/readyz") for _ in range(6)]
        return all(answer.status_code == 200 for answer in answers)

    await eventually(well)


async def post(client: httpx.AsyncClient, body: dict[str, Any], mode: str = "bon") -> Any:
    answer = await client.post(f"/generate?mode={mode}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def loads(fleet: Fleet, policy: str = "ref", application: str = "vbon-test") -> list[float]:
    """The sequences that each replica of a policy decodes; none while one that died is still listed."""
    from ray import serve
    from ray.exceptions import RayActorError

    handle = serve.get_deployment_handle(f"Policy-{policy}", application)
    try:
        found = await handle.broadcast("record_autoscaling_stats").results_async()
    except RayActorError:
        return []
    return [stats["load"] for stats in found]


async def test_answers_are_those_of_the_service_without_ray(client: httpx.AsyncClient) -> None:
    from tests.unit.fakes import make_runtime, serving
    from vbon.engine.fake import FakeEngine

    through_ray = await post(client, BODY)
    engines = {name: FakeEngine("fake:2", max_model_len=4_096) for name in ("ref", "vbon")}
    async with serving(make_runtime(engines=engines)) as (_, alone):
        expected = await post(alone, BODY)
    for field in ("text", "reward", "usage", "sampling", "finish_reason"):
        assert through_ray.get(field) == expected.get(field), field


async def test_front_ends_also_answer_past_the_proxy(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    """Each connection is that of one front end, so that some of several go to either."""
    answers = []
    for _ in range(8):
        async with httpx.AsyncClient(base_url=fleet.direct_url, timeout=60) as direct:
            answers.append(await post(direct, BODY))
    through_proxy = await post(client, BODY)
    assert {answer["text"] for answer in answers} == {through_proxy["text"]}


async def test_errors_are_those_of_the_service(client: httpx.AsyncClient) -> None:
    too_long = await client.post("/generate?mode=bon", json={**BODY, "prompt": "x" * 5_000})
    assert too_long.status_code == 422
    assert "context_length_exceeded" in too_long.text
    unknown = await client.post("/generate?mode=bon", json={**BODY, "promt": "x"})
    assert unknown.json()["error"]["param"] == "promt"
    assert (await client.get("/")).status_code == 200


async def test_a_stream_arrives_while_it_is_decoded(client: httpx.AsyncClient) -> None:
    body = {"prompt": "p" * 40, "max_tokens": 200, "ignore_eos": True, "stream": True}
    pieces = []
    async with client.stream("POST", "/generate?mode=ref", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                pieces.append(json.loads(line.removeprefix("data:")))
    assert len(pieces) > 10
    assert "error" not in pieces[-1]


async def test_a_client_that_leaves_aborts_its_sequences(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    for streamed in (False, True):
        body = {**LONG, "max_tokens": 3_000, "stream": streamed}
        leaving = asyncio.create_task(client.post("/generate?mode=bon", json=body))

        async def decoding() -> bool:
            return sum(await loads(fleet)) == 8

        await eventually(decoding)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)

        async def idle() -> bool:
            return sum(await loads(fleet)) == 0

        # Decoding would take 6 s more.
        await eventually(idle, 4)


async def test_candidates_stay_at_one_replica(fleet: Fleet) -> None:
    engine = fleet.engine("ref")
    await engine.start()
    sampling = Sampling(max_tokens=1_000, seed=1, ignore_eos=True)
    for letter in "abc":
        ids = await engine.encode(Prompt(text=letter * 300))
        async with aclosing(engine.generate(ids, sampling, 16, f"stay-{letter}")) as candidates:
            task = asyncio.ensure_future(anext(candidates))

            async def decoding() -> bool:
                return sum(await loads(fleet)) == 16

            await eventually(decoding)
            assert sorted(await loads(fleet)) == [0, 16]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async def idle() -> bool:
            return sum(await loads(fleet)) == 0

        await eventually(idle)
    await engine.stop()


async def test_texts_of_concurrent_requests_are_scored_each_for_itself(fleet: Fleet) -> None:
    scorer = fleet.scorer()
    await scorer.start()
    assert (scorer.name, scorer.revision) == ("fake-reward", "fake")
    texts = [f" good{' dull' * i}" for i in range(300)]
    scores = await asyncio.gather(*(scorer.score(Prompt(text="p"), text) for text in texts))
    assert scores == [score_text(text) for text in texts]
    gone = [asyncio.create_task(scorer.score(Prompt(text="p"), "x")) for _ in range(5)]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    assert scorer.waiting == 0
    await scorer.stop()


async def test_stopping_fails_what_still_waits_for_its_score(fleet: Fleet) -> None:
    scorer = fleet.scorer()
    await scorer.start()
    waiting = [asyncio.create_task(scorer.score(Prompt(text="p"), f" {i}")) for i in range(2_000)]
    await asyncio.sleep(0)
    await scorer.stop()
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(one) for one in ended if not isinstance(one, float)} == {RewardError}


# Faults


async def all_answered(
    client: httpx.AsyncClient, kill: Callable[[], int], seeds: range
) -> dict[int, httpx.Response]:
    """Send requests, kill something while they run, and return every answer by its seed."""
    sent = {
        seed: asyncio.create_task(
            client.post("/generate?mode=bon", json={**LONG, "seed": seed, "timeout_s": 30})
        )
        for seed in seeds
    }
    await asyncio.sleep(0.4)
    assert kill() == 1
    async with asyncio.timeout(60):  # nobody waits for ever
        answers = await asyncio.gather(*sent.values())
    return dict(zip(sent, answers, strict=True))


def told(answers: dict[int, httpx.Response]) -> Counter[int]:
    for answer in answers.values():
        assert answer.status_code in CLEAR, answer.text
        assert answer.text
    return Counter(answer.status_code for answer in answers.values())


async def test_candidates_of_a_killed_policy_replica_are_drawn_again(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    seeds = range(12)
    expected = {seed: await post(client, {**LONG, "seed": seed}) for seed in seeds[:2]}
    answers = await all_answered(client, lambda: fleet.kill("Policy-ref"), seeds)
    assert told(answers) == {200: 12}
    for seed, one in expected.items():
        assert answers[seed].json()["text"] == one["text"]

    async def replaced() -> bool:
        return len(await loads(fleet)) == 2

    await eventually(replaced)
    await ready(client)


async def test_a_dead_engine_in_a_live_replica_costs_no_answer_and_is_replaced(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    from tests.fleet_parts import DEADLY

    engine = fleet.engine("ref")
    await engine.start()
    ids = await engine.encode(Prompt(text="q" * 100))
    sampling = Sampling(max_tokens=400, seed=5, ignore_eos=True)

    async def draw() -> dict[int, str]:
        async with aclosing(engine.generate(ids, sampling, 8, "dead")) as candidates:
            return {candidate.index: candidate.text async for candidate in candidates}

    expected = await draw()
    drawing = [asyncio.create_task(draw()) for _ in range(4)]
    await asyncio.sleep(0.2)
    await engine.decode([], DEADLY)  # one of the two engines
    async with asyncio.timeout(30):
        assert await asyncio.gather(*drawing) == [expected] * 4
    # The dead engine's replica has the prefix, and takes calls until Serve has looked.
    assert await draw() == expected
    await engine.stop()

    async def replaced() -> bool:
        return len(await loads(fleet)) == 2

    await eventually(replaced)
    await ready(client)


async def test_without_a_policy_replica_requests_fail_at_once_and_then_work_again(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    assert fleet.kill("Policy-vbon") == 1
    seen = set()

    async def failed() -> bool:
        async with asyncio.timeout(60):
            answer = await client.post("/generate?mode=vbon", json={**BODY, "n": 1})
        seen.add(answer.status_code)
        return answer.status_code == 200

    await eventually(failed)
    assert seen <= {200, 503}
    await ready(client)


async def test_a_killed_reward_replica_costs_no_answer(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    answers = await all_answered(client, lambda: fleet.kill("Reward"), range(20, 32))
    assert told(answers) == {200: 12}
    await ready(client)


async def test_a_killed_front_end_fails_its_own_requests_only(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    answers = await all_answered(client, lambda: fleet.kill("FrontEnd"), range(40, 52))
    counts = told(answers)
    assert counts[200] >= 1
    await ready(client)
    assert (await post(client, BODY))["text"]

    async def idle() -> bool:
        return await loads(fleet) == [0, 0]

    # Sequences of the front end that died are not decoded to their end for nobody.
    await eventually(idle)


@asynccontextmanager
async def limits_seen() -> AsyncGenerator[Callable[[], SharedState], None]:
    """The state of the limits, as one more front end sees it."""
    from ray import serve

    from service.wire.limits import limits_connector
    from tests.fleet_parts import APPLICATION

    handle = serve.get_deployment_handle("Limits", APPLICATION)

    async def place() -> Any:
        return await handle.place.remote()

    client = await limits_connector(place)()
    async with aclosing(client.stream("join", uuid4().hex, "observer")) as states:
        seen = [await anext(states)]

        async def watch() -> None:
            async for state in states:
                seen.append(state)

        watching = asyncio.create_task(watch())
        try:
            yield lambda: seen[-1]
        finally:
            client.close()
            await asyncio.gather(watching, return_exceptions=True)


async def shares(client: httpx.AsyncClient) -> set[float]:
    """Whether each of the front ends, which the proxy asks in turns, has the limits of all."""
    pages = [(await client.get("/metrics")).text for _ in range(6)]
    return {float(page.split("\nvbon:limits_shared ")[1].split()[0]) for page in pages}


async def test_limits_count_the_requests_of_all_front_ends(client: httpx.AsyncClient) -> None:
    async with limits_seen() as state:

        async def all_joined() -> bool:  # a front end may have been killed before
            return state().front_ends == 4  # two front ends, the holder, and this one

        await eventually(all_joined)
        sent = [
            asyncio.create_task(client.post("/generate?mode=bon", json={**LONG, "seed": seed}))
            for seed in range(6)
        ]

        async def counted() -> bool:
            return state().running == 48

        await eventually(counted)
        assert {(await one).status_code for one in sent} == {200}

        async def idle() -> bool:
            return state().running == 0

        await eventually(idle)


async def test_a_killed_host_of_the_limits_costs_no_answer_and_is_replaced(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    answers = await all_answered(client, lambda: fleet.kill("Limits"), range(60, 72))
    assert told(answers) == {200: 12}

    async def back() -> bool:
        return await shares(client) == {1.0}

    await eventually(back)
    async with limits_seen() as state:

        async def joined() -> bool:
            return state().front_ends == 4 and state().running == 0

        await eventually(joined)


async def test_replicas_follow_the_load_and_those_that_leave_lose_no_request(fleet: Fleet) -> None:
    sampling = Sampling(max_tokens=200, seed=5, ignore_eos=True)
    with fleet.scaled() as application:
        engine = fleet.engine("ref", application)
        await engine.start()
        ids = await engine.encode(Prompt(text="q" * 100))
        busy = True

        async def draw(samples: int, name: str) -> list[int]:
            async with aclosing(engine.generate(ids, sampling, samples, name)) as candidates:
                return sorted([candidate.index async for candidate in candidates])

        async def keep_drawing(samples: int, name: str) -> int:
            answered = 0
            while busy:
                assert await draw(samples, f"{name}-{answered}") == list(range(samples))
                answered += 1
            return answered

        async def replicas(number: int) -> bool:
            return len(await loads(fleet, application=application)) == number

        assert await replicas(1)
        # 32 sequences for a target of 8.
        drawing = [asyncio.create_task(keep_drawing(8, f"burst-{place}")) for place in range(4)]
        await eventually(lambda: replicas(3))
        busy = False
        assert min(await asyncio.gather(*drawing)) > 0
        # One sequence at a time, at whichever replica, while two of the three leave.
        busy = True
        drawing = [asyncio.create_task(keep_drawing(1, "single"))]
        await eventually(lambda: replicas(1))
        busy = False
        assert await drawing[0] > 0
        await engine.stop()


PAIR = {"prompt": "p", "sides": [{"mode": "ref"}, {"mode": "vbon"}], "max_tokens": 4}
LOAD_TEST = {"modes": ["ref"], "concurrency": [1], "rounds": 20, "duration_s": 1, "warmup_s": 0}


async def test_any_front_end_takes_verdicts_and_load_tests(client: httpx.AsyncClient) -> None:
    for _ in range(6):
        shown = await client.post("/preferences/pairs", json=PAIR)
        assert shown.status_code == 200, shown.text
        verdict = {"pair": shown.json()["pair"], "winner": "tie"}
        assert (await client.post("/preferences", json=verdict)).status_code == 200
        assert (await client.post("/preferences", json=verdict)).status_code == 404
    begun = await client.post("/loadtests", json=LOAD_TEST)
    assert begun.status_code == 202, begun.text
    run = begun.json()["id"]
    for _ in range(6):
        assert (await client.get(f"/loadtests/{run}")).json()["state"] == "running"
        assert (await client.post("/loadtests", json=LOAD_TEST)).status_code == 429

    async def measured() -> bool:
        status = (await client.get(f"/loadtests/{run}")).json()
        assert status["state"] == "running", status
        return bool(status["blocks_done"])

    await eventually(measured)
    assert (await client.delete(f"/loadtests/{run}")).status_code == 202

    async def stopped() -> bool:
        return bool((await client.get(f"/loadtests/{run}")).json()["state"] == "stopped")

    await eventually(stopped)
    link = (await client.post(f"/loadtests/{run}/report-link")).json()["url"]
    assert {(await client.get(link)).status_code for _ in range(4)} == {200}


async def test_a_killed_holder_is_replaced_and_others_go_on(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    answers = await all_answered(client, lambda: fleet.kill("Holder"), range(80, 84))
    assert told(answers) == {200: 4}
    seen = set()

    async def back() -> bool:
        answer = await client.post("/preferences/pairs", json=PAIR)
        seen.add(answer.status_code)
        return answer.status_code == 200

    await eventually(back)
    assert seen <= {200, 503}


async def test_a_stream_whose_replica_dies_ends_with_an_error(fleet: Fleet) -> None:
    engine = fleet.engine("vbon")
    await engine.start()
    ids = await engine.encode(Prompt(text="p" * 100))
    sampling = Sampling(max_tokens=2_000, seed=1, ignore_eos=True)

    async def watch() -> None:
        async with asyncio.timeout(60), aclosing(engine.stream(ids, sampling, 0, "x")) as partials:
            async for partial in partials:
                if len(partial.token_ids) > 20:
                    fleet.kill("Policy-vbon")

    with pytest.raises(EngineDeadError, match="has died"):
        await watch()
    await engine.stop()


# Changes while it is used


class SteadyLoad:
    """Requests of several modes, through the proxy and past it, one after another at each of some clients."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._over = asyncio.Event()
        self.sent = 0
        self.ended: Counter[str] = Counter()
        self.revisions: Counter[str] = Counter()

    async def client(self, url: str, mode: str, *, stream: bool) -> None:
        body = {"prompt": "p" * 60, "n": 4, "max_tokens": 40, "ignore_eos": True, "stream": stream}
        while not self._over.is_set():
            self.sent += 1
            # A connection for each, as of clients that come and go.
            async with asyncio.timeout(60), httpx.AsyncClient(base_url=url, timeout=50) as client:
                try:
                    answer = await client.post(f"/generate?mode={mode}", json=body)
                except httpx.HTTPError as error:
                    self.ended[type(error).__name__] += 1
                    continue
            self._note(answer, stream=stream)

    def _note(self, answer: httpx.Response, *, stream: bool) -> None:
        assert answer.text
        if answer.status_code != 200:
            assert answer.status_code in CLEAR, answer.text
            self.ended[f"{answer.status_code}"] += 1
            return
        text = answer.text.rpartition("data: ")[2] if stream else answer.text
        found = json.loads(text)
        if "error" in found:
            assert found["error"]["message"]
            self.ended["error event"] += 1
            return
        assert found["usage"]["returned_tokens"] == 40
        self.ended["answered"] += 1
        self.revisions[found["policy"]["revision"]] += 1

    async def during(self, change: Callable[[], None]) -> None:
        """Keep asking while something is changed, and a little longer."""
        clients = [
            asyncio.create_task(self.client(url, mode, stream=stream))
            for url in (self._fleet.url, self._fleet.direct_url)
            for mode, stream in (("bon", False), ("ref", True), ("ref", False))
        ]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(change)
        await asyncio.sleep(1)
        self._over.set()
        await asyncio.gather(*clients)
        assert self.ended.total() == self.sent


async def test_a_rolling_upgrade_to_other_weights_under_load(
    client: httpx.AsyncClient, fleet: Fleet
) -> None:
    """All parts are replaced, the front ends too, and every answer names the revision that drew it."""
    load = SteadyLoad(fleet)
    policies = {**fleet.settings.service["policies"], "ref": "fake:3"}
    await load.during(lambda: fleet.deploy(policies=policies, default_n=3))
    assert load.ended["answered"] > load.sent / 2, load.ended
    assert set(load.revisions) == {"fake:2", "fake:3"}
    await ready(client)
    body = {key: value for key, value in BODY.items() if key != "n"}
    answer = await post(client, body)
    assert (answer["policy"]["revision"], answer["sampling"]["n"]) == ("fake:3", 3)
