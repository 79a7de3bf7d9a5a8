"""The search space and the question of `vbon tune`, before anything is measured."""

from __future__ import annotations

import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.tune.config import TuneSettings
from service.tune.drawing import Drawing
from service.tune.outputs import serve_text
from service.tune.server import Served, served_of
from service.tune.setting import setting_of
from service.tune.space import SpaceFile, read_space_file, resolve_space, space_text
from vbon.errors import DataError, InvalidInputError
from vbon.tuning.axes import Range, Values, count_of
from vbon.tuning.studies import differences

SERVED = Served(
    url="http://test",
    policies={"ref": "a", "vbon": "b"},
    paths={"ref": "models/ref", "vbon": 'models/"odd"', "reward": "models/reward"},
    modes={
        "ref": {}, "vbon": {}, "bon": {}, "soft-bon": {"reward_temperature": 1.0},
        "mbr-bon": {"reg_strength": 0.1, "normalise_rewards": True},
        "adaptive-bon": {"candidate_cost": 0.04, "min_n": 4},
        "treebon": {"children": 4, "guide": "vbon"},
        "speculative-rejection": {"reject_fraction": 0.5}, "auto": {}, "tuned": {},
    },
    reward="r", gold=None, hardware="a machine", max_tokens=40, temperature=1.0, max_n=64,
)  # fmt: skip


def test_the_default_space_has_all_policies_and_modes_of_the_server() -> None:
    space = resolve_space(SpaceFile(), SERVED)
    assert space.drawing["policy"] == Values(values=("ref", "vbon"))
    assert space.drawing["temperature"] == Range(low=0.5, high=1.5)
    assert {mode for mode, _ in space.rules} == {"soft-bon", "mbr-bon", "adaptive-bon"}
    soft = [settings["reward_temperature"] for mode, settings in space.rules if mode == "soft-bon"]
    assert soft == [0.25, 1.0, 4.0]
    assert set(space.live) == {"treebon", "speculative-rejection"}
    assert space.live["treebon"]["guide"] == Values(values=("vbon",))
    assert space.n_max == 16
    assert math.isinf(space.drawings)
    assert space.replayed == 16 + len(space.rules) * len(space.counts)
    assert resolve_space(SpaceFile(), SERVED, best_of=32).n_max == 32


def test_the_temperatures_of_a_hot_server_end_where_engines_do() -> None:
    for temperature, high in ((1.2, 1.8), (1.5, 2.0), (2.0, 2.0)):
        hot = resolve_space(SpaceFile(), replace(SERVED, temperature=temperature))
        assert hot.drawing["temperature"] == Range(low=temperature / 2, high=high)


def test_rules_that_compare_texts_are_live_with_another_embedder() -> None:
    space = resolve_space(SpaceFile(), replace(SERVED, embedder="sentences:model"))
    assert "mbr-bon" in space.live


def test_treebon_is_left_out_without_a_second_policy() -> None:
    alone = replace(SERVED, policies={"ref": "a"})
    assert "treebon" not in resolve_space(SpaceFile(), alone).live


def test_the_space_that_is_written_is_the_same_when_it_is_read(tmp_path: Path) -> None:
    space = resolve_space(SpaceFile(), SERVED)
    path = tmp_path / "space.toml"
    path.write_text(space_text(space))
    assert resolve_space(read_space_file(path), SERVED) == space


def test_a_space_of_one_drawing_is_known_as_such() -> None:
    file = SpaceFile.model_validate(
        {"policies": ["vbon"], "temperature": 0.7, "top_p": 1.0, "top_k": 0, "n_max": 1}
    )
    space = resolve_space(file, SERVED)
    assert space.one_drawing
    assert (space.drawings, space.replayed) == (1, 1)
    assert space.counts == []


