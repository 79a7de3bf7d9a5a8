"""A load test that names no prompts takes those of the evaluation that the server shows."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from service.loadtest.config import LoadTestSettings
from service.loadtest.load.prompts import keep_prompts, load_prompts, served_prompts
from service.loadtest.load.server_description import evaluated_prompts
from tests.unit.fakes import make_runtime, served, serving
from vbon.prompts import Prompt

CHAT = [{"role": "user", "content": "and this?"}]
LINES = ['{"prompt": "the film was"}', json.dumps({"messages": CHAT}), '{"prompt": "the film was"}']


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """An evaluation of two prompts, one of them a chat; its file of prompts has a duplicate."""
    prompts = tmp_path / "heldout.jsonl"
    prompts.write_text("\n".join(LINES) + "\n")
    file = tmp_path / "evaluation.json"
    record = {
        "created": "2026-01-01T00:00:00+00:00",
        "config": {"prompts": str(prompts), "prompt_column": None, "num_samples": 16},
        "prompts_sha256": hashlib.sha256(prompts.read_bytes()).hexdigest(),
        "prompts": 2,
        "revisions": {},
        "rows": [],
    }
    file.write_text(json.dumps(record))
    return file


def forget_settings(evaluation: Path) -> None:
    """Make it an evaluation of an earlier version, which did not tell its settings."""
    record = json.loads(evaluation.read_text())
    evaluation.write_text(json.dumps({key: record[key] for key in record if key != "config"}))


async def asked(evaluation: Path | None) -> tuple[int, dict[str, Any]]:
    runtime = make_runtime(store="none", evaluation=None if evaluation is None else str(evaluation))
    async with serving(runtime) as (_, client):
        response = await client.get("/evaluation/prompts")
    return response.status_code, response.json()


async def test_texts_and_chats_come_once_each_in_order(evaluation: Path) -> None:
    status, found = await asked(evaluation)
    assert status == 200
    text, chat = found["prompts"]
    assert text == "the film was"
    assert [(turn["role"], turn["content"]) for turn in chat["messages"]] == [("user", "and this?")]


async def test_prompts_that_are_not_those_of_the_evaluation_are_not_offered(
    evaluation: Path,
) -> None:
    status, found = await asked(None)
    assert (status, "--evaluation" in found["error"]["message"]) == (404, True)
    prompts = evaluation.parent / "heldout.jsonl"
    prompts.write_text('{"prompt": "another"}\n')
    status, found = await asked(evaluation)
    assert (status, "has changed since" in found["error"]["message"]) == (404, True)
    prompts.unlink()
    status, found = await asked(evaluation)
    assert (status, "cannot be read" in found["error"]["message"]) == (404, True)
    forget_settings(evaluation)
    status, found = await asked(evaluation)
    assert (status, "does not tell its prompts" in found["error"]["message"]) == (404, True)


async def test_a_load_test_takes_them_unless_it_names_others_and_keeps_them(
    evaluation: Path, tmp_path: Path
) -> None:
    own = [Prompt(text="the film was"), Prompt(messages=tuple(CHAT))]  # type: ignore[arg-type]
    runtime = make_runtime(store="none", evaluation=str(evaluation))
    async with served(runtime) as url:
        settings = LoadTestSettings(url=url, out=tmp_path / "run")
        found = await asyncio.to_thread(served_prompts, settings, evaluated_prompts)
        fewer = settings.model_copy(update={"prompt_count": 1})
        first = await asyncio.to_thread(served_prompts, fewer, evaluated_prompts)
        named = settings.model_copy(update={"prompts": tmp_path / "heldout.jsonl"})
        made = settings.model_copy(update={"prompt_words": "3"})
        for other in (named, made):
            assert served_prompts(other, lambda _: pytest.fail("the server is not asked")) is None
    assert found == own
    assert first == own[:1]
    keep_prompts(settings, own, served=True)
    # A run that is continued, or reported without its server, has the same prompts.
    assert load_prompts(settings) == own
    assert served_prompts(settings, lambda _: pytest.fail("they are kept")) is None


async def test_without_an_evaluation_the_built_in_prompts_are_used(tmp_path: Path) -> None:
    async with served(make_runtime(store="none")) as url:
        settings = LoadTestSettings(url=url, out=tmp_path)
        assert await asyncio.to_thread(served_prompts, settings, evaluated_prompts) is None
    assert len(load_prompts(settings)) >= 10, "a verdict needs that many"
