"""A checkpoint is called what its record shows: imitation where its on-policy steps changed nothing."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import make_runtime, serving
from vbon.demo.config import DemoConfig
from vbon.demo.run import Demo
from vbon.engine.fake import FakeEngine
from vbon.storage.training_record import TrainingRecord
from vbon.study.report import _checkpoints

FIGURES = {"mean": 0.9, "low": 0.8, "high": 0.95, "count": 64}


def change(win_rate: tuple[float, float, float], kl: tuple[float, float, float]) -> dict[str, Any]:
    names = ("mean", "low", "high")
    return {
        name: {**dict(zip(names, values, strict=True)), "count": 64}
        for name, values in (("win_rate", win_rate), ("kl_nats", kl))
    }


NOTHING = change((0.001, -0.004, 0.006), (-0.002, -0.01, 0.008))
WIN_RATE = change((0.01, 0.004, 0.016), (0.0, -0.01, 0.01))
KL = change((0.0, -0.01, 0.01), (-0.2, -0.3, -0.1))


def record(**changes: Any) -> TrainingRecord:
    values: dict[str, Any] = {
        "objective": "vbon",
        "title": "vBoN",
        "on_policy": True,
        "learning_rate": 8e-6,
        "identity": {
            "num_samples": 16, "warm_start_steps": 40, "warm_start_learning_rate": 8e-4, "steps": 20,
        },
        "cost": {"training_seconds": 1.0, "steps": 60, "samples_drawn": 5120},
    }  # fmt: skip
    identity = values["identity"] | changes.pop("identity", {})
    return TrainingRecord.model_validate({**values, **changes, "identity": identity})


STEPS = "40 imitation steps at 0.0008, then 20 on-policy steps at 8e-06"


@pytest.mark.parametrize(
    ("changes", "imitation", "words"),
    [
        (
            {},
            False,
            f"vBoN (N = 16): {STEPS}; whether the on-policy steps changed anything was not measured",
        ),
        (
            {"on_policy_change": NOTHING},
            True,
            f"best-of-N imitation, trained as vBoN (N = 16): {STEPS}, which changed neither the win rate "
            "(+0.001 [-0.004, +0.006]) nor the KL (-0.002 [-0.010, +0.008] nats) measurably",
        ),
        (
            {"on_policy_change": WIN_RATE},
            False,
            f"vBoN (N = 16): {STEPS}, which changed the win rate by +0.010 [+0.004, +0.016] and the KL by "
            "+0.000 [-0.010, +0.010] nats",
        ),
        (
            {"on_policy_change": KL},
            False,
            f"vBoN (N = 16): {STEPS}, which changed the win rate by +0.000 [-0.010, +0.010] and the KL by "
            "-0.200 [-0.300, -0.100] nats",
        ),
        (
            {"identity": {"warm_start_steps": 0}, "cost": None},
            False,
            "vBoN (N = 16): 20 on-policy steps at 8e-06",
        ),
        # Stopped, as one that diverged, before its first on-policy step.
        (
            {"cost": {"training_seconds": 1.0, "steps": 30, "samples_drawn": 0}},
            True,
            "best-of-N imitation, trained as vBoN (N = 16): 30 imitation steps at 0.0008",
        ),
        (
            {"objective": "bon-sft", "title": "BoN-SFT", "on_policy": False,
             "identity": {"warm_start_steps": 0, "steps": 1}, "cost": None},
            True,
            "best-of-N imitation (N = 16): 1 imitation step at 8e-06",
        ),
        (
            {"objective": "dpo", "title": "DPO", "on_policy": False,
             "identity": {"num_samples": None, "beta": 0.1}},
            False,
            "DPO (beta = 0.1): 40 imitation steps at 0.0008, then 20 offline steps at 8e-06",
        ),
        # Records of earlier versions: an objective that drew samples is on-policy.
        (
            {"title": None, "on_policy": None, "learning_rate": None},
            False,
            "vbon (N = 16): 40 imitation steps at 0.0008, then 20 on-policy steps; whether the on-policy "
            "steps changed anything was not measured",
        ),
        ({"identity": {"steps": None, "warm_start_steps": None}}, False, "vBoN (N = 16)"),
    ],
)  # fmt: skip
def test_the_words_follow_from_the_record(
    changes: dict[str, Any], imitation: bool, words: str
) -> None:
    found = record(**changes)
    assert found.description == words
    assert found.is_imitation is imitation
    assert found.model_dump(mode="json")["description"] == words
    assert TrainingRecord.model_validate(found.model_dump(mode="json")).description == words


async def test_it_is_shown_wherever_the_checkpoint_is_served_or_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = record(on_policy_change=NOTHING).description
    checkpoint = tmp_path / "vbon"
    checkpoint.mkdir()
    stored = record(on_policy_change=NOTHING).model_dump(mode="json")
    (checkpoint / "training.json").write_text(json.dumps(stored))
    engines = {"ref": FakeEngine("ref"), "vbon": FakeEngine(str(checkpoint))}
    async with serving(make_runtime(engines=engines, store="none")) as (_, client):
        models = {one["id"]: one for one in (await client.get("/v1/models")).json()["data"]}
        over = (await client.get("/v1/models/bon@vbon")).json()
        told = (await client.get("/modes")).json()
        frontier = (await client.get("/frontier")).json()
    assert models["vbon"]["description"] == f"one sample of the policy; {words}"
    assert over["description"].endswith(words)
    assert models["ref"]["description"] == "one sample of the policy"
    modes = {mode["name"]: mode for mode in told["modes"]}
    assert modes["vbon"]["training"]["description"] == words
    policies = {one["name"]: one for one in frontier["policies"]}
    assert policies["vbon"]["training"]["description"] == words
    with ExitStack() as parts:
        Demo(DemoConfig(out=tmp_path), parts)._say_what_vbon_is()
    assert words in " ".join(capsys.readouterr().out.split())
    (tmp_path / "checkpoints").mkdir()
    checkpoint.rename(tmp_path / "checkpoints" / "vbon")
    assert ("What vbon is", words) in list(_checkpoints(tmp_path))
