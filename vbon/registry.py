"""Registries of named parts, built-in or added by entry points of installed packages (docs/plugins.md)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from vbon.errors import InvalidInputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A name must also work as a command, as the mode of a request and in the grid of a sweep.
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name.

    Attributes:
        target: import path, ``package.module:attribute``.
        summary: one line for help texts.
        package: name and version of the distribution that registers it; empty for a built-in one.
    """

    name: str
    target: str
    summary: str = ""
    package: str = ""


class Registry(Generic[T]):
    """The parts of one kind by name. Listing the names imports nothing; a part is imported at its first use.

    A plug-in that cannot be used does not affect the others. :meth:`items` logs a warning and leaves it out;
    looking it up by name raises an error with the reason.

    Args:
        group: entry-point group of plug-ins, such as ``vbon.strategies``.
        kind: what a part is called in messages, such as ``strategy``.
        built_in: the parts of this project, in the order of lists.
        check: returns the imported object if it is a part of this kind, and raises TypeError or ValueError
            with the reason if it is not.
        field: the setting or request field that names a part, for error messages.
        reserved: further names that a plug-in must not have, such as those of commands.
    """

    def __init__(
        self,
        group: str,
        kind: str,
        built_in: Iterable[Entry],
        check: Callable[[object], T],
        *,
        field: str,
        reserved: Collection[str] = (),
    ) -> None:
        self.group, self.kind, self.field = group, kind, field
        self._built_in = {entry.name: entry for entry in built_in}
        self._check, self.reserved = check, frozenset(reserved)
        self._loaded: dict[str, T] = {}
        self._problems: dict[str, str] = {}
        self._logged: set[str] = set()

    @property
    def built_in(self) -> tuple[str, ...]:
        """The names of the parts of this project."""
        return tuple(self._built_in)

    def __iter__(self) -> Iterator[str]:
        """Iterate over all names, including those of plug-ins, without importing anything."""
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, name: str) -> Entry:
        """The entry with this name.

        Raises:
            InvalidInputError: the name is not registered.
        """
        if name not in self._entries:
            raise self._error(f"unknown {self.kind} {name!r}; choose one of {', '.join(self)}")
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        """The part with this name, imported if this is its first use.

        Raises:
            InvalidInputError: the name is not registered, or its plug-in cannot be used.
        """
        if name not in self._loaded:
            entry = self.entry(name)
            if name not in self._problems:
                self._load(entry)
            if name in self._problems:
                raise self._error(self._problems[name])
        return self._loaded[name]

    def items(self) -> Iterator[tuple[str, T]]:
        """Iterate over names and parts. Plug-ins that cannot be used are left out, and logged once."""
        for name in self:
            try:
                part = self[name]
            except InvalidInputError as error:
                if name not in self._logged:
                    logger.warning("%s", error)
                    self._logged.add(name)
            else:
                yield name, part

    def values(self) -> Iterator[T]:
        """Iterate over the parts that can be used."""
        return (part for _, part in self.items())

    def refuse(self, name: str, reason: str) -> None:
        """Mark a plug-in as unusable. ``reason`` is written to follow "cannot be used:"."""
        self._loaded.pop(name, None)
        self._problems[name] = self._unusable(self._entries[name], reason)

    def _load(self, entry: Entry) -> None:
        try:
            part = self._check(imported(entry.target))
        except Exception as error:  # code of a plug-in may raise anything
            if not entry.package:
                raise
            self._problems[entry.name] = self._unusable(entry, " ".join(str(error).split()))
        else:
            self._loaded[entry.name] = part

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        entries = dict(self._built_in)
        for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
            entry = _entry_of(point)
            if not _NAME.fullmatch(entry.name):
                reason = "its name is not lower-case words joined by hyphens"
            elif entry.name in self.reserved or entry.name in self._built_in:
                reason = "its name is taken by a built-in one"
            elif entry.name in entries:
                reason = f"its name is taken by {entries[entry.name].package}"
                self._problems[entry.name] = self._unusable(entry, reason)
                self._logged.add(entry.name)
            else:
                entries[entry.name] = entry
                continue
            logger.warning("%s", self._unusable(entry, reason))
        return entries

    def _unusable(self, entry: Entry, reason: str) -> str:
        return (
            f"{self.kind} {entry.name!r} of package {entry.package} "
            f"(entry point {entry.name} = {entry.target} in {self.group}) cannot be used: {reason}"
        )

    def _error(self, message: str) -> InvalidInputError:
        return InvalidInputError(message, field=self.field)


def built_in_entries(package: str, lines: Mapping[str, str | tuple[str, str]]) -> list[Entry]:
    """The entries for lines ``name: "module:attribute"`` or ``name: ("module:attribute", summary)``.

    Args:
        package: the package that contains the modules.
    """
    entries = []
    for name, line in lines.items():
        target, summary = (line, "") if isinstance(line, str) else line
        entries.append(Entry(name, f"{package}.{target}", summary))
    return entries


def imported(target: str) -> object:
    """The object at an import path ``package.module:attribute``.

    Raises:
        ImportError: importing it raised an exception, which the message names.
    """
    module, _, attribute = target.partition(":")
    try:
        found: object = import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
    except Exception as error:  # code of a plug-in may raise anything
        raise ImportError(f"importing it raised {type(error).__name__}: {error}") from error
    return found


def _entry_of(point: EntryPoint) -> Entry:
    if point.dist is None:
        return Entry(point.name, point.value, package="unknown")
    package = f"{point.dist.name} {point.dist.version}"
    described = "Summary" in point.dist.metadata
    summary = point.dist.metadata["Summary"] if described else "No summary."
    return Entry(point.name, point.value, f"{summary} (from {package})", package)
