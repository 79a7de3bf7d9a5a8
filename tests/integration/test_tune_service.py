"""`vbon tune` against the real application with engines whose best setting is planted."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import signal
import sqlite3
import sys
import tomllib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

optuna = pytest.importorskip("optuna")
pytest.importorskip("torch")

from service.client import ServerError  # noqa: E402
from service.settings import ServiceSettings  # noqa: E402
from service.tune.config import TuneSettings  # noqa: E402
from service.tune.execute import execute  # noqa: E402
from service.tune.report import print_report, verdict  # noqa: E402
from service.tune.search import Findings  # noqa: E402
from tests.unit.fakes import FakeReward, make_runtime, served  # noqa: E402
from vbon.config import load_settings  # noqa: E402
from vbon.engine.fake import FakeEngine, words  # noqa: E402
from vbon.engine.protocol import Candidate, Sampling, candidate_seed  # noqa: E402
from vbon.errors import DataError, InvalidInputError  # noqa: E402
from vbon.measured.table import read_table  # noqa: E402

pytestmark = pytest.mark.train

GOOD, BAD, TOKENS = 0, 1, 4


class PlantedEngine(FakeEngine):
    """Answers of 4 words, each good with a known probability; best-of-8 of 0.5 has 3.3 good words of 4."""

    def __init__(self, path: str, warm: float, cold: float) -> None:
        super().__init__(path)
        self.warm, self.cold = warm, cold

    def _candidate(self, prompt_ids: list[int], sampling: Sampling, index: int) -> Candidate:
        seed = sampling.seed if sampling.seed is not None else self._seeds.getrandbits(62)
        source = random.Random(f"{self.info.path}{prompt_ids}{candidate_seed(seed, index)}")
        good = self.cold if sampling.temperature <= 0.6 else self.warm
        ids = tuple(GOOD if source.random() < good else BAD for _ in range(TOKENS))
        logprobs = (-1.0,) * TOKENS if sampling.logprobs else None
        return Candidate(index, words(ids), ids, "length", logprobs)


def planted() -> dict[str, FakeEngine]:
    return {
        "ref": PlantedEngine("ref", 0.5, 0.5),
        "vbon": PlantedEngine("vbon", 0.6, 0.99),
    }


PROMPTS = "\n".join(json.dumps({"prompt": f"the film number {i} was"}) for i in range(120))
SPACE = """
n_max = 8
max_tokens = 4
temperature = [0.5, 1.0]
top_p = 1.0
modes = ["bon", "soft-bon"]
"""


@pytest.fixture
async def url(tmp_path: Path) -> AsyncGenerator[str, None]:
    store = str(tmp_path / "runs.db")
    async with served(make_runtime(engines=planted(), gold=FakeReward(), store=store)) as address:
        yield address


def settings_of(tmp_path: Path, url: str, **changes: Any) -> TuneSettings:
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    (tmp_path / "space.toml").write_text(changes.pop("space", SPACE))
    values = {
        "url": url,
        "prompts": tmp_path / "prompts.jsonl",
        "space": tmp_path / "space.toml",
        "out": tmp_path / "run",
        "target": "reward >= best-of-8",
        "block_s": 0.15,
        "stress_s": 0.2,
        "concurrency": 4,
        "sampler": "random",
        **changes,
    }
    return TuneSettings(**values)


async def tuned(settings: TuneSettings) -> tuple[Findings, str]:
    console = Console(record=True, width=150, file=io.StringIO())
    found, _ = await asyncio.to_thread(execute, settings, console)
    print_report(console, settings.question, found)
    return found, console.export_text()


async def test_the_planted_best_setting_is_found_and_served(tmp_path: Path, url: str) -> None:
    """One cold sample of vbon has 3.96 good words, best-of-8 of the reference 3.4: 4 tokens instead of 32."""
    settings = settings_of(tmp_path, url)
    found, text = await tuned(settings)
    assert found.status == "recommended"
    assert found.recommended is not None
    setting = found.recommended.setting
    assert (setting.mode, setting.n, setting.drawing.temperature) == ("vbon", 1, 0.5)
    assert found.recommended.price == TOKENS
    assert found.recommended.margin is not None
    assert found.recommended.margin.low >= 0
    assert found.trials == 4  # two policies at two temperatures, each once
    out = tmp_path / "run"
    record = json.loads((out / "tune.json").read_text())
    assert record["recommendation"]["policy"] == "vbon"
    assert record["stress"][-1]["failure"] is None
    under_load = record["stress"][-1]["timing"]["p95_s"]
    assert record["recommendation"]["latency_p95_s"] == under_load
    table = read_table(out / "table.json")
    assert {row.policy for row in table.rows} == {"ref", "vbon"}
    assert all(row.latency_p95_s is not None for row in table.rows if row.mode == "bon")
    assert all(row.gold is not None for row in table.rows)
    loaded = load_settings(ServiceSettings, ["--config", str(out / "serve.toml")], program="serve")
    assert loaded.default_mode == "tuned"
    assert (loaded.tuned.mode, loaded.tuned.temperature) == ("vbon", 0.5)
    assert "Recommended: vbon, temperature 0.5" in text
    again = tomllib.loads((out / "space.toml").read_text())
    assert again["n_max"] == 8
    await the_server_shows_the_run_and_can_apply_it(url, record)
    await the_recommendation_is_what_the_server_then_gives(loaded)


async def the_server_shows_the_run_and_can_apply_it(url: str, record: dict[str, Any]) -> None:
    """What the page has is what tune.json has, and mode auto then answers with the recommendation."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        (run,) = (await client.get("/tune/runs")).json()["runs"]
        shown = (await client.get(f"/tune/runs/{run['id']}")).json()
        told = shown["report"]
        assert (run["status"], run["trials"], told["phase"]) == ("recommended", 4, "ended")
        assert told["search"]["trials"] == 4
        assert [one["best"]["label"] for one in told["trials"]] == [
            one["best"] for one in record["history"]
        ]
        assert [one["label"] for one in told["front"]] == [one["label"] for one in record["front"]]
        recommended = record["recommendation"]
        assert told["recommended"]["label"] == recommended["label"]
        assert told["recommended"]["margin"] == recommended["margin"]
        assert told["recommended"]["price"] == recommended["tokens"]
        assert told["question"]["level"] == record["level"]
        assert {one["stage"] for one in told["checks"]} == {"validation", "test"}
        tried = {one["number"]: one["tried"] for one in told["trials"]}
        of_winner = [
            one for one in told["checks"] if one["setting"]["label"] == recommended["label"]
        ]
        assert {tried[one["trial"]] for one in of_winner} == {"vbon at temperature 0.5"}
        assert told["stress"][-1]["failure"] is None
        applied = await client.post(f"/tune/runs/{run['id']}/apply", json={})
        assert applied.status_code == 200, applied.text
        answer = (await client.post("/generate?mode=auto", json={"prompt": "the film was"})).json()
    assert (answer["policy"]["name"], answer["sampling"]["temperature"]) == ("vbon", 0.5)
    assert answer["routing"]["mode"] == "vbon"


