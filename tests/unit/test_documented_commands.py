"""Commands in README and docs: programs exist, and the real parsers take their flags and values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import typer

from tests.documented_commands import (
    PAGES,
    ROOT,
    DocumentedCommand,
    arguments_of,
    documented_commands,
    parse,
    settings_of,
)
from vbon.cli.main import app
from vbon.cli.typer_help import HelpGroup
from vbon.help.settings import flags

COMMANDS = list(documented_commands())
# Flags in the text that belong to every command, to scripts of this project or to other programs.
OTHER_FLAGS = {"--help", "--config", "--tiny", "--minutes", "--encoder", "--scheduling-policy"}


@pytest.mark.parametrize("one", [one for one in COMMANDS if arguments_of(one.words)], ids=str)
def test_a_documented_command_is_taken_by_its_parser(one: DocumentedCommand) -> None:
    arguments = arguments_of(one.words)
    assert arguments is not None
    parse(arguments)


def test_the_check_finds_commands_on_many_pages_and_refuses_wrong_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [one for one in COMMANDS if arguments_of(one.words) is not None]
    assert len(found) > 50
    assert len({one.page for one in found}) > 12
    for wrong in (
        ["serv"],
        ["train", "vbonn"],
        ["study", "--polcy", "DIR"],
        ["serve", "--workers", "many"],
        ["sample", "--backend", "vlm"],
        ["sample", "--bakend", "vllm", "..."],
        ["keys", "add", "ann", "--rol", "admin"],
        ["loadtest", "--roundz", "3", "..."],
    ):
        assert refused(wrong), wrong
    capsys.readouterr()


def refused(arguments: list[str]) -> bool:
    """True if the command refuses its arguments; any other error is one of this check."""
    try:
        parse(arguments)
    except (SystemExit, AssertionError):
        return True
    except Exception as error:  # typer hides the base class of its errors
        return type(error).__name__ in ("UsageError", "NoSuchOption", "BadParameter")
    return False


def test_documented_scripts_exist() -> None:
    for one in COMMANDS:
        program = one.words[0]
        if program.startswith("scripts/"):
            assert os.access(ROOT / program, os.X_OK), one
        elif "-m" in one.words[:-1] and arguments_of(one.words) is None:
            module = one.words[one.words.index("-m") + 1]
            if module.startswith("tests"):
                assert (ROOT / module.replace(".", "/") / "__main__.py").exists(), one


def test_flags_in_the_text_exist() -> None:
    known = {*OTHER_FLAGS, *all_flags(typer.main.get_command(app))}
    unknown = []
    for page in PAGES:
        if page.name == "log.md":  # says what was, not what is
            continue
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for code in re.findall(r"`(--[^`]+)`", text):
            for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\*?", code):
                if not (
                    any(one.startswith(flag[:-1]) for one in known)
                    if flag[-1] == "*"
                    else flag in known
                ):
                    unknown.append(f"{page.name}: {flag} in `{code}`")
    assert not unknown, "\n".join(unknown)


def all_flags(command: object) -> Iterator[str]:
    """Every flag of a command and of those below it."""
    if isinstance(command, HelpGroup):
        for name in command.list_commands(None):
            yield from all_flags(command.get_command(None, name))
        return
    settings_type = settings_of(command)
    if settings_type is not None:
        yield from flags(settings_type())
    for param in command.params:  # type: ignore[attr-defined]
        yield from (*param.opts, *param.secondary_opts)
