"""A table of texts, for a page, the terminal and JSON."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

ColumnKind = Literal["figure", "range", ""]

_FIGURE = re.compile(r"(<= )?-?[\d,.]+%?|-")
_RANGE = re.compile(r"-?[\d,.]+%?( [\[(][^\])]*[\])])?|-")


@dataclass(frozen=True, slots=True)
class ReportTable:
    """One table of texts; ``data`` holds the same figures as plain values for JSON.

    Attributes:
        key: its name in JSON and its class on the page, where a table of class ``cells`` can be sorted and
            ``settings`` is folded.
    """

    key: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    data: Any

    @property
    def column_kinds(self) -> list[ColumnKind]:
        """``figure`` for a column of figures, ``range`` if some have a range or interval, else empty."""
        return [_kind(texts) for texts in zip(*self.rows, strict=True)]


def _kind(texts: tuple[str, ...]) -> ColumnKind:
    if all(_FIGURE.fullmatch(text) for text in texts):
        return "figure"
    return "range" if all(_RANGE.fullmatch(text) for text in texts) else ""