async def the_recommendation_is_what_the_server_then_gives(settings: ServiceSettings) -> None:
    runtime = make_runtime(
        engines=planted(), default_mode="tuned", tuned=settings.tuned.model_dump(), store="none"
    )
    async with served(runtime) as address, httpx.AsyncClient(base_url=address) as client:
        answer = (await client.post("/generate", json={"prompt": "the film was"})).json()
    assert answer["policy"]["name"] == "vbon"
    assert answer["sampling"]["temperature"] == 0.5


async def test_an_unmet_target_names_the_closest_and_by_how_much(tmp_path: Path, url: str) -> None:
    space = SPACE.replace("temperature = [0.5, 1.0]", "temperature = 0.5")
    settings = settings_of(tmp_path, url, target="reward >= 5", space=space)
    found, text = await tuned(settings)
    assert found.status == "unmet"
    assert found.nearest is not None
    assert found.nearest.setting.drawing.policy == "vbon"
    assert "Not reached: reward >= 5" in text
    assert "misses reward >= 5 by 0.9" in text.replace("\n", " ")
    assert not (tmp_path / "run" / "serve.toml").exists()


async def test_a_space_of_one_point_is_measured_once(tmp_path: Path, url: str) -> None:
    space = 'policies = ["vbon"]\nn_max = 1\nmax_tokens = 4\ntemperature = 0.5\ntop_p = 1.0\nmodes = ["bon"]'
    settings = settings_of(tmp_path, url, space=space, target="win-rate >= 0.6")
    found, text = await tuned(settings)
    assert found.trials == 1
    assert "nothing to search" in text
    assert found.status == "recommended"
    assert found.recommended is not None
    assert found.recommended.gains["win-rate"].mean > 0.9


