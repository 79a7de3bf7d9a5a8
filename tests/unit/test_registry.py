"""Registries: names without imports, and plug-ins that cannot be used."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from service.strategies.request_fields import RESERVED
from tests.plugin_package import write_package
from vbon.errors import CheckpointError, InvalidInputError
from vbon.registry import Registry, built_in_entries
from vbon.rewards import open_reward_model

GROUP = "vbon.toys"


def number(found: object) -> int:
    if not isinstance(found, int):
        raise TypeError("it is not a number")
    return found


def toys(reserved: tuple[str, ...] = ()) -> Registry[int]:
    lines = {"least": ("least:LEAST", "The least."), "most": "most:MOST"}
    built_in = built_in_entries("toybox", lines)
    return Registry(GROUP, "toy", built_in, number, field="toy", reserved=reserved)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with the built-in toys."""
    package = tmp_path / "toybox"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "least.py").write_text("LEAST = 1")
    (package / "most.py").write_text("MOST = 9")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith("toy")]:
        del sys.modules[module]


def plug(box: Path, name: str = "toy-plugins", **points: str) -> None:
    modules = {"toy_good": "FIVE = 5\nclass Nested:\n    SIX = 6\n", "toy_bad": "import no_such"}
    write_package(
        box,
        {GROUP: {k.replace("_", "-"): v for k, v in points.items()}},
        name=name,
        modules=modules,
    )


def test_names_are_listed_without_an_import(box: Path) -> None:
    plug(box, five="toy_good:FIVE", bad="toy_bad:X")
    registry = toys()
    assert list(registry) == ["least", "most", "bad", "five"]
    assert registry.built_in == ("least", "most")
    assert registry.entry("least").summary == "The least."
    assert registry.entry("five").summary == "Toys. (from toy-plugins 1.2)"
    assert not {"toybox.least", "toy_good", "toy_bad"} & sys.modules.keys()
    assert registry["least"] == 1
    assert "toybox.most" not in sys.modules


def test_plug_ins_are_found_and_nested_attributes_too(box: Path) -> None:
    plug(box, five="toy_good:FIVE", six="toy_good:Nested.SIX")
    assert dict(toys().items()) == {"least": 1, "most": 9, "five": 5, "six": 6}


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("toy_bad:X", r"importing it raised ModuleNotFoundError: No module named 'no_such'"),
        ("toy_good:NONE", r"importing it raised AttributeError: .* 'NONE'"),
        ("toy_good:Nested", r"it is not a number"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_named_in_one_line(
    box: Path, caplog: pytest.LogCaptureFixture, target: str, reason: str
) -> None:
    plug(box, wrong=target)
    registry = toys()
    with caplog.at_level(logging.WARNING):
        assert dict(registry.items()) == {"least": 1, "most": 9}
        assert list(registry.values()) == [1, 9]
    (warning,) = caplog.messages
    expected = (
        rf"toy 'wrong' of package toy-plugins 1\.2 \(entry point wrong = {target} in vbon\.toys\) "
        rf"cannot be used: {reason}"
    )
    with pytest.raises(InvalidInputError, match=expected) as caught:
        registry["wrong"]
    assert str(caught.value) == warning
    assert "\n" not in warning
    assert caught.value.field == "toy"


@pytest.mark.parametrize("name", ["most", "kept"])
def test_a_built_in_name_stays_what_it_is(
    box: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    plug(box, **{name: "toy_good:FIVE"})
    registry = toys(reserved=("kept",))
    with caplog.at_level(logging.WARNING):
        assert list(registry) == ["least", "most"]
    assert registry["most"] == 9
    (warning,) = caplog.messages
    assert f"toy {name!r} of package toy-plugins 1.2" in warning
    assert warning.endswith("cannot be used: its name is taken by a built-in one")


def test_a_name_of_two_packages_is_neither_s(box: Path, caplog: pytest.LogCaptureFixture) -> None:
    plug(box, five="toy_good:FIVE")
    plug(box, name="other-toys", five="toy_good:Nested.SIX")
    registry = toys()
    with caplog.at_level(logging.WARNING):
        assert "five" not in dict(registry.items())
    assert len(caplog.messages) == 1
    with pytest.raises(InvalidInputError, match=r"its name is taken by (toy-plugins|other-toys) 1"):
        registry["five"]


@pytest.mark.parametrize("name", ["Upper", "two words", "a@b", "-a", ""])
def test_names_that_no_request_could_carry_are_refused(
    box: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    write_package(box, {GROUP: {name or "_": "toy_good:FIVE"}})
    with caplog.at_level(logging.WARNING):
        assert list(toys()) == ["least", "most"]
    assert "its name is not lower-case words joined by hyphens" in caplog.text


def test_a_plug_in_refused_later_says_why(box: Path) -> None:
    plug(box, five="toy_good:FIVE")
    registry = toys()
    assert registry["five"] == 5
    registry.refuse("five", "five is too many")
    with pytest.raises(InvalidInputError, match="cannot be used: five is too many"):
        registry["five"]
    assert "five" not in dict(registry.items())


def test_an_unknown_name_comes_with_the_known(box: Path) -> None:
    with pytest.raises(InvalidInputError, match="unknown toy 'none'; choose one of least, most"):
        toys()["none"]


def test_a_built_in_that_is_broken_is_not_hidden(box: Path) -> None:
    (box / "toybox" / "most.py").write_text("MOST = 'much'")
    with pytest.raises(TypeError, match="not a number"):
        dict(toys().items())


def test_a_reward_model_of_an_unknown_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match="'words' is not a known scheme; known schemes: python"
    ):
        open_reward_model("words:good")
    Path("words:good").mkdir()  # a directory of that name is a classifier's
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_reward_model("words:good")


def test_no_setting_can_have_the_name_of_a_field_of_requests() -> None:
    from service.schemas.generate import GenerateFields
    from service.schemas.neutral_fields import CHAT, COMMON, COMPLETION
    from service.schemas.openai_requests import ChatFields, CompletionFields

    kinds = (GenerateFields, CompletionFields, ChatFields)
    fields = set().union(*(kind.model_fields for kind in kinds), COMMON, COMPLETION, CHAT)
    assert fields == RESERVED, "update _REQUEST_FIELDS in service/strategies/request_fields.py"


def test_no_plug_in_can_take_the_name_of_a_training_command() -> None:
    from training.__main__ import STEPS
    from training.objectives import OBJECTIVES

    assert STEPS.keys() <= OBJECTIVES.reserved
