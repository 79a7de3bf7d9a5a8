"""Remote policies in the service: settings, assembly, readiness, and a whole request."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.runtime.build import build_runtime
from service.settings import REMOTE_API_KEY, ServiceSettings
from tests.unit.fakes import make_runtime, serving
from tests.unit.openai_imitation import imitation
from tests.unit.test_remote_engine import OPTIONS, until
from tests.unit.virtual_clock import virtually
from vbon.config import load_settings
from vbon.engine.fake import FakeEngine
from vbon.engine.remote.engine import RemoteEngine
from vbon.errors import CheckpointError

clocked = virtually("service", "vbon", "tests.unit")

ROOT = Path(__file__).resolve().parents[2]
URL = "http://127.0.0.1:1/v1"


def load(*arguments: str) -> ServiceSettings:
    return load_settings(ServiceSettings, arguments, program="service")


@pytest.mark.parametrize("form", [["--policies", "{}"], ["--policies={}"]])
def test_several_urls_with_commas_are_one_policy(form: list[str]) -> None:
    arguments = [part.format("ref=http://a:1/v1#org/m,http://b:2/v1") for part in form]
    settings = load(*arguments, "--policies", "vbon=c/d")
    assert settings.policies == {"ref": "http://a:1/v1#org/m,http://b:2/v1", "vbon": "c/d"}


def test_commas_between_policies_still_part_them() -> None:
    settings = load("--policies", "ref=http://a:1/v1,vbon=http://b:2/v1")
    assert settings.policies == {"ref": "http://a:1/v1", "vbon": "http://b:2/v1"}


def test_the_key_comes_from_the_environment_and_is_no_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(REMOTE_API_KEY, "s3cret")
    monkeypatch.setenv("OTHER_KEY", "0ther")
    for settings, key in (
        (load("--policies", f"ref={URL}", "--reward", "none"), "s3cret"),
        (
            load(
                "--policies",
                f"ref={URL}",
                "--reward",
                "none",
                "--engine.remote-api-key-env",
                "OTHER_KEY",
            ),
            "0ther",
        ),
    ):
        assert "s3cret" not in repr(settings)
        engine = build_runtime(settings).policies["ref"]
        assert isinstance(engine, RemoteEngine)
        assert engine._options.api_key == key


def test_settings_reach_the_engine() -> None:
    settings = load(
        "--policies",
        f"ref={URL}",
        "--reward",
        "none",
        "--engine.max-num-seqs",
        "9",
        "--engine.remote-timeout-s",
        "3",
        "--engine.max-model-len",
        "99",
        "--engine.scheduling-policy",
        "priority",
        "--no-engine.remote-metrics",
    )
    engine = build_runtime(settings).policies["ref"]
    assert isinstance(engine, RemoteEngine)
    options = engine._options
    assert (options.max_num_seqs, options.request_timeout_s, options.max_model_len) == (9, 3.0, 99)
    assert engine.info.by_priority
    assert not options.metrics


def test_an_adapter_needs_its_base_here(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    settings = ServiceSettings(policies={"ref": URL, "lora": str(tmp_path)}, reward=None)
    with pytest.raises(CheckpointError, match="serve the adapter on that server"):
        build_runtime(settings)


def test_a_local_policy_beside_a_remote_one_is_still_checked() -> None:
    settings = ServiceSettings(policies={"ref": URL, "vbon": "/nonexistent"}, reward=None)
    with pytest.raises(CheckpointError, match="/nonexistent"):
        build_runtime(settings)


def test_remote_policies_need_neither_vllm_nor_torch() -> None:
    """Build, start and use one in an interpreter that cannot import torch or vllm."""
    script = """
import asyncio, sys
sys.modules.update(dict.fromkeys(("torch", "vllm", "transformers")))
from vbon.prompts import Prompt
from service.runtime.build import build_runtime
from service.generation.plan import Sampling
from service.runtime.prompt import PromptRequest
from service.settings import ServiceSettings
from tests.unit.openai_imitation import imitation

async def main():
    async with imitation() as server:
        runtime = build_runtime(ServiceSettings(policies={"ref": server.url}, reward=None))
        await runtime.start()
        sampling = Sampling(max_tokens=4, seed=0)
        answer = await runtime.answer(
            PromptRequest(runtime.mode("ref"), Prompt(text="a"), sampling, 1, "t")
        )
        assert answer.outcome.selected.candidate.token_ids, answer
        await runtime.stop()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@clocked
async def test_best_of_n_over_servers_and_readiness_names_the_missing_one() -> None:
    async with imitation() as a, imitation() as b:
        engine = RemoteEngine(f"{a.url},{b.url}", OPTIONS)
        runtime = make_runtime(engines={"ref": engine, "vbon": FakeEngine("fake-vbon")})  # type: ignore[dict-item]
        async with serving(runtime) as (_, client):
            await until(lambda: runtime.ready or runtime.failure)
            body = {"prompt": "the film was", "n": 8, "seed": 3, "return_candidates": True}
            answer = (await client.post("/generate?mode=bon", json=body)).json()
            assert len(answer["candidates"]) == 8
            assert answer["policy"]["revision"] == "remote:org/policy"
            assert (await client.get("/readyz")).json() == {"status": "ready"}
            a.faults.add("500")
            a.healthy = False
            again = (await client.post("/generate?mode=bon", json=body)).json()
            assert again["text"] == answer["text"]
            status = (await client.get("/readyz")).json()["status"]
            assert status.startswith(f"ready; ref: {a.url} is left out (")
            b.faults.add("429")
            busy = await client.post("/generate?mode=bon", json=body)
            assert (busy.status_code, busy.headers["retry-after"]) == (429, "7")
            b.faults.clear()
            b.faults.add("503")
            b.healthy = False
            await client.post("/generate?mode=bon", json=body)
            dead = await client.get("/readyz")
            assert dead.status_code == 503
            assert b.url in dead.json()["error"]["message"]