async def test_the_highest_gain_within_a_limit(tmp_path: Path, url: str) -> None:
    space = SPACE.replace("n_max = 8", 'policies = ["ref"]\nn_max = 8')
    changes = {"target": None, "maximise": "gold", "max_tokens_per_answer": 17}
    found, _ = await tuned(settings_of(tmp_path, url, space=space, **changes))
    assert found.recommended is not None
    assert found.recommended.tokens.mean <= 17
    assert found.recommended.setting.n >= 4


async def test_a_live_mode_is_measured_and_one_that_the_server_refuses_is_a_failed_trial(
    tmp_path: Path, url: str
) -> None:
    space = """
    policies = ["vbon"]
    n_max = 4
    max_tokens = 4
    temperature = 1.0
    top_p = 1.0
    modes = ["bon", "speculative-rejection", "treebon"]
    [settings.treebon]
    guide = "vbon"
    """
    settings = settings_of(tmp_path, url, space=space, target="reward >= 2", trials=5)
    found, _ = await tuned(settings)
    live = [row for row in found.rows if row.setting.live]
    assert {row.setting.mode for row in live} == {"speculative-rejection"}
    assert all(row.expected is not None for row in live)
    assert found.failed
    assert all("guide" in one["error"] for one in found.failed)
    async with httpx.AsyncClient(base_url=url) as client:
        (run,) = (await client.get("/tune/runs")).json()["runs"]
        told = (await client.get(f"/tune/runs/{run['id']}")).json()["report"]
    assert len(told["trials"]) == told["trials_done"] == 5
    failed = [one for one in told["trials"] if one["best"] is None]
    assert len(failed) == len(found.failed)
    assert all("guide" in one["error"] for one in failed)


async def test_a_guided_mode_draws_from_another_policy_than_its_guide(
    tmp_path: Path, url: str
) -> None:
    space = 'n_max = 3\nmax_tokens = 4\ntemperature = 1.0\ntop_p = 1.0\nmodes = ["bon", "treebon"]'
    found, _ = await tuned(settings_of(tmp_path, url, space=space, target="reward >= 1", trials=4))
    live = [row.setting for row in found.rows if row.setting.live]
    assert {setting.drawing.policy for setting in live} == {"ref"}
    assert not found.failed


async def test_figures_of_other_models_are_not_mixed(tmp_path: Path) -> None:
    """The server's policy has another revision after the second trial."""
    runtime = make_runtime(engines=planted(), store=str(tmp_path / "runs.db"))
    async with served(runtime) as address:
        settings = settings_of(tmp_path, address)

        class Replacing(Console):
            def print(self, *parts: Any, **options: Any) -> None:
                if str(parts[0]).startswith("trial 2"):
                    engine = runtime.policies["vbon"]
                    engine.info = engine.info.__class__(  # type: ignore[misc]
                        engine.info.path, "other", engine.info.max_model_len
                    )

        with pytest.raises(
            ServerError, match="models changed: policy 'vbon' was fake and is other"
        ):
            await asyncio.to_thread(execute, settings, Replacing(quiet=True))
        async with httpx.AsyncClient(base_url=address) as client:
            (run,) = (await client.get("/tune/runs")).json()["runs"]
            told = (await client.get(f"/tune/runs/{run['id']}")).json()["report"]
        assert (told["status"], told["trials_done"]) == ("failed", 2)
        assert "models changed" in told["error"]
        with pytest.raises(DataError, match="answer another question"):
            await asyncio.to_thread(execute, settings, Console(quiet=True))


async def test_questions_and_spaces_that_do_not_fit_the_server_are_refused(tmp_path: Path) -> None:
    async with served(make_runtime(engines=planted(), store="none")) as address:
        for changes, words_ in [
            ({"target": "gold >= 1"}, "no gold reward model"),
            ({"target": "reward >= best-of-999", "space": ""}, "limits.max_n 128"),
            ({"space": "n_max = 4"}, "below the K of the target"),
            ({"space": 'policies = ["other"]'}, "names policy 'other'"),
            ({"space": 'modes = ["best"]'}, "names mode 'best'"),
            ({"space": "[settings.soft-bon]\nreward_temperature = { low = 1, high = 2 }"}, "range"),
            ({"space": "[settings.soft-bon]\nreg_strength = 1"}, "does not take"),
        ]:
            settings = settings_of(tmp_path, address, **changes)
            with pytest.raises(InvalidInputError, match=words_):
                await asyncio.to_thread(execute, settings, Console(quiet=True))
    with pytest.raises(ServerError, match="not reachable"):
        await asyncio.to_thread(execute, settings_of(tmp_path, address), Console(quiet=True))


