"""Requests that set no sampling get that of the served checkpoints' cards, and every difference is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.runtime.default_sampling import default_sampling
from service.settings import ServiceSettings
from tests.unit.fakes import make_runtime, serving
from vbon.engine.fake import FakeEngine
from vbon.storage.training_record import TrainingRecord


def card(**identity: object) -> TrainingRecord:
    return TrainingRecord.model_validate({"identity": identity})


def of(settings: dict[str, Any], **cards: TrainingRecord | None) -> tuple[object, ...]:
    found = default_sampling(ServiceSettings(**settings), cards)
    sources = found.sources
    return found.max_tokens, found.temperature, sources["max_tokens"], sources["temperature"]


FORTY = card(max_new_tokens=40, temperature=0.7)


@pytest.mark.parametrize(
    ("settings", "cards", "expected"),
    [
        ({}, {"ref": None}, (64, 1.0, "built in", "built in")),
        ({}, {"ref": None, "a": FORTY}, (40, 0.7, "card of a", "card of a")),
        ({}, {"a": FORTY, "b": FORTY}, (40, 0.7, "card of a, b", "card of a, b")),
        (
            {"default_max_tokens": 50},
            {"a": FORTY},
            (50, 0.7, "setting default_max_tokens", "card of a"),
        ),
        (
            {"default_temperature": 0.0},
            {"a": FORTY},
            (40, 0.0, "card of a", "setting default_temperature"),
        ),
        (
            {},
            {"a": FORTY, "b": card(max_new_tokens=48, temperature=0.7)},
            (
                64,
                0.7,
                "built in, because the cards differ (a: 40, b: 48); set default_max_tokens",
                "card of a, b",
            ),
        ),
        ({}, {"a": FORTY, "b": card(max_new_tokens=40)}, (40, 0.7, "card of a, b", "card of a")),
        ({}, {"a": card(temperature="warm", max_new_tokens=True)}, (64, 1.0, "built in", "built in")),
        (
            {},
            {"a": card(temperature=5.0)},
            (64, 2.0, "built in", "the highest of the engines, which is below card of a"),
        ),
        (
            {"limits": {"max_tokens": 32}},
            {"a": FORTY},
            (32, 0.7, "limits.max_tokens, which is below card of a", "card of a"),
        ),
    ],
)  # fmt: skip
def test_a_setting_comes_before_the_cards_and_they_before_the_built_in_value(
    settings: dict[str, Any], cards: dict[str, TrainingRecord | None], expected: tuple[object, ...]
) -> None:
    assert of(settings, **cards) == expected


def engines(tmp_path: Path, **trained: dict[str, object]) -> dict[str, FakeEngine]:
    found = {"ref": FakeEngine("fake")}
    for name, identity in trained.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps({"identity": identity}))
        found[name] = FakeEngine(str(tmp_path / name))
    return found


def differences(max_tokens: int) -> list[str]:
    return [f"max_tokens is {max_tokens}, but the checkpoint was trained and measured with 5"]


async def test_a_request_comes_before_the_card_and_answers_tell_the_difference(
    tmp_path: Path,
) -> None:
    runtime = make_runtime(
        engines=engines(tmp_path, vbon={"max_new_tokens": 5, "temperature": 0.5})
    )
    async with serving(runtime) as (_, client):

        async def ask(mode: str, **body: object) -> dict[str, Any]:
            answer = await client.post(f"/generate?mode={mode}", json={"prompt": "a", **body})
            return dict(answer.json())

        found = await ask("vbon")
        assert (found["sampling"]["max_tokens"], found["sampling"]["temperature"]) == (5, 0.5)
        assert found["sampling_differences"] == []
        found = await ask("bon", n=2)
        assert (found["sampling"]["max_tokens"], found["sampling"]["temperature"]) == (5, 0.5)
        found = await ask("vbon", max_tokens=7)
        assert found["sampling"]["max_tokens"] == 7
        assert found["sampling_differences"] == differences(7)
        # A policy without a card has nothing to differ from; best-of-N over the checkpoint has.
        assert (await ask("bon", n=2, max_tokens=7))["sampling_differences"] == []
        over = await ask("bon&policy=vbon", n=2, max_tokens=7)
        assert over["sampling_differences"] == differences(7)
        found = await ask("vbon", temperature=1, top_p=0.9, top_k=3, stop="x", ignore_eos=True)
        assert found["sampling_differences"] == [
            "temperature is 1, but the checkpoint was trained and measured with 0.5",
            "top_p is 0.9, but the checkpoint was trained and measured with 1",
            "top_k is 3, but the checkpoint was trained and measured with 0",
            "stop strings end answers, but the checkpoint was trained without them",
            "ignore_eos is on, but the checkpoint was trained to end at EOS",
        ]


async def test_the_other_routes_use_and_tell_the_same(tmp_path: Path) -> None:
    runtime = make_runtime(engines=engines(tmp_path, vbon={"max_new_tokens": 5}))
    async with serving(runtime) as (_, client):
        body: dict[str, Any] = {"model": "vbon", "prompt": "a"}
        plain = (await client.post("/v1/completions", json=body)).json()["vbon"]
        assert plain["sampling"]["max_tokens"] == 5
        assert plain["sampling_differences"] == []
        more = (await client.post("/v1/completions", json={**body, "max_tokens": 7})).json()["vbon"]
        assert more["sampling_differences"] == differences(7)
        streamed = await client.post(
            "/v1/completions", json={**body, "max_tokens": 7, "stream": True}
        )
        chunks = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert json.loads(chunks[-1])["vbon"]["sampling_differences"] == differences(7)
        compared = (await client.post("/compare", json={"prompts": ["a"], "max_tokens": 7})).json()
        by_mode = {mode["mode"]: mode["sampling_differences"] for mode in compared["modes"]}
        assert by_mode == {"ref": [], "vbon": differences(7), "bon": []}
        compared = (await client.post("/compare", json={"prompts": ["a"]})).json()
        assert compared["sampling"]["max_tokens"] == 5


async def test_checkpoints_with_different_cards_share_a_default_and_each_tells_its_own(
    tmp_path: Path,
) -> None:
    runtime = make_runtime(
        engines=engines(tmp_path, a={"max_new_tokens": 5}, b={"max_new_tokens": 6})
    )
    async with serving(runtime) as (_, client):
        told = (await client.get("/modes")).json()
    assert told["default_sampling"] == {
        "max_tokens": 64,
        "chat_max_tokens": 4096,
        "temperature": 1.0,
        "sources": {
            "max_tokens": "built in, because the cards differ (a: 5, b: 6); set default_max_tokens",
            "chat_max_tokens": "limits.max_tokens",
            "temperature": "built in",
        },
    }
    found = {mode["name"]: mode["sampling_differences"] for mode in told["modes"]}
    assert found["ref"] == []
    assert found["a"] == differences(64)
    assert found["b"] == [differences(64)[0].replace("with 5", "with 6")]


async def test_a_checkpoint_that_joins_or_is_replaced_brings_its_card(tmp_path: Path) -> None:
    served = engines(tmp_path, vbon={"max_new_tokens": 5})
    joining = served.pop("vbon")
    runtime = make_runtime(engines=served)
    async with serving(runtime):
        assert runtime.default_sampling.max_tokens == 64
        await joining.start()
        runtime.join("vbon", joining)
        assert runtime.default_sampling.max_tokens == 5
        (tmp_path / "vbon" / "training.json").write_text('{"identity": {"max_new_tokens": 9}}')
        replaced = FakeEngine(str(tmp_path / "vbon"))
        replaced.info = type(replaced.info)(replaced.info.path, "another revision", 256)
        await replaced.start()
        await runtime.adopt_engines({"vbon": replaced})
        assert runtime.default_sampling.max_tokens == 9


async def test_modes_tell_a_reward_of_missing_eos_that_the_service_does_not_use(
    tmp_path: Path,
) -> None:
    runtime = make_runtime(engines=engines(tmp_path, vbon={"missing_eos_reward": -20.0}))
    async with serving(runtime) as (_, client):
        modes = (await client.get("/modes")).json()["modes"]
    [told] = next(mode["sampling_differences"] for mode in modes if mode["name"] == "vbon")
    assert "a reward of -20; the service scores it like the others" in told
