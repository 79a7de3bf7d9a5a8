"""The calls of a fleet's front end, over handles that answer as Ray Serve's do, without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="a fleet needs the extra fleet")

from ray.exceptions import RayActorError
from ray.serve.context import (
    _get_serve_request_context,
    _RequestContext,
    _serve_request_context,
)

from service.fleet import registry
from service.fleet.calls import Failure, Growth, PolicyDescription
from service.fleet.engine import RayEngine
from service.fleet.scorer import RayScorer
from vbon.engine.protocol import Candidate, ModelInfo, Sampling
from vbon.errors import EngineDeadError, RewardDeadError, RewardError
from vbon.prompts import Prompt

SAMPLING = Sampling(max_tokens=4)
Answer = Callable[..., Any]


class Response:
    """Serve's response to one call: awaited, or iterated over."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.cancelled = False

    def __await__(self) -> Any:
        return self._answer.__await__()

    def __aiter__(self) -> Any:
        return self._answer

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A handle whose methods are functions of the calls' arguments; records the calls."""

    app_name, deployment_name = "calls", "part"

    def __init__(self, **methods: Answer) -> None:
        self._methods = methods
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        # The identities that Serve would give to the calls; empty for one of its own.
        self.identities: list[str] = []

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any, **kwargs: Any) -> Response:
            self.identities.append(_get_serve_request_context()._internal_request_id)
            self.calls.append((name, args, kwargs))
            return Response(self._methods[name](*args))

        return SimpleNamespace(remote=remote)


@pytest.fixture(autouse=True)
def _two_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    router = SimpleNamespace(replicas=2)
    monkeypatch.setitem(registry.ROUTERS, (Handle.app_name, Handle.deployment_name), router)


async def described() -> dict[str, PolicyDescription]:
    return {"ref": PolicyDescription(ModelInfo("p", "r", 100), False)}


async def started_engine(**methods: Answer) -> tuple[RayEngine, Handle]:
    handle = Handle(describe=described, **methods)
    engine = RayEngine(handle, "ref", "p", 1)  # type: ignore[arg-type]
    await engine.start()
    handle.calls.clear()
    return engine, handle


def candidate(index: int) -> Candidate:
    return Candidate(index, f"{index}", (index,), "stop", (0.0,))


def dying(after: int, death: Callable[[], BaseException]) -> Answer:
    """The method ``generate`` of a replica that dies after so many candidates of its first call."""
    calls = []

    async def generate(*args: Any) -> AsyncGenerator[Candidate | Failure, None]:
        indices = args[3]
        calls.append(indices)
        for count, index in enumerate(indices):
            if len(calls) == 1 and count == after:
                raise death()
            yield candidate(index)
        if len(calls) == 1 and after == len(indices):
            raise death()

    return generate


DEATHS = [RayActorError, asyncio.CancelledError]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.__name__)
@pytest.mark.parametrize("after", range(4))
async def test_each_candidate_comes_once_whenever_the_replica_dies(
    after: int, death: Callable[[], BaseException]
) -> None:
    """Ray turns the cancellation of a replica's task into one that looks like the caller's own."""
    engine, handle = await started_engine(generate=dying(after, death))
    async with aclosing(engine.generate([1] * 16, SAMPLING, 3, "x", first_index=2)) as found:
        indices = [one.index async for one in found]
    assert sorted(indices) == [2, 3, 4]
    assert engine.unfinished == 0
    wanted = [[2, 3, 4]] + ([[2, 3, 4][after:]] if after < 3 else [])
    assert [args[3] for _, args, _ in handle.calls] == wanted
    assert len({kwargs["retry_of"] for _, _, kwargs in handle.calls}) == 1


async def test_a_caller_that_is_cancelled_is_not_served_again() -> None:
    entered = asyncio.Event()

    async def generate(*_: Any) -> AsyncGenerator[Candidate, None]:
        entered.set()
        await asyncio.sleep(60)
        yield candidate(0)

    engine, handle = await started_engine(generate=generate)

    async def draw() -> None:
        async with aclosing(engine.generate([1] * 16, SAMPLING, 3, "x")) as found:
            async for _ in found:
                pass

    task = asyncio.create_task(draw())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(handle.calls) == 1
    assert engine.unfinished == 0


