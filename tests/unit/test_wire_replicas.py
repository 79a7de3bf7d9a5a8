"""Engines and scorers over the wire: the choice among replicas, and what becomes of calls when some die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric

from service.context.scored_by import one_reward_model
from service.wire import Timing, WireServer
from service.wire.engine import EngineStates, WireEngine
from service.wire.hosted import ENGINES, SCORER, HostedEngines, HostedScorer, ScorerState
from service.wire.replicas import Address, FixedReplicas, Replicas
from service.wire.scorer import WireScorer
from tests.unit.fakes import make_runtime, serving
from vbon.engine import Engine, Sampling
from vbon.engine.drawn_by import weights_noted
from vbon.engine.fake import FakeEngine
from vbon.engine.protocol import Candidate, Partial
from vbon.errors import (
    CandidateCountError,
    CheckpointError,
    EngineDeadError,
    EngineError,
    RewardDeadError,
    RewardError,
)
from vbon.prompts import Prompt
from vbon.trace_context import trace_headers

SAMPLING = Sampling(max_tokens=4)
TIMING = Timing(beat_s=0.05, silence_s=20)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  (another side's state)
            await asyncio.sleep(0.002)


class Host:
    """A process that serves the wire, as far as its clients can tell."""

    def __init__(self, path: Path, name: str, target: object, interface: Any) -> None:
        self.name = name
        self.server = WireServer(f"ipc://{path}/{name}", target, interface, timing=TIMING)

    @property
    def address(self) -> Address:
        return Address(self.server.address, self.server.secret)

    def die(self) -> None:
        """End as a process that is killed, once what it has sent has left it."""
        assert self.server._listener is not None
        self.server._listener.close()
        for connection in list(self.server._clients):
            connection.close()


@asynccontextmanager
async def hosts(path: Path, interface: Any, *targets: object) -> AsyncGenerator[list[Host], None]:
    async with AsyncExitStack() as stack:
        found = []
        for name, target in zip("xyzuvw", targets, strict=False):
            host = Host(path, name, target, interface)
            await host.server.start()
            stack.push_async_callback(host.server.stop)
            found.append(host)
        yield found


def fixed(found: Sequence[Host], interface: Any, **options: Any) -> FixedReplicas[Any]:
    addresses = {host.name: host.address for host in found}
    return FixedReplicas("part", interface, addresses, timing=TIMING, **options)


@asynccontextmanager
async def engine_over(
    path: Path, *engines: Engine, **options: Any
) -> AsyncGenerator[tuple[WireEngine, list[Host]], None]:
    """An engine over hosts of one engine each, all of which it is connected to."""
    for one in engines:
        await one.start()
    async with hosts(path, ENGINES, *(HostedEngines({"ref": one}) for one in engines)) as found:
        replicas: Replicas[EngineStates] = fixed(
            found, ENGINES, capacity=8, placement="prefix", **options
        )
        engine = WireEngine(replicas, "ref", "p", 20)
        await engine.start()
        await eventually(lambda: len(replicas.ready()) == len(engines))
        try:
            yield engine, found
        finally:
            await engine.stop()


async def drawn(engine: Engine, count: int = 3, first_index: int = 2) -> list[int]:
    async with aclosing(
        engine.generate([1] * 16, SAMPLING, count, "x", first_index=first_index)
    ) as found:
        return [one.index async for one in found]


def candidate(index: int) -> Candidate:
    return Candidate(index, f"{index}", (index,), "stop", (0.0,))


class Dying(FakeEngine):
    """An engine whose process dies after so many candidates, or steps of a stream, of the first call."""

    def __init__(self, calls: list[list[int]], after: int) -> None:
        super().__init__()
        self.calls, self.after = calls, after
        self.die: Callable[[], None] = lambda: None

    async def generate(  # type: ignore[override]
        self, ids: list[int], sampling: Sampling, count: int, name: str, first_index: int = 0
    ) -> AsyncGenerator[Candidate, None]:
        indices = list(range(first_index, first_index + count))
        self.calls.append(indices)
        first = len(self.calls) == 1
        for sent, index in enumerate(indices):
            if first and sent == self.after:
                await self._death()
            yield candidate(index)
        if first and self.after == len(indices):
            await self._death()

    async def stream(
        self, ids: list[int], sampling: Sampling, index: int, name: str
    ) -> AsyncGenerator[Partial, None]:
        self.calls.append([index])
        texts = ["", " sharp", " sharp sharp"]
        for length in (1, 2):
            if length > self.after:
                await self._death()
            finish: Any = "stop" if length == 2 else None
            yield Partial(index, texts[length], (7,) * length, finish, (0.0,) * length)
        await self._death()

    async def _death(self) -> None:
        await asyncio.sleep(0)  # what was sent in this turn is on its way
        await asyncio.sleep(0)
        self.die()
        await asyncio.sleep(60)


@asynccontextmanager
async def dying(path: Path, after: int) -> AsyncGenerator[tuple[WireEngine, list[list[int]]], None]:
    calls: list[list[int]] = []
    engines = [Dying(calls, after) for _ in range(2)]
    async with engine_over(path, *engines) as (engine, found):
        for one, host in zip(engines, found, strict=True):
            one.die = host.die
        yield engine, calls


@pytest.mark.parametrize("after", range(4))
async def test_each_candidate_comes_once_whenever_the_replica_dies(
    tmp_path: Path, after: int
) -> None:
    async with dying(tmp_path, after) as (engine, calls):
        assert sorted(await drawn(engine)) == [2, 3, 4]
        assert engine.unfinished == 0
        assert calls == [[2, 3, 4]] + ([[2, 3, 4][after:]] if after < 3 else [])


@pytest.mark.parametrize("after", [1, 2])
async def test_a_stream_that_has_ended_stays_ended_when_its_replica_dies(
    tmp_path: Path, after: int
) -> None:
    async with dying(tmp_path, after) as (engine, calls):
        text = ""

        async def watch() -> None:
            nonlocal text
            async with aclosing(engine.stream([1] * 16, SAMPLING, 0, "x")) as partials:
                async for partial in partials:
                    text = partial.text

        if after == 2:
            await watch()
            assert len(calls) == 1
        else:  # the other one dies too
            with pytest.raises(EngineDeadError, match="has died"):
                await watch()
            assert len(calls) == 2
        assert text.startswith(" sharp")
        assert engine.unfinished == 0


class Greedy(FakeEngine):
    """An engine whose next token depends on all tokens before it, and which dies after so many of a call."""

    def __init__(self, path: str = "same") -> None:
        super().__init__(path)
        self.calls: list[tuple[int, Sampling]] = []
        self.die: Callable[[], None] = lambda: None
        self.deaths: list[int] = []

    async def stream(
        self, ids: list[int], sampling: Sampling, index: int, name: str
    ) -> AsyncGenerator[Partial, None]:
        self.calls.append((len(ids), sampling))
        after = self.deaths.pop() if self.deaths else None
        tokens: tuple[int, ...] = ()
        while len(tokens) < sampling.max_tokens:
            if after == len(tokens):
                await asyncio.sleep(0)  # what was sent in this turn is on its way
                await asyncio.sleep(0)
                self.die()
                await asyncio.sleep(60)
            tokens += (random.Random(f"{[*ids, *tokens]}{sampling.seed}").randrange(8),)
            finish: Any = "length" if len(tokens) == sampling.max_tokens else None
            text = await self.decode(ids, list(tokens))
            yield Partial(index, text, tokens, finish, (-0.5,) * len(tokens))


async def grown(engine: Engine, sampling: Sampling) -> list[Partial]:
    async with asyncio.timeout(20), aclosing(engine.stream([1] * 16, sampling, 0, "x")) as partials:
        return [one async for one in partials]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("after", range(7))
async def test_a_stream_whose_replica_dies_is_the_same_from_another_one(
    tmp_path: Path, after: int, seed: int | None
) -> None:
    """At temperature 0 the rest is drawn after what has come; with a seed all is drawn again."""
    sampling = Sampling(max_tokens=6, temperature=0.0 if seed is None else 1.0, seed=seed)
    alone = Greedy()
    await alone.start()
    expected = (await grown(alone, sampling))[-1]
    engines = [Greedy(), Greedy()]
    async with engine_over(tmp_path, *engines) as (engine, found):
        deaths = [after]
        for one, host in zip(engines, found, strict=True):
            one.die, one.deaths = host.die, deaths
        steps = await grown(engine, sampling)
        last = steps[-1]
        assert (last.text, last.token_ids, last.token_logprobs) == (
            expected.text,
            expected.token_ids,
            expected.token_logprobs,
        )
        assert [len(one.token_ids) for one in steps] == sorted(
            {len(one.token_ids) for one in steps}
        )
        begun = 0 < after < 6
        assert (last.continued, last.extra_tokens) == (begun, after if begun and seed else 0)
        calls = [call for one in engines for call in one.calls]
        assert len(calls) == (1 if after == 6 else 2)
        if begun and seed is None:
            assert max(calls, key=lambda call: call[0])[0] == 16 + after
            assert min(one.max_tokens for _, one in calls) == 6 - after
        assert engine.unfinished == 0


async def test_a_stream_goes_on_as_often_as_the_setting_says(tmp_path: Path) -> None:
    sampling = Sampling(max_tokens=9, temperature=0.0)
    for continuations in (0, 1, 2):
        engines = [Greedy() for _ in range(4)]
        path = tmp_path / f"{continuations}"
        path.mkdir()
        async with engine_over(path, *engines) as (engine, found):
            engine._continuations = continuations
            deaths = [2] * (continuations + 1)
            for one, host in zip(engines, found, strict=True):
                one.die, one.deaths = host.die, deaths
            with pytest.raises(EngineDeadError, match="has died"):
                await grown(engine, sampling)
            assert sum(len(one.calls) for one in engines) == continuations + 1


async def test_a_stream_that_outlasts_the_end_of_its_replicas_goes_on(tmp_path: Path) -> None:
    """Replicas that were told to end have not died of the sample, however many of them there are."""
    engines = [Greedy() for _ in range(4)]
    async with engine_over(tmp_path, *engines) as (engine, found):
        deaths = [1, 1, 1]
        tasks: list[asyncio.Task[None]] = []
        for one, host in zip(engines, found, strict=True):
            one.deaths = deaths

            def end(host: Host = host) -> None:
                async def leave() -> None:
                    await host.server.drain(0.01)
                    await host.server.stop()

                tasks.append(asyncio.create_task(leave()))

            one.die = end
        steps = await grown(engine, Sampling(max_tokens=6, temperature=0.0))
        assert (len(steps[-1].token_ids), steps[-1].continued) == (6, 3)


async def test_what_has_begun_goes_on_with_the_same_weights_only(tmp_path: Path) -> None:
    class Changed(Greedy):
        async def start(self) -> None:
            await super().start()
            self.info = replace(self.info, revision="new")

    engines = [Greedy(), Changed()]
    async with engine_over(tmp_path, *engines) as (engine, found):
        for one, host in zip(engines, found, strict=True):
            one.die, one.deaths = host.die, [3]
        with pytest.raises(EngineDeadError, match="no other replica serves its revision"):
            await grown(engine, Sampling(max_tokens=6, temperature=0.0))
        assert len(engines[0].calls + engines[1].calls) == 1


@pytest.mark.parametrize("replaced", [("old",), ()])
@pytest.mark.parametrize("stream", [False, True])
async def test_weights_that_change_in_place_meanwhile_are_named_too(
    tmp_path: Path, stream: bool, replaced: tuple[str, ...]
) -> None:
    """As where a worker's parent keeps requests; not where another engine takes the place of this one."""
    fake = FakeEngine()
    fake.info = replace(fake.info, revision="old")
    async with engine_over(tmp_path, fake) as (engine, _):
        fake._open.clear()
        with weights_noted() as used:
            drawing = asyncio.create_task(grown(engine, SAMPLING) if stream else drawn(engine))
            await eventually(lambda: engine.unfinished)
            fake.info = replace(fake.info, revision="new", replaced=replaced)
            await eventually(lambda: engine.info.revision == "new")
            fake._open.set()
            await drawing
        revisions = [info.revision for info in used[id(engine)]]
        assert revisions == ["old", *(["new"] if replaced else [])]


