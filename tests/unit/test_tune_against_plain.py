"""The comparison of `vbon tune against-plain`: the prompts that judge, and what both sides send."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.tune import against_plain
from service.tune.against_plain import AgainstPlainSettings, judging_prompts
from service.tune.drawing import Drawing
from service.tune.setting import setting_of
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
    setting = setting_of("bon", Drawing("ref", 1.0, 1.0, 8), 4, {})
    await against_plain._tuned_answer(pool, setting, served)(PROMPTS[0])
    plain = await against_plain._plain_answer(pool, 2, served)(PROMPTS[0])
    assert (plain.text, plain.tokens) == ("b", 6)
    for path in ("/generate?mode=bon&policy=ref", "/v1/completions"):
        assert sent[path].get("store") is (False if collects else None), path


@pytest.mark.parametrize("round_s", [math.inf, math.nan, 0.0])
def test_a_round_ends(round_s: float) -> None:
    with pytest.raises(ValidationError, match="round_s"):
        AgainstPlainSettings(round_s=round_s)
    assert json.loads(AgainstPlainSettings(round_s=1).model_dump_json())["round_s"] == 1