def test_axes_are_values_lists_and_ranges() -> None:
    file = SpaceFile.model_validate({"temperature": [0.5, 1, 1], "top_p": {"low": 0.8, "high": 1}})
    assert file.temperature == Values(values=(0.5, 1))
    assert file.top_p == Range(low=0.8, high=1.0)
    assert count_of(Range(low=2, high=5, integer=True)) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temperature = { low = 1, high = 1 }", "must be below high"),
        ("temperature = { low = 0, high = 1, log = true }", "must begin above 0"),
        ("temperature = []", "at least 1 item"),
        ("temperature = [[1]]", "temperature: .*not other lists"),
        ("temperature = { values = [1], low = 2 }", "low"),
        ("top_k = { low = 0.5, high = 9, integer = true }", "whole"),
        ("tempreature = 1", "tempreature"),
        ("temperature = ", "not valid TOML"),
    ],
)
def test_a_space_file_with_a_mistake_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_space_file(path)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ({"policies": ["other"]}, "names policy 'other'"),
        ({"modes": ["auto"]}, "names mode 'auto'"),
        ({"n_max": 65}, "limits.max_n 64"),
        ({"temperature": "hot"}, "temperature is 'hot', and it must be a number from 0 to 2"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": [1, -1]}, "temperature is -1"),
        ({"temperature": {"low": 1, "high": 2.1}}, "temperature is 2.1"),
        ({"top_p": 0}, "top_p is 0, and it must be a number above 0 and at most 1"),
        ({"top_p": [0.9, 1.5]}, "top_p is 1.5"),
        ({"top_k": -2}, "top_k is -2, and it must be a whole number from -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_k": {"low": 0, "high": 0.5}}, "top_k is 0.5"),
        ({"settings": {"soft-bon": {"reg_strength": 1}}}, "does not take reg_strength"),
        ({"settings": {"adaptive-bon": {"max_n": [8, 17]}}}, "up to 17 .*n_max, which is 16"),
        ({"settings": {"soft-bon": {"reward_temperature": -1}}}, "reward_temperature"),
        ({"settings": {"soft-bon": {"reward_temperature": {"low": 1, "high": 2}}}}, "is a range"),
    ],
)
def test_a_space_that_the_server_does_not_have_is_refused(file: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        resolve_space(SpaceFile.model_validate(file), SERVED)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "--target"),
        ({"target": "reward >= 1", "maximise": "gold"}, "not both"),
        ({"maximise": "reward"}, "needs a limit"),
        ({"target": "speed >= 1"}, "not one of reward, gold, win-rate"),
        ({"target": "win-rate >= 1"}, "below 1"),
        ({"target": "reward >= 1", "rate": 2.0, "concurrency": 3}, "not both"),
        (
            {"target": "reward >= 1", "rate": 2.0, "minimise": "cost", "price_per_hour": 1.0},
            "--rate",
        ),
        ({"target": "reward >= 1", "validation_share": 0.45, "test_share": 0.45}, "lower"),
        ({"target": "reward >= 1", "budget": "soon"}, "30m"),
        ({"target": "reward >= 1", "sampler": "best"}, "best"),
        ({"target": "reward >= 1", "p95_ms": 0}, "greater than 0"),
        ({"target": "reward >= 1", "url": "host:8000"}, "http"),
    ],
)
def test_questions_that_contradict_themselves_are_refused(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        TuneSettings(**given)


def test_budgets_are_durations() -> None:
    for text, seconds in [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400)]:
        assert TuneSettings(target="reward >= 1", budget=text).budget == seconds  # type: ignore[arg-type]


def test_models_that_changed_are_named() -> None:
    other = replace(SERVED, policies={"ref": "a", "vbon": "c"})
    assert SERVED.changed_to(other) == "policy 'vbon' was b and is c now"
    assert SERVED.changed_to(replace(SERVED, reward=None)).startswith(
        "the reward model was r and is"
    )
    assert SERVED.changed_to(SERVED) == ""
    assert differences({"a": 1, "b": "x" * 99}, {"a": 2, "b": "y"}) == [
        "a was 1 and is 2 now",
        "another b",
    ]


def test_the_answer_of_modes_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ref, reward = ({"name": n, "path": f"at/{n}", "revision": f"of {n}"} for n in ("ref", "reward"))
    found = {
        "modes": [
            {"name": "ref", "policy": ref, "reward_model": None, "settings": {}},
            {"name": "bon", "policy": ref, "reward_model": reward, "settings": {}},
            {"name": "auto", "policy": ref, "reward_model": reward, "settings": {}},
        ],
        "gold_model": None,
        "default_sampling": {"max_tokens": 7, "temperature": 0.5},
        "limits": {"max_n": 3},
    }
    served = served_of("http://test", found, {})
    assert served.policies == {"ref": "of ref"}
    assert (served.reward, served.gold, served.hardware) == ("of reward", None, "unknown")
    assert list(served.modes) == ["ref", "bon"]
    assert served.paths == {"ref": "at/ref", "reward": "at/reward"}


def test_serve_toml_quotes_what_it_is_given(tmp_path: Path) -> None:
    from service.settings import ServiceSettings
    from vbon.config import load_settings

    setting = setting_of(
        "soft-bon", Drawing("vbon", 0.7, 0.9, 40, 5), 3, {"reward_temperature": 0.5}
    )
    path = tmp_path / "serve.toml"
    path.write_text(serve_text(setting, SERVED, "a reason"))
    loaded = load_settings(ServiceSettings, ["--config", str(path)], program="vbon serve")
    assert loaded.policies["vbon"] == 'models/"odd"'
    assert loaded.reward == "models/reward"
    assert loaded.tuned.sampling == setting.drawing.sampling
    assert (loaded.tuned.mode, loaded.tuned.policy, loaded.tuned.n) == ("soft-bon", "vbon", 3)
    assert loaded.tuned.settings == {"reward_temperature": 0.5}


@pytest.mark.parametrize("name", ["caf\u00e9", "\U0001f600", 'a"b\\c'])
def test_every_path_and_name_can_be_read_again(name: str) -> None:
    served = replace(SERVED, policies={name: "a"}, paths={name: f"models/{name}"}, reward=None)
    drawing = Drawing(name, 1.0, 1.0, 8)
    made = tomllib.loads(serve_text(setting_of("bon", drawing, 2, {}), served, "why"))
    assert made["policies"] == {name: f"models/{name}"}
    assert made["tuned"]["policy"] == name
    space = resolve_space(SpaceFile(), served)
    assert tomllib.loads(space_text(space))["policies"] == [name]