async def test_a_stream_without_a_first_token_begins_again_elsewhere(tmp_path: Path) -> None:
    async with dying(tmp_path, 0) as (engine, calls):
        async with aclosing(engine.stream([1] * 16, SAMPLING, 0, "x")) as partials:
            with pytest.raises(EngineDeadError) as died:  # the other one dies too
                await anext(partials)
        assert not died.value.again
        assert len(calls) == 2


async def test_a_caller_that_is_cancelled_is_not_served_again(tmp_path: Path) -> None:
    slow = [FakeEngine(seconds_per_token=10), FakeEngine(seconds_per_token=10)]
    async with engine_over(tmp_path, *slow) as (engine, _):
        task = asyncio.create_task(drawn(engine))
        await eventually(lambda: sum(one.running for one in slow) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually(lambda: sum(one.running for one in slow) == 0)
        assert sum(one.aborted for one in slow) == 3
        assert engine.unfinished == 0


class Miscounting(FakeEngine):
    async def generate(  # type: ignore[override]
        self, ids: list[int], sampling: Sampling, count: int, name: str, first_index: int = 0
    ) -> AsyncGenerator[Candidate, None]:
        yield candidate(first_index)

    async def encode(self, prompt: Prompt) -> list[int]:
        raise ZeroDivisionError("private")

    async def metrics(self) -> list[Metric]:
        metric = Metric("vllm:running", "Sequences", "gauge")
        metric.add_sample("vllm:running", {"engine": "0"}, 2.0)
        return [metric]


async def test_what_a_replica_does_wrong_is_the_error_of_its_call(tmp_path: Path) -> None:
    async with engine_over(tmp_path, Miscounting()) as (engine, _):
        with pytest.raises(CandidateCountError, match="returned 1 candidates; 3"):
            await drawn(engine)
        with pytest.raises(EngineError, match="ZeroDivisionError") as failed:
            await engine.encode(Prompt(text="x"))
        assert "private" not in str(failed.value)
        [metric] = await engine.metrics()
        expected = (await Miscounting().metrics())[0]
        assert metric == expected


async def test_what_an_engine_says_of_itself_is_known(tmp_path: Path) -> None:
    engine_there = FakeEngine("there", max_model_len=99)
    async with engine_over(tmp_path, engine_there) as (engine, [host]):
        assert engine.alive
        assert (engine.info, engine.trouble) == (engine_there.info, "")
        await engine_there.stop()
        await eventually(lambda: not engine.alive)
        assert engine.trouble == engine_there.trouble
        with pytest.raises(EngineDeadError, match="not started, or stopped"):
            await drawn(engine)
        assert await engine.metrics() == []
        await engine_there.start()
        await eventually(lambda: engine.alive)
        host.die()
        await eventually(lambda: not engine.alive)
        with pytest.raises(EngineDeadError, match="no replica runs") as died:
            await drawn(engine)
        assert died.value.again


async def test_a_start_without_replicas_tells_the_remedy(tmp_path: Path) -> None:
    nobody = {"x": Address(f"ipc://{tmp_path}/none", "")}
    engine = WireEngine(FixedReplicas("p", ENGINES, nobody), "ref", "p", 0.01, "look there")
    scorer = WireScorer(FixedReplicas("r", SCORER, nobody), "r", 0.01, "look there")
    for one in (engine, scorer):
        with pytest.raises(CheckpointError, match=r"within 0.01 s; look there"):
            await one.start()
        await one.stop()


async def test_a_replica_that_leaves_finishes_its_calls_and_gets_no_others(tmp_path: Path) -> None:
    engines = [FakeEngine(seconds_per_token=0.05, endless=True) for _ in range(2)]
    async with engine_over(tmp_path, *engines) as (engine, found):
        first = asyncio.create_task(drawn(engine))
        await eventually(lambda: sum(one.running for one in engines) == 3)
        leaving = 0 if engines[0].running else 1
        draining = asyncio.create_task(found[leaving].server.drain(20))
        # At once: the client does not know yet.
        assert sorted(await drawn(engine)) == [2, 3, 4]
        assert sorted(await first) == [2, 3, 4]
        assert await draining == 0
        assert engines[leaving].decoded_tokens == engines[1 - leaving].decoded_tokens == 12


async def test_replicas_that_are_taken_out_finish_their_calls(tmp_path: Path) -> None:
    engines = [FakeEngine(seconds_per_token=0.05, endless=True) for _ in range(2)]
    async with engine_over(tmp_path, *engines) as (engine, found):
        replicas = engine._replicas
        task = asyncio.create_task(drawn(engine))
        await eventually(lambda: sum(one.running for one in engines) == 3)
        used = 0 if engines[0].running else 1
        replicas.set({found[1 - used].name: found[1 - used].address})
        assert sorted(await drawn(engine)) == [2, 3, 4]
        assert engines[1 - used].decoded_tokens == 12
        assert sorted(await task) == [2, 3, 4]
        await eventually(lambda: found[used].server.clients == 0)


async def test_a_lost_connection_is_made_again(tmp_path: Path) -> None:
    engine_there = FakeEngine()
    async with engine_over(tmp_path, engine_there) as (engine, [host]):
        await host.server.stop()
        await eventually(lambda: not engine.alive)
        again = WireServer(
            host.server.address,
            HostedEngines({"ref": engine_there}),
            ENGINES,
            secret=host.server.secret,
        )
        await again.start()
        await eventually(lambda: engine.alive)
        assert sorted(await drawn(engine)) == [2, 3, 4]
        await engine.stop()
        await again.stop()


async def test_a_replica_that_refuses_is_told_once_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.wire.replicas._FIRST_PAUSE_S", 0.01)
    async with hosts(tmp_path, ENGINES, HostedEngines({"ref": FakeEngine()})) as [host]:
        addresses = {
            "strange": Address(host.server.address, "guess"),
            "absent": Address(f"ipc://{tmp_path}/none", ""),
        }
        replicas = FixedReplicas[EngineStates]("policy 'ref'", ENGINES, addresses)
        await replicas.use()
        await eventually(lambda: "refuses" in caplog.text)
        await asyncio.sleep(0.05)  # in which it is asked again
        await replicas.release()
    [line] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert line.startswith("policy 'ref': a replica refuses")
    assert "the secret is wrong" in line


# The choice


class Told:
    """A target that takes part in a choice and does nothing else."""

    async def watch(self) -> AsyncGenerator[EngineStates, None]:
        yield {}
        await asyncio.sleep(60)


@asynccontextmanager
async def choice(path: Path, **options: Any) -> AsyncGenerator[Replicas[Any], None]:
    async with hosts(path, ENGINES, Told(), Told(), Told()) as found:
        replicas = fixed(found, ENGINES, **options)
        await replicas.use()
        await eventually(lambda: len(replicas.ready()) == 3)
        try:
            yield replicas
        finally:
            await replicas.release()


async def test_calls_fill_no_replica_beyond_its_capacity(tmp_path: Path) -> None:
    async with choice(tmp_path, capacity=8, placement="prefix") as replicas:
        names = []
        loads = []
        for _ in range(6):
            one = replicas.choose(sequences=4, token_ids=[7] * 64)
            assert one is not None
            loads.append(one.load(4))
            loads[-1].__enter__()
            names.append(one.name)
        assert {name: names.count(name) for name in "xyz"} == dict.fromkeys("xyz", 2)
        for load in loads:
            load.__exit__(None, None, None)
        assert [one.in_flight for one in replicas.ready()] == [0, 0, 0]


async def test_calls_of_one_prompt_go_where_its_prefix_is(tmp_path: Path) -> None:
    async with choice(tmp_path, capacity=8, placement="prefix") as replicas:
        for letter in range(5):
            chosen = {
                replicas.choose(sequences=4, token_ids=[letter] * 64).name  # type: ignore[union-attr]
                for _ in range(4)
            }
            assert len(chosen) == 1


async def test_a_call_made_again_goes_to_another_replica_while_there_is_one(tmp_path: Path) -> None:
    async with choice(tmp_path, capacity=8, placement="prefix") as replicas:
        tried: set[str] = set()
        for _ in range(3):
            one = replicas.choose(token_ids=[7] * 64, tried=tried)
            assert one is not None
            assert one.name not in tried
            tried.add(one.name)
        assert replicas.choose(token_ids=[7] * 64, tried=tried) is not None
        assert replicas.choose(lambda _: False) is None


# Scorers


class ListScorer:
    """A scorer of functions of texts."""

    name, revision = "fake", "r"

    def __init__(self, score: Callable[[str], Any], alive: bool = True) -> None:
        self._score, self.alive = score, alive
        self.texts: list[str] = []
        self.traces: list[dict[str, str]] = []

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        self.texts.append(completion)
        self.traces.append(dict(trace_headers.get()))
        found = self._score(completion)
        if isinstance(found, Exception):
            raise found
        return found


@asynccontextmanager
async def scorer_over(
    path: Path, *scorers: ListScorer
) -> AsyncGenerator[tuple[WireScorer, list[Host]], None]:
    targets = [HostedScorer(lambda one=one: one) for one in scorers]  # type: ignore[misc]
    async with hosts(path, SCORER, *targets) as found:
        replicas: Replicas[ScorerState] = fixed(found, SCORER)
        scorer = WireScorer(replicas, "p", 20)
        await scorer.start()
        await eventually(lambda: len(replicas.ready()) == len(scorers))
        try:
            yield scorer, found
        finally:
            await scorer.stop()


def score_of(text: str) -> float:
    return float(len(text))


async def all_scores(scorer: WireScorer, texts: Sequence[str]) -> list[Any]:
    return await asyncio.gather(
        *(scorer.score(Prompt(text="p"), text) for text in texts), return_exceptions=True
    )


async def test_texts_of_concurrent_requests_are_scored_each_for_itself(tmp_path: Path) -> None:
    scorers = [ListScorer(score_of), ListScorer(score_of)]
    async with scorer_over(tmp_path, *scorers) as (scorer, _):
        assert (scorer.name, scorer.revision, scorer.alive) == ("fake", "r", True)
        texts = ["x" * i for i in range(700)]
        assert await all_scores(scorer, texts) == [score_of(text) for text in texts]
        assert sorted(scorers[0].texts + scorers[1].texts) == texts
        assert scorer.waiting == 0


class Revised(ListScorer):
    """A reward model whose rewards tell its revision, after some time."""

    def __init__(self, revision: str, scale: float) -> None:
        super().__init__(lambda text: scale * len(text))
        self.revision = revision

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        await asyncio.sleep(0.001 * len(completion))
        return await super().score(prompt, completion)


async def test_the_texts_of_one_request_are_scored_by_one_reward_model(tmp_path: Path) -> None:
    """While a fleet replaces one reward model by another, both are served."""
    scorers = [Revised("old", 1.0), Revised("new", -1.0)]
    texts = ["x" * n for n in (1, 2, 3, 4, 5, 6)]
    async with scorer_over(tmp_path, *scorers) as (scorer, _):

        async def request() -> list[float]:
            with one_reward_model() as kept:
                at_once = asyncio.create_task(all_scores(scorer, texts))
                await asyncio.sleep(0.002)
                found = await all_scores(scorer, texts) + await at_once
            assert kept == {id(scorer): "old" if found[0] > 0 else "new"}
            return found

        for found in await asyncio.gather(*(request() for _ in range(12))):
            assert [abs(one) for one in found] == 2 * [score_of(text) for text in texts]
            assert len({one > 0 for one in found}) == 1, found
        assert all(one.texts for one in scorers)


async def test_a_request_mixes_no_rewards_when_the_reward_model_is_replaced_below_it(
    tmp_path: Path,
) -> None:
    old, new = Revised("old", 1.0), Revised("new", -1.0)
    now = [old]
    async with hosts(tmp_path, SCORER, HostedScorer(lambda: now[0])) as found:
        scorer = WireScorer(fixed(found, SCORER), "p", 20)
        await scorer.start()
        with one_reward_model():
            assert await all_scores(scorer, ["a"]) == [1.0]
            long = asyncio.create_task(all_scores(scorer, ["x" * 100]))
            await asyncio.sleep(0.02)
            now[0] = new
            assert await all_scores(scorer, ["bb"]) == [2.0]  # the old one is in use
            assert await long == [100.0]
            # Nobody uses it any more, so that a reload stops it.
            [failed] = await all_scores(scorer, ["ccc"])
            assert type(failed) is RewardDeadError
            assert "was replaced while this request was scored" in str(failed)
        assert await all_scores(scorer, ["bb"]) == [-2.0]
        await scorer.stop()


async def test_traces_of_one_request_reach_the_replica_and_mixed_ones_do_not(
    tmp_path: Path,
) -> None:
    there = ListScorer(score_of)
    async with scorer_over(tmp_path, there) as (scorer, _):

        async def one(trace: dict[str, str]) -> None:
            trace_headers.set(trace)
            await scorer.score(Prompt(text="p"), "x")

        await one({"traceparent": "a"})
        await asyncio.gather(*(asyncio.create_task(one({"traceparent": t})) for t in "ab"))
        assert there.traces == [{"traceparent": "a"}, {}, {}]


@pytest.mark.parametrize("steps", range(6))
async def test_stopping_a_scorer_at_any_moment_leaves_nobody_waiting(
    tmp_path: Path, steps: int
) -> None:
    async with scorer_over(tmp_path, ListScorer(score_of)) as (scorer, _):
        texts = ["x" * i for i in range(600)]
        waiting = asyncio.ensure_future(all_scores(scorer, texts))
        for _ in range(steps):
            await asyncio.sleep(0)
        await scorer.stop()
        async with asyncio.timeout(60):
            for text, one in zip(texts, await waiting, strict=True):
                assert one == score_of(text) or isinstance(one, RewardError)
        assert scorer.waiting == 0


async def test_texts_that_a_dead_reward_process_did_not_score_go_to_another_replica(
    tmp_path: Path,
) -> None:
    """The replica lives, and tells for each text that its reward model's process has died."""
    asked: list[str] = []

    def score(text: str) -> Any:
        asked.append(text)
        if len(asked) > 4:
            return score_of(text)
        return {"x": 1.0, "xxx": RewardError("wrong")}.get(text, RewardDeadError("died"))

    async with scorer_over(tmp_path, ListScorer(score), ListScorer(score)) as (scorer, _):
        scores = await all_scores(scorer, ["x", "xx", "xxx", "xxxx"])
        assert [one for one in scores if isinstance(one, float)] == [1.0, 2.0, 4.0]
        assert type(scores[2]) is RewardError
        assert asked == ["x", "xx", "xxx", "xxxx", "xx", "xxxx"]


async def test_texts_of_a_replica_that_dies_are_scored_by_another(tmp_path: Path) -> None:
    found: list[Host] = []

    async def never(prompt: Prompt, completion: str) -> float:
        next(host for host, one in zip(found, scorers, strict=True) if one.texts).die()
        await asyncio.sleep(60)
        return 0.0

    class Deadly(ListScorer):
        async def score(self, prompt: Prompt, completion: str) -> float | None:
            self.texts.append(completion)
            if all(one.texts for one in scorers):
                return score_of(completion)
            return await never(prompt, completion)

    scorers = [Deadly(score_of), Deadly(score_of)]
    async with scorer_over(tmp_path, *scorers) as (scorer, started):
        found += started
        assert await all_scores(scorer, ["a", "bb"]) == [1.0, 2.0]


async def test_texts_fail_once_if_two_reward_replicas_are_dead(tmp_path: Path) -> None:
    def score(text: str) -> Any:
        return 1.0 if text == "a" else RewardDeadError("died")

    scorers = [ListScorer(score), ListScorer(score), ListScorer(score)]
    async with scorer_over(tmp_path, *scorers) as (scorer, _):
        first, second = await all_scores(scorer, ["a", "b"])
        assert first == 1.0
        assert isinstance(second, RewardDeadError)
        assert sum(one.texts.count("b") for one in scorers) == 2


async def test_without_a_living_reward_model_scoring_fails_at_once(tmp_path: Path) -> None:
    there = ListScorer(score_of)
    async with scorer_over(tmp_path, there) as (scorer, _):
        there.alive = False
        await eventually(lambda: not scorer.alive)
        [failed] = await all_scores(scorer, ["a"])
        assert isinstance(failed, RewardDeadError)


async def test_a_call_for_scores_has_a_limited_size(tmp_path: Path) -> None:
    there = ListScorer(score_of)
    async with scorer_over(tmp_path, there) as (scorer, _):
        sizes = []
        call = scorer._scores

        async def counted(batch: Any) -> Any:
            sizes.append(sum(len(one.text) for one in batch))
            return await call(batch)

        scorer._scores = counted  # type: ignore[method-assign]
        texts = ["x" * 2**22] * 3
        assert await all_scores(scorer, texts) == [float(2**22)] * 3
        assert max(sizes) <= 2**23


async def test_candidates_that_are_drawn_at_once_are_of_one_revision_and_all_are_named(
    tmp_path: Path,
) -> None:
    engines = [FakeEngine(), FakeEngine()]
    for one, revision in zip(engines, ("old", "new"), strict=True):
        one.info = replace(one.info, revision=revision)
    body = {"prompt": "x" * 16, "n": 8, "max_tokens": 12}
    async with engine_over(tmp_path, *engines) as (engine, _):
        engine._replicas._affinity = None  # so that streams of one request go to both
        async with serving(make_runtime(engines={"ref": engine, "vbon": engine})) as (_, client):
            for mode, number in (("bon", 1), ("speculative-rejection", 2)):
                answer = (await client.post(f"/generate?mode={mode}", json=body)).json()
                named = [
                    *answer["policy"].get("earlier_revisions", []),
                    answer["policy"]["revision"],
                ]
                assert len(named) == number
                assert set(named) <= {"old", "new"}