@pytest.mark.parametrize("finished", [True, False])
async def test_a_stream_that_has_ended_stays_ended_when_its_replica_dies(finished: bool) -> None:
    async def stream(*_: Any) -> AsyncGenerator[Growth, None]:
        yield Growth("a", (1,), (0.0,), None)
        yield Growth("b", (2,), (0.0,), "stop" if finished else None)
        raise RayActorError

    engine, handle = await started_engine(stream=stream)

    async def watch() -> str:
        text = ""
        async with aclosing(engine.stream([1] * 16, SAMPLING, 0, "x")) as partials:
            async for partial in partials:
                text = partial.text
        return text

    if finished:
        assert await watch() == "ab"
    else:
        with pytest.raises(EngineDeadError):
            await watch()
    assert len(handle.calls) == 1
    assert engine.unfinished == 0


async def test_calls_of_one_http_request_have_identities_of_their_own() -> None:
    """Serve's router forgets all but one of the calls with one identity that it places at a time."""

    async def ask(*_: Any) -> list[int]:
        return [1]

    async def stream(*_: Any) -> AsyncGenerator[Growth, None]:
        yield Growth("a", (1,), (0.0,), "stop")

    async def metrics() -> dict[str, list[Any]]:
        return {"ref": []}

    before = _serve_request_context.set(_RequestContext(_internal_request_id="the HTTP request"))
    try:
        engine, handle = await started_engine(
            ask=ask, stream=stream, metrics=metrics, generate=dying(9, RayActorError)
        )
        await engine.encode(Prompt(text="p"))
        await engine.metrics()
        for drawn in (
            engine.generate([1], SAMPLING, 2, "x"),
            engine.stream([1], SAMPLING, 0, "x"),
        ):
            async for _ in drawn:
                pass
        scorer, scoring = await started_scorer(score=scored_lengths)
        await scorer.score(Prompt(text="p"), "x")
    finally:
        _serve_request_context.reset(before)
    assert handle.identities == [""] * 5
    assert scoring.identities == [""] * 2


async def started_scorer(**methods: Answer) -> tuple[RayScorer, Handle]:
    async def describe() -> tuple[str, str]:
        return "fake", "r"

    handle = Handle(describe=describe, **methods)
    scorer = RayScorer(handle, "fake", 1)  # type: ignore[arg-type]
    await scorer.start()
    handle.calls.clear()
    return scorer, handle


async def scored_lengths(texts: Sequence[tuple[Prompt, str]], *_: Any) -> list[float]:
    return [float(len(text)) for _, text in texts]


@pytest.mark.parametrize("steps", range(6))
async def test_stopping_a_scorer_at_any_moment_leaves_nobody_waiting(steps: int) -> None:
    scorer, _ = await started_scorer(score=scored_lengths)
    waiting = [asyncio.create_task(scorer.score(Prompt(text="p"), "x" * i)) for i in range(600)]
    for _ in range(steps):
        await asyncio.sleep(0)
    await scorer.stop()
    async with asyncio.timeout(5):
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    for i, one in enumerate(ended):
        assert one == float(i) or isinstance(one, RewardError)
    assert scorer.waiting == 0


async def test_texts_that_a_dead_reward_process_did_not_score_go_to_another_replica() -> None:
    """The replica lives, and tells for each text that its reward model's process has died."""

    async def score(texts: Sequence[tuple[Prompt, str]], *_: Any) -> list[float | Failure]:
        if len(handle.calls) > 1:
            return await scored_lengths(texts)
        dead, wrong = Failure(RewardDeadError("died")), Failure(RewardError("wrong"))
        return [1.0, dead, wrong, dead]

    scorer, handle = await started_scorer(score=score)
    scores = await asyncio.gather(
        *(scorer.score(Prompt(text="p"), "x" * i) for i in range(1, 5)), return_exceptions=True
    )
    assert [one for one in scores if isinstance(one, float)] == [1.0, 2.0, 4.0]
    assert type(scores[2]) is RewardError
    [first, second] = handle.calls
    assert [text for _, text in second[1][0]] == ["xx", "xxxx"]
    assert first[2]["retry_of"] == second[2]["retry_of"]
    await scorer.stop()


async def test_texts_fail_once_if_two_reward_replicas_are_dead() -> None:
    async def score(texts: Sequence[tuple[Prompt, str]], *_: Any) -> list[float | Failure]:
        if len(handle.calls) > 1:
            raise RayActorError
        return [1.0, Failure(RewardDeadError("died"))]

    scorer, handle = await started_scorer(score=score)
    first, second = await asyncio.gather(
        *(scorer.score(Prompt(text="p"), text) for text in ("a", "b")), return_exceptions=True
    )
    assert first == 1.0
    assert isinstance(second, RewardDeadError)
    assert len(handle.calls) == 2
    await scorer.stop()
