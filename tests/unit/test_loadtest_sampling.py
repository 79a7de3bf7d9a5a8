"""The sampling of a load test, its differences from the checkpoints' cards, and answers that it cuts off."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.loadtest.analysis.quality import quality_of
from service.loadtest.analysis.warnings import result_warnings, sampling_warnings
from service.loadtest.config import LoadTestSettings
from service.loadtest.defaults import settled
from service.loadtest.load.server_description import describe_server
from service.loadtest.load.targets import NativeTarget, OpenAiTarget, Reading
from service.loadtest.observation import Observation, ScoredAnswer
from service.loadtest.plan import Variant
from service.loadtest.report.tables import quality_table, throughput_table
from service.loadtest.schema import ServedMode, ServerDescription
from tests.unit.fakes import make_runtime
from tests.unit.test_loadtest_service import clocked, measure, served
from vbon.engine.fake import FakeEngine
from vbon.prompts import Prompt
from vbon.storage.training_record import TrainingRecord


def told(**default: float) -> ServerDescription:
    return ServerDescription(url="", api="native", modes=[], default_sampling=default)


@pytest.mark.parametrize(
    ("settings", "server", "expected"),
    [
        ({}, told(), (40, 1.0)),
        ({}, told(max_tokens=40, temperature=0.7), (40, 0.7)),
        ({"max_tokens": 7}, told(max_tokens=40, temperature=0.7), (7, 0.7)),
        ({"temperature": 0}, told(max_tokens=40, temperature=0.7), (40, 0.0)),
    ],
)
def test_what_the_settings_leave_out_is_the_servers(
    settings: dict[str, Any], server: ServerDescription, expected: tuple[int, float]
) -> None:
    found = settled(LoadTestSettings(**settings), server, [])
    assert (found.max_tokens, found.temperature) == expected == found.sampling


async def test_the_server_takes_it_from_the_card(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps({"identity": {"max_new_tokens": 5}}))
    engines = {"ref": FakeEngine("ref"), "vbon": FakeEngine(str(tmp_path))}
    async with served(make_runtime(engines=engines)) as url:
        settings = LoadTestSettings(url=url)
        server = await asyncio.to_thread(describe_server, settings, Console(quiet=True))
    assert settled(settings, server, []).sampling == (5, 1.0)


def server_with_cards() -> ServerDescription:
    def record(**identity: object) -> TrainingRecord:
        return TrainingRecord.model_validate({"identity": identity})

    modes = [
        ServedMode(name="ref", reranks=False),
        ServedMode(name="bon", reranks=True),
        ServedMode(name="a", reranks=False, training=record(max_new_tokens=40, temperature=1.0)),
        ServedMode(
            name="b", reranks=False, training=record(max_new_tokens=32, missing_eos_reward=-20.0)
        ),
    ]
    return ServerDescription(url="", api="native", modes=modes)


def test_each_checkpoint_that_is_measured_otherwise_than_trained_is_told() -> None:
    settings = LoadTestSettings(max_tokens=40, temperature=1.0)
    server = server_with_cards()
    assert sampling_warnings(settings, server, ["ref", "bon", "a"]) == []
    assert sampling_warnings(settings, server, ["a", "bon@b", "b"]) == [
        "b: max_tokens is 40, but the checkpoint was trained and measured with 32. Its KL, win rate and "
        "reward are not those of its card.",
        "b: the checkpoint's own figures give an answer that max_tokens cuts off a reward of -20; the "
        "service scores it like the others.",
    ]
    [warning] = sampling_warnings(
        settings.model_copy(update={"temperature": 0.5, "ignore_eos": True}), server, ["a"]
    )
    assert "temperature is 0.5" in warning
    assert "ignore_eos is on" in warning


@clocked
async def test_a_result_has_the_warning(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps({"identity": {"max_new_tokens": 5}}))
    engines = {
        "ref": FakeEngine("ref", endless=True, seconds_per_token=0.002),
        "vbon": FakeEngine(str(tmp_path), seconds_per_token=0.002),
    }
    result = await measure(
        tmp_path / "run", make_runtime(engines=engines), max_tokens=8, duration_s=0.1, n=[2]
    )
    assert any(text.startswith("vbon: max_tokens is 8") for text in result.warnings)
    # The endless policy is cut off at max_tokens in every timed and every scored answer.
    cells = {cell.variant: cell.truncated_share for cell in result.cells}
    quality = {one.variant: one.truncated_share for one in result.quality}
    assert (cells["ref"], cells["bon (N=2)"], quality["ref"], quality["bon (N=2)"]) == (1, 1, 1, 1)
    assert cells["vbon"] is not None
    assert cells["vbon"] < 1
    for table in (quality_table(result), throughput_table(result)):
        place = table.columns.index("cut off")
        assert {row[0]: row[place] for row in table.rows}["ref"] == "100%"


@pytest.mark.parametrize(("n", "share"), [(1, 2 / 4), (2, 3 / 6), (3, 3 / 4), (4, 1.0)])
def test_the_share_of_best_of_n_is_that_of_its_choices(n: int, share: float) -> None:
    """The k-th smallest of 4 is the best of n of them in C(k-1, n-1) / C(4, n) of the subsets; the smallest
    and the largest were cut off."""
    row = ScoredAnswer(
        prompt=0, sample=0, reward=4.0, candidates=[3.0, 1.0, 4.0, 2.0],
        candidates_truncated=[False, True, True, False],
    )  # fmt: skip
    found = quality_of(Variant("bon", n, True), [row], None)
    assert found.truncated_share == pytest.approx(share)


def test_the_share_of_single_samples_counts_scored_answers() -> None:
    rows = [
        ScoredAnswer(prompt=0, sample=i, reward=reward, truncated=truncated)
        for i, (reward, truncated) in enumerate([(1.0, True), (2.0, False), (None, True)])
    ]
    assert quality_of(Variant("ref"), rows, None).truncated_share == 0.5
    untold = [row.model_copy(update={"truncated": None}) for row in rows]
    assert quality_of(Variant("ref"), untold, None).truncated_share is None


USAGE = {"usage": {"completion_tokens": 3}}
NATIVE: dict[str, Any] = {
    "usage": {"generated_tokens": 3, "returned_tokens": 3},
    "timings_ms": {"queue": 0, "decode": 0, "rerank": 0, "scoring": 0},
}


@pytest.mark.parametrize(("reason", "expected"), [("length", True), ("stop", False), (None, None)])
def test_both_apis_tell_how_an_answer_ended(reason: str | None, expected: bool | None) -> None:
    def ended(target: NativeTarget | OpenAiTarget, answer: dict[str, Any]) -> bool | None:
        seen = Observation(prompt=0, due_s=0, sent_s=0)
        target.read(answer, seen)
        return seen.truncated

    native, openai = NativeTarget(8, 1.0, False, True), OpenAiTarget(8, 1.0, False, True)
    assert ended(native, NATIVE | {"finish_reason": reason}) is expected
    assert ended(openai, {**USAGE, "choices": [{"finish_reason": reason}]}) is expected
    reading = Reading()
    for chunk in (
        {"choices": [{"text": "a", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": reason}]},
        {"choices": [], **USAGE},
    ):
        openai.event("message", chunk, reading)
    assert reading.answer is not None
    assert ended(openai, reading.answer) is expected


def test_another_server_does_not_fill_the_sampling_from_the_models_file() -> None:
    """`vllm serve` takes what a request leaves out from generation_config.json."""
    body = OpenAiTarget(8, 1.0, False, False).ask(Variant("m"), Prompt(text="a")).body
    assert body == {
        "model": "m", "prompt": "a", "max_tokens": 8, "temperature": 1.0, "stream": False,
        "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    }  # fmt: skip
    server = ServerDescription(url="", api="openai", modes=[])
    [warning] = result_warnings(LoadTestSettings(), server, [], [], 1, 1)
    assert "repetition penalty" in warning
