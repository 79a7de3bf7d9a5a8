"""Settings: where they come from, which source wins, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import ServiceSettings
from training.configs import SweepConfig, TrainConfig
from training.train.config import train_config_type
from vbon.config import USAGE_ERROR, Settings, load_settings


def load(*arguments: str) -> ServiceSettings:
    return load_settings(ServiceSettings, arguments, program="service")


def test_flags_win_over_environment_over_file_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "service.toml"
    config.write_text(
        'port = 1\ndefault_n = 2\nreward_batch_size = 3\n[limits]\nmax_n = 50\n[policies]\nref = "a"\n'
    )
    monkeypatch.setenv("VBON_PORT", "11")
    monkeypatch.setenv("VBON_DEFAULT_N", "12")
    monkeypatch.setenv("VBON_LIMITS__MAX_TOKENS", "99")
    settings = load("--config", str(config), "--port", "21")
    assert (settings.port, settings.default_n, settings.reward_batch_size) == (21, 12, 3)
    assert (settings.limits.max_n, settings.limits.max_tokens) == (50, 99)
    assert settings.policies == {"ref": "a"}
    monkeypatch.setenv("VBON_CONFIG", str(config))
    assert load().reward_batch_size == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_may_have_a_byte_order_mark_and_windows_line_ends(
    tmp_path: Path, encoding: str
) -> None:
    config = tmp_path / "with spaces.toml"
    config.write_bytes('title = "caf\xe9"\r\nsteps = 7\r\n'.encode(encoding))
    found = load_settings(SweepConfig, ["--config", str(config)], program="vbon sweep")
    assert (found.title, found.steps) == ("caf\xe9", 7)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'title = "caf\xe9"', "vbon.toml:1 is not UTF-8: byte 0xe9 at offset 12"),
        (b"s\0t\0", "vbon.toml:1 contains NUL bytes"),
    ],
)
def test_a_file_in_another_encoding_is_refused_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    config = tmp_path / "vbon.toml"
    config.write_bytes(content)
    with pytest.raises(SystemExit):
        load_settings(SweepConfig, ["--config", str(config)], program="vbon sweep")
    said = capsys.readouterr().err.splitlines()
    assert words in said[0]
    assert said[0].endswith("save the file as UTF-8")
    assert said[1:] == ["try: vbon sweep --help"]


def test_policies_by_flag() -> None:
    settings = load("--policies", "ref=a/b", "--policies", "bond=c/d", "--limits.max-n", "64")
    assert settings.policies == {"ref": "a/b", "bond": "c/d"}
    assert settings.limits.max_n == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prot", "1"], "--prot"),
        (["--port", "many"], "port"),
        (["--port", "70000"], "65535"),
        (["--policies", "vbon=x"], "no policy is named 'ref'"),
        (["--policies", "ref=x", "--policies", "Bad Name=y"], "lower-case"),
        (["--default-n", "500"], "over limits.max_n 128"),
        (["--config", "/nonexistent.toml"], "cannot read"),
    ],
)
def test_mistakes_name_the_key_and_end_with_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        load(*arguments)
    assert caught.value.code == USAGE_ERROR
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "unknown setting prot; did you mean port?"),
        ("[limits]\nmax_m = 1", "unknown setting limits.max_m; did you mean limits.max_n?"),
        ("port = ", "not valid TOML"),
    ],
)
def test_a_file_with_an_unknown_key_is_refused(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "service.toml"
    config.write_text(text)
    with pytest.raises(SystemExit):
        load("--config", str(config))
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["VBON_PROT", "VBON_LIMITS__MAX_M"])
def test_a_misspelt_variable_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SystemExit):
        load()
    assert variable.split("__")[-1].lower() in capsys.readouterr().err.lower()


def test_training_takes_a_file_instead_of_flags_and_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "vbon.toml"
    config.write_text('num_samples = 4\nbound = "exact"\nheldout = "none.jsonl"\n')
    monkeypatch.setenv("STEPS", "7")
    loaded = load_settings(
        train_config_type("vbon"),
        ["--config", str(config), "--steps", "9"],
        program="training vbon",
    )
    assert (loaded.num_samples, loaded.bound, loaded.steps) == (4, "exact", 9)
    with pytest.raises(SystemExit):
        load_settings(train_config_type("vbon"), ["--num-samples", "1"], program="training vbon")
    assert "N must be at least 2, got 1" in capsys.readouterr().err


def test_settings_are_frozen() -> None:
    class Example(Settings):
        """An example."""

        value: int = 1

    with pytest.raises(ValueError, match="frozen"):
        Example().value = 2  # type: ignore[misc]


def test_none_switches_an_optional_model_off() -> None:
    assert load("--reward", "none").reward is None
    assert load_settings(TrainConfig, ["--heldout", "none"], program="x").heldout is None


@pytest.mark.parametrize(
    ("name", "value"), [("drain_s", "inf"), ("drain_s", "nan"), ("keep_alive_s", str(10**400))]
)
def test_a_time_that_no_clock_can_wait_for_is_refused_at_the_start(name: str, value: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ServiceSettings(limits={name: value})  # type: ignore[arg-type]
