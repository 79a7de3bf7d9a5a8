"""`vbon study` on real models: interrupted while it trains, continued, and its result served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html import unescape
from pathlib import Path

import pytest

from service.settings import ServiceSettings
from vbon.config import load_settings
from vbon.study.steps import STATE

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.train]

TRAINING = {"steps": 3, "prompts_per_step": 2, "samples_per_prompt": 4, "warm_start_steps": 1}
LOAD = {
    "rounds": 1,
    "duration_s": 0.5,
    "warmup_s": 0.2,
    "concurrency": [1, 4],
    "quality_samples": 1,
}


def arguments(sandbox: Path, out: Path) -> list[str]:
    prompts = sandbox / "prompts"
    return [
        *("--policy", str(sandbox / "policy"), "--reward", str(sandbox / "reward")),
        *("--gold", str(sandbox / "gold"), "--out", str(out), "--n", "4"),
        *("--prompts", str(prompts / "train.jsonl"), "--prompts", str(prompts / "heldout.jsonl")),
        *("--num-samples", "16", "--backend", "transformers", "--max-new-tokens", "8"),
        *("--training", json.dumps(TRAINING)),
        *("--evaluation", json.dumps({"reference_samples": 8, "policy_samples": 4})),
        *("--service", json.dumps({"engine": {"enforce_eager": True}})),
        *("--loadtest", json.dumps(LOAD)),
    ]


def started(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "vbon", "study", *words],
            stdout=handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def test_a_study_goes_on_after_ctrl_c_and_ends_with_a_verdict(
    sandbox: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "study", tmp_path / "log"
    words = arguments(sandbox, out)
    study = started(words, log)
    while not (out / "settings" / "train-vbon.toml").exists():
        assert study.poll() is None, log.read_text()
        time.sleep(0.1)
    os.killpg(study.pid, signal.SIGINT)
    assert study.wait(120) == 130, log.read_text()
    assert list(json.loads((out / STATE).read_text())["steps"]) == ["split", "sample"]

    study = started(words, log)
    assert study.wait(500) == 0, log.read_text()
    said = log.read_text()
    assert "sample and score the reward cache: done before" in said
    report = json.loads((out / "report.json").read_text())
    methods = [row["method"] for row in report["quality"]]
    assert {"reference", "best-of-n", "vbon"} == set(methods)
    assert report["verdict"]
    assert report["verdict"][0] in " ".join(said.split())
    assert report["verdict"][0] in unescape((out / "report.html").read_text())
    assert {row["variant"] for row in report["speed"]} == {"ref", "bon (N=4)", "vbon"}
    served = load_settings(
        ServiceSettings, ["--config", str(out / "serve.toml")], program="vbon serve"
    )
    assert served.policies == {
        "ref": str((sandbox / "policy").resolve()),
        "vbon": str((out / "checkpoints" / "vbon").resolve()),
    }
    # Nothing is left to do: the verdict alone is printed again.
    before = (out / "report.html").stat().st_mtime_ns
    assert started(words, log).wait(60) == 0
    assert (out / "report.html").stat().st_mtime_ns == before
