"""The training record of a served checkpoint, as clients see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.fakes import make_runtime, serving
from vbon.engine.fake import FakeEngine
from vbon.storage.training_record import TrainingRecord, read_training_record

MEAN = {"mean": 0.9, "low": 0.8, "high": 0.95, "count": 64}
RECORD = {
    "objective": "vbon",
    "identity": {"num_samples": 16},
    "cost": {"training_seconds": 1800.0, "processes": 4, "steps": 30},
    "heldout": {"reward": MEAN, "win_rate": MEAN, "kl_nats": MEAN, "method": "vbon"},
}


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "training.json").write_text(json.dumps(RECORD))


def test_device_hours_count_every_process(tmp_path: Path) -> None:
    write(tmp_path)
    found = read_training_record(str(tmp_path))
    assert found is not None
    assert found.cost is not None
    assert found.cost.device_hours == pytest.approx(2.0)


def test_an_adapter_has_the_record_of_its_checkpoint(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "adapter").mkdir()
    assert read_training_record(str(tmp_path / "adapter")) == read_training_record(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cost": {"training_seconds": "long"}}'])
def test_no_readable_record_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "training.json").write_text(text)
    assert read_training_record(str(tmp_path)) is None
    assert read_training_record("http://host/v1") is None


async def test_modes_tell_it_and_clients_read_it_back(tmp_path: Path) -> None:
    write(tmp_path)
    engines = {"ref": FakeEngine("fake"), "vbon": FakeEngine(str(tmp_path))}
    async with serving(make_runtime(engines=engines)) as (_, client):
        modes = {mode["name"]: mode for mode in (await client.get("/modes")).json()["modes"]}
    assert modes["ref"]["training"] is None
    read = TrainingRecord.model_validate(modes["vbon"]["training"])
    assert read == TrainingRecord.model_validate(RECORD)
    assert read.settings == {"num_samples": 16}


@pytest.mark.parametrize(
    ("trained", "max_tokens", "expected"),
    [
        ({"max_new_tokens": 40, "temperature": 1.0}, 40, []),
        ({"num_samples": 16}, 64, []),
        (
            {"max_new_tokens": 40, "temperature": 0.7},
            64,
            [
                "max_tokens is 64, but the checkpoint was trained and measured with 40",
                "temperature is 1, but the checkpoint was trained and measured with 0.7",
            ],
        ),
    ],
)
async def test_modes_tell_where_the_defaults_are_not_those_of_the_training(
    tmp_path: Path, trained: dict[str, float], max_tokens: int, expected: list[str]
) -> None:
    (tmp_path / "training.json").write_text(json.dumps({"identity": trained}))
    engines = {"ref": FakeEngine("fake"), "vbon": FakeEngine(str(tmp_path))}
    runtime = make_runtime(engines=engines, default_max_tokens=max_tokens, default_temperature=1.0)
    async with serving(runtime) as (_, client):
        modes = {mode["name"]: mode for mode in (await client.get("/modes")).json()["modes"]}
    assert modes["vbon"]["sampling_differences"] == expected
    assert modes["ref"]["sampling_differences"] == []
