"""The `vbon` command: one style of help, suggestions everywhere, the same commands under every name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from service.__main__ import cli as service_cli
from service.bench.config import BenchSettings
from service.loadtest.__main__ import cli as loadtest_cli
from service.loadtest.config import LoadTestSettings
from service.settings import ServiceSettings
from service.tune.config import TuneSettings
from training import configs
from training.__main__ import cli as training_cli
from training.objectives import OBJECTIVES
from training.train.config import train_config_type
from training.tune.config import TuneTrainingConfig
from vbon.cli.main import COMMANDS, app
from vbon.cli.settings_command import add_settings_command
from vbon.cli.typer_help import HelpCommand, HelpGroup
from vbon.config import Settings
from vbon.help.settings import flags, help_page, unknown_flag

RUNNER = CliRunner()
# What typer, argparse and pydantic-settings would show of Python and of reStructuredText.
LEAKS = (
    "PosixPath(",
    "factory",
    "<bool>",
    "``",
    "dict[",
    "list[",
    ":class:",
    ":func:",
    "<int",
    "None]",
)
SETTINGS = [
    ServiceSettings,
    BenchSettings,
    LoadTestSettings,
    TuneSettings,
    TuneTrainingConfig,
    configs.SandboxConfig,
    configs.SampleConfig,
    configs.EvaluateConfig,
    configs.SweepConfig,
    *(train_config_type(name) for name in OBJECTIVES),
]


def all_commands() -> Iterator[tuple[list[str], Any]]:
    """Every command and group below `vbon`, with the words that name it."""

    def below(words: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
        yield words, command
        if isinstance(command, HelpGroup):
            for name in command.list_commands(None):
                yield from below([*words, name], command.get_command(None, name))

    yield from below([], typer.main.get_command(app))


def asked(cli: typer.Typer, *words: str, program: str = "vbon") -> Any:
    return RUNNER.invoke(cli, list(words), prog_name=program)


def test_every_command_explains_itself_in_the_same_layout() -> None:
    seen = 0
    for words, command in all_commands():
        assert isinstance(command, HelpCommand | HelpGroup), words
        shown = asked(app, *words, "--help")
        assert shown.exit_code == 0, (words, shown.output)
        assert shown.output.startswith(f"Usage: {' '.join(['vbon', *words])} "), shown.output
        assert "Show this message and exit." in shown.output
        for leak in LEAKS:
            assert leak not in shown.output, (words, leak, shown.output)
        seen += 1
    assert seen > 30


def test_summaries_in_the_table_are_those_of_the_commands() -> None:
    for name, lazy in COMMANDS.items():
        command = lazy.load()
        first = " ".join((command.help or "").strip().split("\n\n")[0].split())
        if isinstance(command, HelpGroup):
            continue  # a group's own help says more than its line in the table
        assert first == lazy.summary, name


@pytest.mark.parametrize("settings_type", SETTINGS, ids=lambda kind: kind.__name__)
def test_every_option_stands_under_a_heading_once(settings_type: type[Settings]) -> None:
    page = help_page(settings_type, "vbon x")
    titles = [title for title, _ in page.groups]
    assert "Options" not in titles, "a field is missing in option_groups"
    assert len(set(titles)) == len(titles)
    names = [entry.name.split()[0] for _, entries in page.groups for entry in entries]
    assert len(set(names)) == len(names)
    for _, entries in page.groups:
        for entry in entries:
            assert entry.text.endswith((".", "!", "?")), entry


@pytest.mark.parametrize(
    ("cli", "words", "meant"),
    [
        (app, ["serv"], "serve"),
        (app, ["train", "vbonn"], "vbon"),
        (app, ["bench", "trian"], "train"),
        (app, ["loadtest", "lst"], "list"),
        (app, ["keys", "ad"], "add"),
        (training_cli, ["vbonn"], "vbon"),
        (service_cli, ["loadtst"], "loadtest"),
        (service_cli, ["compar"], "compare"),
        (loadtest_cli, ["comapre"], "compare"),
    ],
)
def test_a_misspelt_command_names_the_right_one(
    cli: typer.Typer, words: list[str], meant: str
) -> None:
    refused = asked(cli, *words)
    assert refused.exit_code == 2
    assert f"'{meant}'" in refused.output, refused.output


@pytest.mark.parametrize(
    ("cli", "words", "meant"),
    [
        (app, ["serve", "--polcies", "ref=x"], "--policies"),
        (app, ["serve", "--engine.max-num-seq", "3"], "--engine.max-num-seqs"),
        (app, ["train", "vbon", "--num-sample=4"], "--num-samples"),
        (app, ["sample", "--promts", "x"], "--prompts"),
        (app, ["loadtest", "--concurency", "1"], "--concurrency"),
        (app, ["compare", "--promts", "x"], "--prompts"),
        (app, ["keys", "add", "x", "--rol", "admin"], "--role"),
        (service_cli, ["--prot", "1"], "--port"),
        (loadtest_cli, ["run", "--saturat"], "--saturate"),
        (training_cli, ["evaluate", "--goldd", "x"], "--gold"),
    ],
)
def test_a_misspelt_flag_names_the_right_one(
    cli: typer.Typer, words: list[str], meant: str
) -> None:
    refused = asked(cli, *words)
    assert refused.exit_code == 2
    assert meant in re.sub(r"\s+", " ", refused.output), refused.output


def test_values_and_accepted_spellings_are_not_taken_for_misspelt_flags() -> None:
    good = [
        "--port",
        "-1",
        "--engine.enforce-eager",
        "--no-access-log",
        "--default_n=3",
        "--n",
        "x",
    ]
    assert unknown_flag(BenchSettings, good) is None
    assert "--engine" in flags(ServiceSettings)  # a table as JSON
    assert unknown_flag(ServiceSettings, ["--zzz"]) == "no such option: --zzz"


def test_without_a_command_service_serves_and_loadtest_runs() -> None:
    # `--port x` reaches serve, and `--rounds x` reaches run: both refuse the value.
    served = asked(service_cli, "--port", "x")
    assert (served.exit_code, "serve: --port" in served.output) == (2, True), served.output
    loaded = asked(loadtest_cli, "--rounds", "x")
    assert (loaded.exit_code, "run: --rounds" in loaded.output) == (2, True), loaded.output


def test_the_same_command_under_two_names() -> None:
    for words in (["vbon"], ["bon-sft"]):
        short = asked(training_cli, *words, "--help", program="python -m training").output
        long = asked(app, "train", *words, "--help").output
        assert short.split("\n", 1)[1] == long.split("\n", 1)[1]


def test_a_missing_package_names_its_extra_and_other_missing_modules_stay_errors() -> None:
    def run(missing: str) -> Any:
        cli = typer.Typer()
        cli.callback()(lambda: None)

        def raise_missing(_: Settings) -> None:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

        add_settings_command(cli, "x", "Do x.", lambda: configs.ReportConfig, raise_missing)
        return asked(cli, "x")

    wanted = {"torch.nn": "train", "botorch": "botorch", "optuna_integration": "botorch"}
    for package, extra in wanted.items():
        refused = run(package)
        assert refused.exit_code == 1
        assert f"needs the package {package}" in refused.output
        assert f"pip install -e '.[{extra}]'" in refused.output
    assert isinstance(run("service.gone").exception, ModuleNotFoundError)
