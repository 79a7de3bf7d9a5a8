"""Help pages: one layout for every command, whether typer or a settings class defines its options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NARROW, WIDE = 60, 110
_NAME_COLUMN = 34  # longer names push their text to the next line


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a help page: an option, an argument or a command.

    Attributes:
        name: ``--engine.dtype TEXT``, or a command's name.
        text: one or two sentences.
        default: the default as a user would type it, or an empty string.
    """

    name: str
    text: str
    default: str = ""


@dataclass(frozen=True, slots=True)
class HelpPage:
    """The content of ``--help``.

    Attributes:
        usage: the line after "Usage:".
        summary: one sentence.
        description: further paragraphs, or an empty string.
        groups: titled lists of entries, in order.
        examples: command lines to copy.
        epilog: closing text, such as exit statuses.
    """

    usage: str
    summary: str
    description: str = ""
    groups: Sequence[tuple[str, Sequence[Entry]]] = ()
    examples: Sequence[str] = ()
    epilog: str = ""


def show(page: HelpPage) -> None:
    """Print a help page to standard output."""
    console = Console(file=sys.stdout, highlight=False)
    console.width = max(NARROW, min(console.width, WIDE))
    console.print(_rendered(page))


def _rendered(page: HelpPage) -> Group:
    parts: list[RenderableType] = [
        Text.assemble(("Usage: ", "bold"), page.usage),
        Text(),
        Text(page.summary),
    ]
    if page.description:
        parts += [Text(), Text(page.description)]
    for title, entries in page.groups:
        parts += [Text(), Text(title, style="bold"), _table(entries)]
    if page.examples:
        parts += [Text(), Text("Examples", style="bold")]
        parts += [Padding(Text(line), (0, 0, 0, 2)) for line in page.examples]
    if page.epilog:
        parts += [Text(), Text(page.epilog)]
    return Group(*parts)


def _table(entries: Sequence[Entry]) -> Group:
    width = max(
        (len(entry.name) for entry in entries if len(entry.name) <= _NAME_COLUMN), default=8
    )
    return Group(*(line for entry in entries for line in _lines(entry, width)))


def _lines(entry: Entry, width: int) -> list[RenderableType]:
    """One entry as name and text beside each other, or below each other where the name is long."""
    name = Text(f"  {entry.name}", style="cyan", no_wrap=True, overflow="ignore")
    text = Text(entry.text)
    if entry.default:
        text.append(f"{' ' if entry.text else ''}[default: {entry.default}]", style="dim")
    if len(entry.name) > width:
        return [name, Padding(text, (0, 0, 0, width + 4))]
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_column(width=width + 2, no_wrap=True)
    row.add_column(ratio=1)
    row.add_row(name, text)
    return [row]
