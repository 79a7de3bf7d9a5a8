"""Typer classes with this project's help pages, lazy commands and default commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from vbon.help.page import Entry, HelpPage, show
from vbon.help.settings import sections, sentence

_WORDS = {"int": "N", "float": "X", "path": "PATH"}
HELP = Entry("--help", "Show this message and exit.")


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command that is imported only when it is run.

    Attributes:
        target: ``package.module:app`` for a whole typer application, as a group of commands, or
            ``package.module:app command`` for one command of it.
        summary: the line in the group's help.
        panel: the heading it stands under.
    """

    target: str
    summary: str
    panel: str

    def load(self) -> Any:
        """The typer command or group."""
        place, _, command = self.target.partition(" ")
        module, _, attribute = place.partition(":")
        found: Any = typer.main.get_command(getattr(import_module(module), attribute))
        return found.get_command(None, command) if command else found


class HelpCommand(TyperCommand):
    """A typer command whose ``--help`` has the layout of the whole project."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page at once; what typer would print after it stays empty."""
        summary, description, examples = sections(self.help or "")
        arguments, options = [], []
        for param in self.params:
            if isinstance(param, TyperArgument):
                arguments.append(Entry(_argument(param), sentence(param.help or "")))
            elif isinstance(param, TyperOption) and not param.hidden:
                options.append(_option(param, ctx))
        pieces = "".join(f" {_argument(p)}" for p in self.params if isinstance(p, TyperArgument))
        groups = [("Arguments", arguments), ("Options", [*options, HELP])]
        show(
            HelpPage(
                usage=f"{ctx.command_path} [OPTIONS]{pieces}",
                summary=summary,
                description=description,
                groups=[group for group in groups if group[1]],
                examples=examples,
                epilog=self.epilog or "",
            )
        )


class HelpGroup(TyperGroup):
    """A group of commands with this project's help page.

    Attributes:
        lazy: commands that are imported only when they are run.
        default: the command that runs where none is named, or ``None``.
    """

    lazy: ClassVar[Mapping[str, Lazy]] = {}
    default: ClassVar[str | None] = None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command before flags that stand alone."""
        if self.default is not None and (not args or args[0].startswith("-")):
            args = args if args and args[0] in ctx.help_option_names else [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; typer's suggestion for a misspelt name knows the lazy ones too."""
        known = dict(self.commands)
        self.commands = {**dict.fromkeys(self.lazy), **known}  # type: ignore[dict-item]
        try:
            return super().resolve_command(ctx, args)
        finally:
            self.commands = known

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, imported if need be."""
        if cmd_name in self.lazy:
            return self.lazy[cmd_name].load()
        return self.commands.get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands in the order in which help shows them."""
        return [*self.lazy, *(name for name in self.commands if name not in self.lazy)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the page at once; what typer would print after it stays empty."""
        panels: dict[str, list[Entry]] = {}
        for name in self.list_commands(ctx):
            lazy = self.lazy.get(name)
            if lazy is not None:
                panel, text = lazy.panel, lazy.summary
            else:
                command = self.commands[name]
                if command.hidden:
                    continue
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                text = sections(command.help or "")[0]
            panels.setdefault(panel, []).append(Entry(name, text))
        summary, description, examples = sections(self.help or "")
        show(
            HelpPage(
                usage=f"{ctx.command_path} COMMAND [ARGS]...",
                summary=summary,
                description=description,
                groups=[*panels.items(), ("General", [HELP])],
                examples=examples,
                epilog=self.epilog or "",
            )
        )


def group_type(
    lazy: Mapping[str, Lazy] | None = None, *, default: str | None = None
) -> type[HelpGroup]:
    """A :class:`HelpGroup` with lazy commands and a default command, for ``typer.Typer(cls=...)``."""
    return type("Group", (HelpGroup,), {"lazy": lazy or {}, "default": default})


def _argument(param: TyperArgument) -> str:
    name = (param.metavar or param.name or "").upper()
    return f"{name}..." if param.nargs == -1 else name


def _option(param: TyperOption, ctx: Any) -> Entry:
    text = sentence(param.help or "")
    if param.is_flag:
        label = " / ".join([*param.opts, *param.secondary_opts])
    else:
        kind: Any = getattr(param, "type", None)
        choices = getattr(kind, "choices", None)
        word = param.metavar or (
            "|".join(choices) if choices else _WORDS.get(getattr(kind, "name", ""), "TEXT")
        )
        label = f"{', '.join(param.opts)} {word}"
    default = param.get_default(ctx)
    shown = "" if default is None or isinstance(default, bool) else str(default)
    if isinstance(default, float):
        shown = f"{default:g}"
    return Entry(label, text, "" if "default:" in text.lower() else shown)