async def started(settings: TuneSettings) -> asyncio.subprocess.Process:
    """The command with these settings as a process of its own."""
    arguments = [
        sys.executable, "-m", "vbon", "tune", "--url", settings.url, "--prompts", str(settings.prompts),
        "--space", str(settings.space), "--out", str(settings.out), "--target", str(settings.target),
        "--block-s", "0.15", "--stress-s", "0.2", "--concurrency", "4", "--sampler", "random",
    ]  # fmt: skip
    return await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )


async def test_a_killed_run_goes_on_and_another_question_is_refused(
    tmp_path: Path, url: str
) -> None:
    """Killed after two of four trials, it makes only the others, and answers as an uninterrupted run does."""
    settings = settings_of(tmp_path, url)
    process = await started(settings)
    assert process.stdout is not None
    async for line in process.stdout:
        if line.startswith(b"trial 2"):
            process.kill()
            break
    await process.wait()
    database = settings.out / "study.db"
    with sqlite3.connect(database) as connection:
        trial = connection.execute(
            "select trial_id from trials where state = 'COMPLETE'"
        ).fetchall()
    assert len(trial) >= 2
    async with httpx.AsyncClient(base_url=url) as client:
        (before,) = (await client.get("/tune/runs")).json()["runs"]
        found, text = await tuned(settings)
        (after,) = (await client.get("/tune/runs")).json()["runs"]
    assert (before["status"], before["stale"]) == ("running", False)
    assert (after["id"], after["status"]) == (before["id"], "recommended")
    assert (after["started"], after["trials"]) == (before["started"], 4)
    assert "Going on after" in text
    assert found.trials == 4
    assert found.recommended is not None
    assert found.recommended.setting.mode == "vbon"
    whole, _ = await tuned(settings_of(tmp_path, url, out=tmp_path / "whole"))
    assert whole.recommended is not None
    assert whole.recommended.setting == found.recommended.setting
    assert whole.recommended.gains == found.recommended.gains
    with pytest.raises(DataError, match=r"another question: target was .*8 and is reward >= 1 now"):
        await tuned(settings_of(tmp_path, url, target="reward >= 1"))
    with sqlite3.connect(database) as connection:
        connection.execute("update alembic_version set version_num = 'v99.0.0'")
    with pytest.raises(DataError, match="cannot be used"):
        await tuned(settings)


async def test_ctrl_c_reports_what_was_found(tmp_path: Path, url: str) -> None:
    settings = settings_of(tmp_path, url)
    process = await started(settings)
    assert process.stdout is not None
    text = b""
    async for line in process.stdout:
        text += line
        if line.startswith(b"trial 1"):
            process.send_signal(signal.SIGINT)
    assert await process.wait() == 130
    assert b"Interrupted after" in text
    assert b"best so far" in text
    record = json.loads((settings.out / "tune.json").read_text())
    assert record["status"] == "interrupted"
    async with httpx.AsyncClient(base_url=url) as client:
        (run,) = (await client.get("/tune/runs")).json()["runs"]
    assert (run["status"], run["stale"]) == ("interrupted", False)
    assert record["front"]
    assert read_table(settings.out / "table.json").rows
    assert not (settings.out / "serve.toml").exists()


async def test_a_run_that_is_not_shown_says_why_once_or_is_told_not_to_report(
    tmp_path: Path,
) -> None:
    async with served(make_runtime(engines=planted(), store="none")) as address:
        space = 'policies = ["vbon"]\nn_max = 1\nmax_tokens = 4\ntemperature = 0.5\ntop_p = 1.0'
        settings = settings_of(tmp_path, address, space=space, target="reward >= 1")
        found, text = await tuned(settings)
        assert found.status == "recommended"
        said = text.replace("\n", " ")
        assert (
            said.count("the server's page does not show this run: this service has no store") == 1
        )
        quiet = settings_of(
            tmp_path,
            address,
            space=space,
            target="reward >= 1",
            report=False,
            out=tmp_path / "quiet",
        )
        _, text = await tuned(quiet)
        assert "page" not in text


def test_an_interrupted_run_says_that_nothing_was_checked() -> None:
    lines = verdict(TuneSettings(target="reward >= 1").question, Findings())
    assert lines[0] == "Interrupted after 0 trials: nothing was measured."
