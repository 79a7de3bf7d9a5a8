"""Reads the shell commands of the documentation, and gives those of this project to their own parsers."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vbon.cli.main import app
from vbon.cli.typer_help import HelpGroup
from vbon.config import load_settings
from vbon.help.settings import unknown_flag

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(?:bash|sh|console)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_BETWEEN = {"&&", "||", "|", ";", "&"}
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*=")
# `python -m NAME` and `accelerate ... -m NAME`, as commands of `vbon`.
_MODULES = {"vbon": [], "service": [], "training": ["train"], "service.loadtest": ["loadtest"]}


@dataclass(frozen=True)
class DocumentedCommand:
    """A command of a page: its words, without variables before it and comments after it."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def documented_commands() -> Iterator[DocumentedCommand]:
    """Every command in a fenced block of shell."""
    for page in PAGES:
        for indent, block in _FENCE.findall(page.read_text(encoding="utf-8")):
            text = re.sub(rf"^{indent}", "", block, flags=re.MULTILINE).replace("\\\n", " ")
            for words in _split(text):
                yield DocumentedCommand(page.name, words)


def _split(text: str) -> Iterator[list[str]]:
    lines, pending = text.splitlines(), ""
    for line in lines:
        pending += line.removeprefix("$ ")
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            pending += "\n"
            continue
        pending = ""
        yield from _commands_of(words)
    assert not pending, f"a quotation does not end: {pending}"


def _commands_of(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        ended = word in _BETWEEN or word.endswith(";")
        if not ended or (word.endswith(";") and word != ";"):
            command.append(word.rstrip(";"))
        if ended:
            while command and _VARIABLE.match(command[0]):
                command = command[1:]
            if command:
                yield command
            command = []


def arguments_of(words: list[str]) -> list[str] | None:
    """The arguments of `vbon` if a command is one of this project's, else ``None``."""
    if words[0] == "vbon" or words[0].endswith("/vbon"):
        return words[1:]
    if "-m" in words[:-1]:
        place = words.index("-m")
        prefix = _MODULES.get(words[place + 1])
        if prefix is not None:
            return [*prefix, *words[place + 2 :]]
    return None


def parse(arguments: list[str]) -> None:
    """Parse arguments as `vbon` would, and run nothing.

    A word ``...`` stands for settings left out: then only the names of the others are looked at.

    Raises:
        SystemExit, typer's errors, AssertionError: the command would refuse them.
    """
    command: Any = typer.main.get_command(app)
    name, args, context = "vbon", [one for one in arguments if one != "..."], None
    while isinstance(command, HelpGroup):
        context = command.make_context(name, args, parent=context, resilient_parsing=not args)
        rest = [*context._protected_args, *context.args]
        name, command, args = command.resolve_command(context, rest)
        assert command is not None, f"there is no command {rest[0]!r}"
    settings_type = settings_of(command)
    if settings_type is None:
        command.make_context(name, args, parent=context)
        return
    kind = settings_type()
    if len(args) < len(arguments) and "..." in arguments:
        problem = unknown_flag(kind, args)
        assert problem is None, problem
        return
    load_settings(kind, _without_missing_file(args), program=f"vbon {name}")


def settings_of(command: Any) -> Any:
    """The function that gives the settings class of a command made by `add_settings_command`."""
    start = inspect.unwrap(command.callback)
    return inspect.getclosurevars(start).nonlocals.get("settings_type")


def _without_missing_file(args: list[str]) -> list[str]:
    """The arguments without ``--config FILE`` if that file is one that the reader makes."""
    if "--config" in args and not (ROOT / args[args.index("--config") + 1]).exists():
        place = args.index("--config")
        return args[:place] + args[place + 2 :]
    return args
