"""``/frontier``: known figures have a source; unknown ones are null, with a note."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from service.runtime.build import build_runtime
from service.settings import ServiceSettings
from service.store import add_run, open_store
from tests.unit.fakes import make_runtime, serving
from vbon.engine.fake import FakeEngine
from vbon.errors import DataError


def mean(value: float) -> dict[str, float]:
    return {"mean": value, "low": value - 0.1, "high": value + 0.1, "count": 64}


HELDOUT = {
    "kl_nats": mean(1.9),
    "kl_kind": "Rao-Blackwellised",
    "win_rate": mean(0.89),
    "reward": mean(3.2),
    "gold": mean(3.0),
    "gold_win_rate": mean(0.85),
}
RECORD = {
    "objective": "vbon",
    "identity": {"num_samples": 16, "policy_revision": "fake", "reward_revision": "fake"},
    "cost": {"training_seconds": 231.0, "processes": 1, "steps": 70},
    "heldout": HELDOUT,
}
BEST_OF_4 = {
    "method": "best-of-n",
    "n": 4,
    "kl_nats": mean(0.64),
    "kl_kind": "upper bound",
    "win_rate": mean(0.8),
    "reward": mean(2.2),
}
EVALUATION = {
    "created": "2026-01-01T10:00:00+00:00",
    "prompts": 64,
    "revisions": {"reference": "fake", "reward": "fake", "vbon": "fake"},
    "rows": [
        {
            "method": "reference",
            "n": 1,
            "kl_nats": mean(0.0),
            "kl_kind": "zero",
            "win_rate": mean(0.5),
            "reward": mean(0.1),
        },
        BEST_OF_4,
        {"method": "vbon", "n": 1, **HELDOUT, "kl_nats": mean(2.0)},
    ],
}


async def ask(directory: Path, record: dict[str, Any] | None, **settings: Any) -> dict[str, Any]:
    """The frontier of a reference without a training record and a ``vbon`` with this one."""
    (directory / "vbon").mkdir(exist_ok=True)
    if record is not None:
        (directory / "vbon" / "training.json").write_text(json.dumps(record))
    engines = {"ref": FakeEngine(str(directory)), "vbon": FakeEngine(str(directory / "vbon"))}
    runtime = make_runtime(engines=engines, **{"store": "none", **settings})
    async with serving(runtime) as (_, client):
        response = await client.get("/frontier")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def point(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = (point for point in found["policies"] if point["name"] == name)
    return dict(one)


async def test_a_policy_has_its_card_and_the_bounds_are_those_of_theory(tmp_path: Path) -> None:
    found = await ask(tmp_path, RECORD)
    vbon = point(found, "vbon")
    assert vbon["kl_nats"] == mean(1.9) | {"kind": "Rao-Blackwellised"}
    assert (vbon["win_rate"], vbon["gold"]) == (mean(0.89), mean(3.0))
    assert (vbon["source"], vbon["notes"]) == ("training record", [])
    assert vbon["training"]["cost"]["steps"] == 70
    (four,) = (bound for bound in found["bounds"] if bound["n"] == 4)
    assert four["kl_nats"] == pytest.approx(math.log(4) - 0.75)
    assert four["win_rate"] == 0.8
    assert (found["best_of_n"], found["live"]) == ([], [])


async def test_what_nobody_measured_is_null_and_said(tmp_path: Path) -> None:
    found = await ask(tmp_path, None)
    vbon, ref = point(found, "vbon"), point(found, "ref")
    for field in ("kl_nats", "win_rate", "reward", "gold", "gold_win_rate", "source"):
        assert vbon[field] is None
    assert f"--checkpoints vbon={tmp_path / 'vbon'}" in vbon["notes"][0]
    assert (ref["kl_nats"]["mean"], ref["win_rate"]["mean"]) == (0, 0.5)
    assert (ref["kl_nats"]["kind"], ref["reward"]) == ("definition", None)
    assert any("--evaluation" in note for note in found["notes"])
    assert any("load test" in note for note in found["notes"])


async def test_a_record_against_other_models_says_so(tmp_path: Path) -> None:
    other = RECORD | {"identity": {"policy_revision": "sha256:old", "reward_revision": "fake"}}
    (note,) = point(await ask(tmp_path, other), "vbon")["notes"]
    assert "another reference (sha256:old; here fake)" in note


async def test_an_evaluation_of_these_models_brings_the_curve(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps(EVALUATION))
    found = await ask(tmp_path, RECORD, evaluation=str(file))
    (four,) = found["best_of_n"]
    assert (four["n"], four["kl_nats"]["kind"], four["gold"]) == (4, "upper bound", None)
    assert (point(found, "vbon")["source"], point(found, "ref")["source"]) == ("evaluation",) * 2
    assert point(found, "vbon")["kl_nats"]["mean"] == 2.0
    assert point(found, "ref")["reward"] == mean(0.1)
    assert found["evaluation"] == str(file)


@pytest.mark.parametrize("which", ["reference", "reward"])
async def test_an_evaluation_of_other_models_is_not_shown(tmp_path: Path, which: str) -> None:
    file = tmp_path / "evaluation.json"
    revisions = EVALUATION["revisions"] | {which: "sha256:old"}  # type: ignore[operator]
    file.write_text(json.dumps(EVALUATION | {"revisions": revisions}))
    found = await ask(tmp_path, RECORD, evaluation=str(file))
    assert (found["best_of_n"], found["evaluation"]) == ([], None)
    assert any(f"it evaluates {which} sha256:old" in note for note in found["notes"])
    assert point(found, "vbon")["source"] == "training record"


def test_an_evaluation_that_is_none_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    for content in ("{}", "nonsense"):
        file.write_text(content)
        with pytest.raises(DataError, match=r"not an evaluation\.json"):
            build_runtime(ServiceSettings(evaluation=str(file)))


def run(run_id: str, created: str, revision: str) -> dict[str, Any]:
    """A minimal load test result with the rewards of three modes."""
    model = {"name": "ref", "path": "x", "revision": revision}
    reward = {"name": "reward", "path": "x", "revision": "fake"}
    qualities = [("ref", 1, None), ("bon", 4, 0.8), ("treebon", 8, 0.7)]
    return {
        "id": run_id,
        "created": created,
        "complete": True,
        "blocks_done": 1,
        "blocks_planned": 1,
        "settings": {},
        "provenance": {},
        "prompts": 3,
        "cells": [],
        "curve": [],
        "saturation": [],
        "costs": [],
        "break_even": [],
        "decision": [],
        "warnings": [],
        "examples": [],
        "schema_version": "1.0",
        "server": {
            "url": "http://x",
            "api": "native",
            "policies": [model],
            "modes": [
                {
                    "name": name,
                    "reranks": n > 1,
                    "policy": model,
                    "reward_model": reward if n > 1 else None,
                }
                for name, n, _ in qualities
            ],
        },
        "quality": [
            {
                "variant": name,
                "mode": name,
                "n": n,
                "reward": mean(float(n)),
                "win_rate": win and mean(win),
                "answers": 3,
                "unscored": 0,
                "errors": {},
                "rewards": [],
                "prompt_rewards": {},
            }
            for name, n, win in qualities
        ],
    }


async def test_live_modes_are_of_the_newest_run_on_these_models(tmp_path: Path) -> None:
    where = str(tmp_path / "s.db")
    store = open_store(where)
    add_run(store, run("000000000001", "2026-01-01T10:00:00+00:00", "fake"))
    add_run(store, run("000000000002", "2026-01-02T10:00:00+00:00", "fake"))
    add_run(store, run("000000000003", "2026-01-03T10:00:00+00:00", "sha256:other"))
    store.close()
    live = {one["mode"]: one for one in (await ask(tmp_path, RECORD, store=where))["live"]}
    assert live.keys() == {"ref", "bon", "treebon"}
    assert {one["run"] for one in live.values()} == {"000000000002"}
    assert live["bon"]["kl_nats"]["kind"] == "upper bound"
    assert live["bon"]["kl_nats"]["mean"] == pytest.approx(math.log(4) - 0.75)
    assert (live["treebon"]["kl_nats"], live["treebon"]["win_rate"]) == (None, mean(0.7))
    assert (live["ref"]["kl_nats"]["mean"], live["ref"]["win_rate"]) == (0, None)
