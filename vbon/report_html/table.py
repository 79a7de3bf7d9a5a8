"""A table of text, for a page and for JSON."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

_FIGURE = re.compile(r"(<= )?-?[\d,.]+%?|-")
_RANGE = re.compile(r"-?[\d,.]+%?( [\[(][^\])]*[\])])?|-")


@dataclass(frozen=True, slots=True)
class ReportTable:
    """One table, of text; ``data`` holds the same figures as plain values for JSON.

    Attributes:
        key: its name in JSON and its class on the page; ``cells`` can be sorted, ``settings`` is folded.
    """

    key: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    data: Any


def aligned(table: ReportTable) -> list[str]:
    """``figure`` for a column of figures, ``range`` if some come with theirs, else nothing."""

    def kind(texts: tuple[str, ...]) -> str:
        if all(_FIGURE.fullmatch(text) for text in texts):
            return "figure"
        return "range" if all(_RANGE.fullmatch(text) for text in texts) else ""

    return [kind(texts) for texts in zip(*table.rows, strict=True)]


def html_table(table: ReportTable) -> str:
    """A scrollable table with caption and headers; long ones stand in a box that opens."""
    kinds = aligned(table)
    heads = "".join(
        f'<th scope="col" class="{kind}">{html.escape(column)}</th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(
            f'<td class="{kind}">{html.escape(text)}</td>'
            for text, kind in zip(row[1:], kinds[1:], strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    title = html.escape(table.title)
    markup = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{title}"><table '
        f'class="{table.key}"><caption>{html.escape(table.caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    if table.key == "settings":
        return f"<details><summary>{title}</summary>{markup}</details>"
    return f"<h3>{title}</h3>{markup}"
