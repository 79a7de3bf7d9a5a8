"""The bench's contests with other programs: clients, scorer endpoint and arithmetic, over imitations."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.bench import single
from service.bench.answers import Answers
from service.bench.candidates_client import CandidatesJob, client_in_child, run_client
from service.bench.config import BenchSettings
from service.bench.contest import Contender, contest, find_width, mean_rewards, service_contender
from service.bench.harness import Bench, listening, served
from service.bench.scorer_endpoint import scorer_endpoint
from service.bench.single import beside_vllm_serve
from service.bench.vllm_serve import serve_flags
from service.bench.wire import SideError, connected, run_in_child
from tests.unit.chat_imitation import WORDS, Engine, started_scorer
from tests.unit.fakes import FakeReward, make_runtime, score_text
from vbon.prompts import Prompt
from vbon.rewards import Scorable
from vbon.rewards.remote import RemoteReward


async def test_plain_client_asks_once_each_and_takes_the_best() -> None:
    engine, reward = Engine(), FakeReward()
    scoring = await started_scorer(reward)
    async with listening(engine.app, lifespan=False) as url, scorer_endpoint(scoring) as score:
        job = CandidatesJob(f"{url}/v1/completions", "ref", score, ["a", "b", "c"], 4, 7, 2)
        found = await run_client(job)
        again = await client_in_child(job)
        with pytest.raises(SideError, match="asked for 4 candidates, got 2"):
            await client_in_child(CandidatesJob(f"{url}/short", "ref", score, ["a"], 4, 7, 1))
    await scoring.stop()
    assert found.texts == again.texts == ["good good"] * 3
    assert found.requests_per_second == pytest.approx(3 / found.seconds)
    assert len(engine.asked) == 6
    assert {(body["n"], body["max_tokens"], body["temperature"]) for body in engine.asked} == {
        (4, 7, 1.0)
    }
    assert sum(reward.batches) == 6 * 4


async def test_without_a_scorer_the_client_takes_the_only_sample() -> None:
    engine = Engine()
    async with listening(engine.app, lifespan=False) as url:
        job = CandidatesJob(f"{url}/v1/completions", "ref", None, ["a", "b"], 1, 7, 2)
        found = await client_in_child(job)
    assert sorted(found.texts) == WORDS[:2]
    assert [body["n"] for body in engine.asked] == [1, 1]


@pytest.mark.parametrize("rust", [True, False])
async def test_the_row_single_says_which_front_end_it_measures(rust: bool) -> None:
    engine, runtime = Engine(), make_runtime()
    settings = BenchSettings(requests=4, pairs=2, max_tokens=3)
    async with listening(engine.app, lifespan=False) as server, served(runtime) as url:
        bench = Bench(settings, runtime, [Prompt(text="a")], url)
        figure = await beside_vllm_serve(bench, f"{server}/v1", rust=rust)
    assert ("Rust front end" in figure.name) == rust
    assert ("no front end in Rust" in figure.detail) == (not rust)
    assert figure.value.count == 2
    assert len(engine.asked) == 4 * 3  # a warm-up and two pairs


def test_the_rust_front_end_is_a_program_beside_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(single, "find_spec", lambda _: spec)
    monkeypatch.delenv("VLLM_RUST_FRONTEND_PATH", raising=False)
    assert single.rust_front_end() is None
    program = tmp_path / "vllm-rs"
    program.touch(mode=0o644)
    assert single.rust_front_end() is None
    program.chmod(0o755)
    assert single.rust_front_end() == program
    monkeypatch.setenv("VLLM_RUST_FRONTEND_PATH", "/elsewhere/vllm-rs")
    assert single.rust_front_end() == Path("/elsewhere/vllm-rs")
    monkeypatch.delenv("VLLM_RUST_FRONTEND_PATH")
    monkeypatch.setattr(single, "find_spec", lambda _: None)
    assert single.rust_front_end() is None


async def test_scorer_endpoint_speaks_what_remote_rewards_ask() -> None:
    scoring = await started_scorer(FakeReward())
    items = [Scorable(Prompt(text="p"), text) for text in WORDS]
    async with scorer_endpoint(scoring) as url:
        remote = RemoteReward(url)
        found = await asyncio.to_thread(remote.score, items)
        remote.close()
    await scoring.stop()
    assert found == [score_text(text) for text in WORDS]


@pytest.mark.parametrize("said", [b"Connection: close\r\n", b""])
async def test_connection_opens_again_where_the_server_closes(said: bytes) -> None:
    """The server closes the connection, with or without announcing it, as with idle connections."""
    opened = []

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(1)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n" + said + b"\r\n7")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connected(f"http://127.0.0.1:{port}/x") as (connection,):
            assert [await connection.ask({}) for _ in range(3)] == [7, 7, 7]
    assert len(opened) == 3


async def test_a_failed_process_is_quoted() -> None:
    program = "import sys; sys.exit('no such luck: ' + sys.stdin.read())"
    with pytest.raises(SideError, match=r'status 1: no such luck: {"a": 1}'):
        await run_in_child([sys.executable, "-c", program], {"a": 1})


def test_engine_arguments_as_flags() -> None:
    arguments = {
        "model": "dir",
        "max_num_seqs": 256,
        "enforce_eager": True,
        "trust_remote_code": False,
        "max_model_len": None,
    }
    flags = "--model dir --max-num-seqs 256 --enforce-eager --no-trust-remote-code"
    assert serve_flags(arguments) == flags.split()


def bench_of(runtime: Any, url: str, **settings: Any) -> Bench:
    prompts = [Prompt(text=text) for text in ("one", "two", "three")]
    base: dict[str, Any] = {"pairs": 2, "n": 2, "max_tokens": 4, "bon_requests": 4}
    return Bench(BenchSettings(**{**base, **settings}), runtime, prompts, url)


async def test_contest_takes_turns_and_compares_by_prompt() -> None:
    sent: list[tuple[list[str], int]] = []

    async def answer(prompts: Sequence[str], width: int) -> Answers:
        sent.append((list(prompts), width))
        return Answers(2.0, ["good" if prompt == "one" else "bad" for prompt in prompts])

    runtime = make_runtime(gold=FakeReward())
    async with served(runtime) as url:
        bench = bench_of(runtime, url)
        first, second = service_contender(bench), Contender("other", answer, width=3)
        figure = await contest(bench, first, second, 1.2)
    assert sent == [(["one", "two", "three", "one"], 3)] * 3  # a warm-up and two pairs
    assert first.width > 0
    assert [len(texts) for texts in first.texts] == [4, 4, 4]
    assert figure.value.count == 2
    assert figure.goal == 1.2
    good, bad = score_text("good"), score_text("bad")
    for name in ("reward", "gold reward"):
        assert figure.quality[name]["second"]["mean"] == pytest.approx((good + 2 * bad) / 3)
        assert figure.quality[name]["difference"]["count"] == 3
    assert figure.as_dict()["quality"] == figure.quality


async def test_each_side_gets_the_width_at_which_it_is_fastest() -> None:
    tried: list[int] = []

    async def answer(prompts: Sequence[str], width: int) -> Answers:
        tried.append(width)
        return Answers(0.1 if len(tried) == 1 else abs(width - 190) + 1.0, list(prompts))

    contender = Contender("x", answer)
    await find_width(bench_of(None, ""), contender)
    assert tried == [256, 128, 192, 256]  # the first is a warm-up and does not count
    assert contender.width == 192


async def test_unscorable_answers_are_left_out() -> None:
    class Picky(FakeReward):
        def score(self, items: Sequence[Scorable]) -> list[float | None]:
            return [None if item.completion == "?" else len(item.completion) for item in items]

    scoring = await started_scorer(Picky())
    found = await mean_rewards(scoring, ["a", "b", "a"], [["xx", "?", "xxxx"], ["?", "?", "xxx"]])
    await scoring.stop()
    assert found == {"a": 3.0}
