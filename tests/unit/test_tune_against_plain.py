"""The comparison of `vbon tune against-plain`: the prompts that judge, and what both sides send."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.tune import against_plain
from service.tune.against_plain import (
    AgainstPlainSettings,
    auto_asked,
    check_gain,
    judging_prompts,
    setting_asked,
)
from tests.unit.test_tune_space import SERVED
from vbon.errors import DataError
from vbon.prompt_files import write_prompts
from vbon.prompts import Prompt
from vbon.study.split import split_of

PROMPTS = [Prompt(text=f"prompt {number}") for number in range(40)]
CONFIG = {"validation_share": 0.25, "test_share": 0.2, "seed": 3}


def test_the_prompts_that_chose_the_setting_do_not_judge_it(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", PROMPTS)
    settings = AgainstPlainSettings(run=tmp_path)
    found = judging_prompts(settings, {"config": CONFIG})
    assert found == split_of(PROMPTS, 0.25, 0.2, 3).parts["test"]
    assert len(found) == 8
    others = AgainstPlainSettings(run=tmp_path, prompts=tmp_path / "others.jsonl")
    write_prompts(tmp_path / "others.jsonl", PROMPTS[:3])
    assert judging_prompts(others, {"config": CONFIG}) == PROMPTS[:3]
    with pytest.raises(DataError, match="give --prompts"):
        judging_prompts(settings, {"config": {}})


@pytest.mark.parametrize("collects", [True, False])
async def test_a_server_that_collects_answers_keeps_none_of_either_side(
    monkeypatch: pytest.MonkeyPatch, collects: bool
) -> None:
    sent: dict[str, dict[str, Any]] = {}

    async def post(_: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
        sent[path] = body
        return {
            "text": "a", "choices": [{"text": "a"}, {"text": "b"}], "rewards": [None, -2.0],
            "usage": {"generated_tokens": 3, "completion_tokens": 6},
        }  # fmt: skip

    monkeypatch.setattr(against_plain, "_post", post)
    served = replace(SERVED, collects=collects)
    pool: Any = None
    for asked in (setting_asked(Path(), recommending()), auto_asked(Path(), recommending())):
        await against_plain._tuned_answer(pool, asked, served)(PROMPTS[0])
    plain = await against_plain._plain_answer(pool, 2, served)(PROMPTS[0])
    assert (plain.text, plain.tokens) == ("b", 6)
    tuned = ("/generate?mode=bon&policy=ref", "/generate?mode=auto")
    for path in (*tuned, "/v1/completions"):
        assert sent[path].get("store") is (False if collects else None), path


def recommending(**changes: Any) -> dict[str, Any]:
    """The record of a run with a recommendation."""
    sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_tokens": 8}
    found = {"mode": "bon", "policy": "ref", "n": 4, "sampling": sampling, "settings": {}}
    return {
        "recommendation": found, "status": "recommended", "level": 1.25,
        "config": {"target": "gold >= best-of-16"},
    } | changes  # fmt: skip


def test_the_tuned_side_asks_for_the_setting_or_for_the_reward_of_the_target() -> None:
    asked = setting_asked(Path("run"), recommending())
    assert asked.path == "/generate?mode=bon&policy=ref"
    assert (asked.body["n"], asked.body["top_p"], "score" in asked.body) == (4, 0.9, False)
    single = recommending()["recommendation"] | {"mode": "vbon", "policy": "vbon", "n": 1}
    asked = setting_asked(Path("run"), recommending(recommendation=single))
    assert (asked.path, asked.body["score"]) == ("/generate?mode=vbon", False)
    # Mode auto needs no recommendation.
    asked = auto_asked(Path("run"), recommending(recommendation=None, status="unmet"))
    assert asked.path == "/generate?mode=auto"
    assert asked.body == {"budget": {"reward": 1.25}, "score": False}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"recommendation": None, "status": "unmet"},
            "has no recommendation; its status is 'unmet'",
        ),
        ({"recommendation": {"mode": "bon"}}, "is not the record of `vbon tune`"),
        (
            {"level": None, "config": {"target": None}},
            "no level of a reward .* or leave out --auto",
        ),
        ({"config": {"target": "win-rate >= 0.8"}}, "no level of a reward"),
        ({"config": {"target": " win_rate>=0.8"}}, "no level of a reward"),
        ({"config": {"target": "good enough"}}, "is not the record of `vbon tune`"),
        ({"config": None}, "is not the record of `vbon tune`"),
    ],
)
def test_a_record_that_cannot_be_asked_for_says_why(record: dict[str, Any], words: str) -> None:
    ask = setting_asked if "recommendation" in record else auto_asked
    with pytest.raises(DataError, match=words):
        ask(Path("run"), recommending(**record))


@pytest.mark.parametrize(
    "models", [None, {}, {"policies": {"ref": "a"}}, {"policies": 3, "reward": 1}]
)
def test_a_record_without_its_models_is_told(models: Any) -> None:
    with pytest.raises(DataError, match=r"run/tune\.json is not the record of `vbon tune`"):
        against_plain._check_same_models(Path("run"), {"models": models}, SERVED)


@pytest.mark.parametrize(
    ("target", "gain", "words"),
    [
        ("gold >= best-of-16", "gold", None),
        ("reward >= 1", "reward", None),
        ("gold >= 1", "reward", r"weighs the reward, .* start it with --auto\.gain gold"),
        ("reward >= 1", "gold", r"weighs the gold reward, .* start it with --auto\.gain reward"),
        ("reward >= 1", None, "this server has no table"),
    ],
)
def test_a_level_is_not_asked_of_a_server_that_takes_it_for_another_reward(
    target: str, gain: str | None, words: str | None
) -> None:
    """It would be met by another setting, whose figures would look like those of the run."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("GET", "/auto/table")
        assert request.headers["authorization"] == "Bearer key"
        if gain is None:
            message = {
                "code": "not_found",
                "message": "this server has no table of measured settings",
            }
            return httpx.Response(404, json={"error": message})
        return httpx.Response(200, json={"gain": gain, "usable": 3})

    served = replace(SERVED, headers={"Authorization": "Bearer key"})
    record = recommending(config={"target": target})
    with pytest.raises(DataError, match=words) if words else nullcontext():
        check_gain(served, record, httpx.MockTransport(answer))


@pytest.mark.parametrize("round_s", [math.inf, math.nan, 0.0])
def test_a_round_ends(round_s: float) -> None:
    with pytest.raises(ValidationError, match="round_s"):
        AgainstPlainSettings(round_s=round_s)
    assert json.loads(AgainstPlainSettings(round_s=1).model_dump_json())["round_s"] == 1
