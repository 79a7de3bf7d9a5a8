"""Real vLLM: after a change of weights in place, answers are those of an engine that was started on them."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm")

from safetensors.torch import load_file, save_file

from service.runtime.runtime import Runtime
from tests.tiny import SMALL_CACHE
from vbon.engine import Candidate, Engine, Sampling
from vbon.engine.vllm.engine import VllmEngine
from vbon.engine.vllm.host import VllmHost
from vbon.engine.vllm.options import VllmOptions
from vbon.errors import CheckpointError, EngineDeadError, ReloadRefusedError
from vbon.prompts import Prompt
from vbon.storage.checkpoints import check_checkpoint
from vbon.storage.weights_alone import NewWeights, read_beside_weights

pytestmark = [pytest.mark.vllm, pytest.mark.train, pytest.mark.usefixtures("forked_engines")]

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
# Longer than a block of the KV cache, so that a block that is kept over a change would be used.
TEXTS = ("the film was good and the plot was bad " * 3, "in this drama")
LONG = 60  # tokens
# Changes that may come before or after all of the requests that they are meant for.
ATTEMPTS = 5
Drawn = list[tuple[tuple[int, ...], tuple[float, ...] | None]]


@dataclass
class Changeable:
    """An engine of its own, and the directory that it serves.

    Attributes:
        old, new: weights for that directory; those of ``new`` are served by the session's ``vbon`` too.
    """

    engine: VllmEngine
    directory: Path
    old: Path
    new: Path

    def put(self, weights: Path) -> None:
        shutil.copyfile(weights, self.directory / WEIGHTS)

    async def change(self, weights: Path, *, keep_requests: bool = False) -> None:
        self.put(weights)
        new = await self.engine.check_weights(str(self.directory))
        await self.engine.change_weights(new, keep_requests=keep_requests)


@pytest.fixture(scope="module")
async def changeable(
    sandbox: Path, chat_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Changeable, None]:
    """Its files are those of ``vbon``, but its weights are the reference's. Compiled, as by default."""
    directory = tmp_path_factory.mktemp("changeable") / "served"
    shutil.copytree(chat_checkpoint, directory)
    (directory / "checksums.json").unlink(missing_ok=True)
    shutil.copyfile(sandbox / "policy" / WEIGHTS, directory / WEIGHTS)
    engine = VllmEngine(VllmHost(str(directory), VllmOptions(executor="uni", args=SMALL_CACHE)))
    await engine.start()
    try:
        yield Changeable(engine, directory, sandbox / "policy" / WEIGHTS, chat_checkpoint / WEIGHTS)
    finally:
        await engine.stop()


async def greedy(engine: Engine, ids: list[int], max_tokens: int) -> Candidate:
    sampling = Sampling(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    stream = engine.generate(ids, sampling, 1, f"in-place-{id(sampling)}")
    async with aclosing(stream):
        return await anext(stream)


async def answers(engine: Engine) -> Drawn:
    found = []
    for text in TEXTS:
        ids = await engine.encode(Prompt(text=text))
        one = await greedy(engine, ids, 24)
        found.append((one.token_ids, one.token_logprobs))
    return found


async def test_answers_are_those_of_a_fresh_start_and_the_old_ones_come_back(
    changeable: Changeable, runtime: Runtime
) -> None:
    engine = changeable.engine
    old, first = await answers(engine), engine.info
    await changeable.change(changeable.new)
    assert await answers(engine) == await answers(runtime.policies["vbon"]) != old
    expected = check_checkpoint(str(changeable.directory), "causal-lm").revision
    assert (engine.info.revision, engine.info.replaced) == (expected, (first.revision,))
    await changeable.change(changeable.old)
    assert await answers(engine) == old
    assert engine.info.revision == first.revision


@pytest.mark.parametrize("overwritten", [True, False])
async def test_a_load_that_fails_half_way_leaves_the_old_answers(
    changeable: Changeable, tmp_path: Path, overwritten: bool
) -> None:
    engine = changeable.engine
    before, info = await answers(engine), engine.info
    broken = tmp_path / "broken"
    shutil.copytree(changeable.directory, broken)
    weights = load_file(changeable.new)
    late = sorted(name for name in weights if name.endswith("v_proj.weight"))[-1]
    weights[late] = weights[late][:-1].contiguous()  # the check would refuse that
    save_file(weights, broken / WEIGHTS, metadata={"format": "pt"})
    if overwritten:
        changeable.put(broken / WEIGHTS)
        broken = changeable.directory
    found = check_checkpoint(str(broken), "causal-lm")
    beside = read_beside_weights(found)
    assert beside is not None
    with pytest.raises(ReloadRefusedError, match="v_proj"):
        await engine.check_weights(str(broken))
    with pytest.raises(CheckpointError, match="cannot load the weights"):
        await engine.change_weights(NewWeights(found, beside))
    assert await answers(engine) == before
    assert engine.info == info
    await changeable.change(changeable.new)  # nothing of the failed load is left
    assert await answers(engine) != before
    await changeable.change(changeable.old)
    assert await answers(engine) == before


async def sampled(engine: Engine, ids: list[int], seed: int) -> Candidate:
    """One long sample; unlike greedy ones, its tokens differ from each other."""
    sampling = Sampling(max_tokens=LONG, seed=seed, ignore_eos=True)
    async with aclosing(engine.generate(ids, sampling, 1, f"in-place-{id(sampling)}")) as stream:
        return await anext(stream)


async def test_requests_in_flight_finish_with_the_old_weights(changeable: Changeable) -> None:
    """What the engine had not begun to decode waits and is answered by the new ones, never by both."""
    engine = changeable.engine
    ids = await engine.encode(Prompt(text="the film was"))
    old = [await sampled(engine, ids, seed) for seed in range(4)]
    for _ in range(ATTEMPTS):
        under_way = [asyncio.create_task(sampled(engine, ids, seed)) for seed in range(4)]
        while engine.unfinished < 4:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        changing = asyncio.create_task(changeable.change(changeable.new))
        answered = await asyncio.gather(*under_way)
        await changing
        new = [await sampled(engine, ids, seed) for seed in range(4)]
        await changeable.change(changeable.old)
        finished = [
            one.token_ids == before.token_ids for one, before in zip(answered, old, strict=True)
        ]
        for one, after, begun in zip(answered, new, finished, strict=True):
            assert begun or one.token_ids == after.token_ids
        assert new != old
        if any(finished):
            break
    else:
        pytest.fail("no request was in flight")
    assert [await sampled(engine, ids, seed) for seed in range(4)] == old


async def test_kept_requests_go_on_with_the_new_weights_and_no_old_cache(
    changeable: Changeable,
) -> None:
    """The first tokens have the old weights' log-probabilities and the others the new ones', exactly."""
    engine = changeable.engine
    ids = await engine.encode(Prompt(text=TEXTS[0]))
    for _ in range(ATTEMPTS):
        changeable.put(changeable.new)
        new = await engine.check_weights(str(changeable.directory))
        kept = [asyncio.create_task(sampled(engine, ids, seed)) for seed in range(4)]
        while not engine.unfinished:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        await engine.change_weights(new, keep_requests=True)
        answered = await asyncio.gather(*kept)
        by_new = [
            await engine.logprobs(ids, list(one.token_ids), "in-place-new") for one in answered
        ]
        await changeable.change(changeable.old)
        by_old = [
            await engine.logprobs(ids, list(one.token_ids), "in-place-old") for one in answered
        ]
        changed_at = []
        for one, earlier, later in zip(answered, by_old, by_new, strict=True):
            assert one.token_logprobs is not None
            assert len(one.token_ids) == LONG
            expected = [[*earlier[:at], *later[at:]] for at in range(LONG + 1)]
            fits = [
                at
                for at in range(LONG + 1)
                if pytest.approx(expected[at], abs=1e-4) == one.token_logprobs
            ]
            assert fits
            changed_at.append(fits[0])
        # On a busy machine all may have ended, or none begun.
        if any(0 < at < LONG for at in changed_at):
            return
    pytest.fail(f"no request was in flight: the weights changed at tokens {changed_at}")


async def test_an_adapter_in_use_is_not_replaced_by_what_its_path_holds_now(
    sandbox: Path, lora_checkpoint: Path, tmp_path: Path
) -> None:
    """A reload loads the new adapter beside the old one, also if the files of the old one are gone."""
    path = tmp_path / "adapter"
    shutil.copytree(lora_checkpoint / "adapter", path)
    (path / "checksums.json").unlink(missing_ok=True)
    options = VllmOptions(executor="uni", enforce_eager=True, args=SMALL_CACHE)
    host = VllmHost(str(sandbox / "policy"), options, (str(path),))
    engine = VllmEngine(host, host.adapters[str(path)])
    await engine.start()
    try:
        old = await answers(engine)
        weights = load_file(path / ADAPTER)
        other = {name: -one if "lora_B" in name else one for name, one in weights.items()}
        save_file(other, path / ADAPTER)
        second = VllmEngine(host, host.new_adapter(str(path)))
        await second.start()
        new = await answers(second)
        assert await answers(engine) == old != new
        await engine.stop()
        save_file(weights, path / ADAPTER)
        third = VllmEngine(host, host.new_adapter(str(path)))
        await third.start()
        assert (await answers(third), await answers(second)) == (old, new)
        with pytest.raises(ReloadRefusedError, match="LoRA adapter"):
            await third.check_weights(str(path))
        with pytest.raises(ReloadRefusedError, match="also serves LoRA adapters"):
            await VllmEngine(host).check_weights(str(sandbox / "policy"))
    finally:
        await host.stop()


async def test_an_engine_whose_old_weights_are_lost_is_ended_and_starts_again(
    changeable: Changeable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test: it ends the engine."""
    engine, host = changeable.engine, changeable.engine.host
    changeable.put(changeable.new)
    new = await engine.check_weights(str(changeable.directory))
    rpc = host.llm.collective_rpc

    async def failing(method: str, *args: object, **kwargs: object) -> object:
        await rpc(method, *args, **kwargs)  # type: ignore[arg-type]
        raise RuntimeError(json.dumps({"method": method}))

    monkeypatch.setattr(host.llm, "collective_rpc", failing)
    with pytest.raises(EngineDeadError, match="could not put its old weights back"):
        await engine.change_weights(new)
    async with asyncio.timeout(60):
        while engine.alive:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await engine.start()
    assert engine.info.revision == new.checkpoint.revision
