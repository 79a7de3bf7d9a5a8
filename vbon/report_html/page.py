"""Fills the page, and turns plotly figures into parts of it."""

from __future__ import annotations

import html
import re
from typing import Any

from vbon.report_html.template import PAGE

# Okabe and Ito's colours without black and yellow, an olive for the latter: they differ for
# colour-blind eyes too and stand out on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933")

_BUTTONS_LEFT_OUT = ["select2d", "lasso2d", "autoScale2d"]


def fill_page(*, title: str, terms: str, contents: str, main: str) -> str:
    """The whole page; ``title`` and ``terms`` are text, the other parts HTML already escaped."""
    parts = {
        "title": html.escape(title),
        "terms": html.escape(terms),
        "contents": contents,
        "main": main,
    }
    # One pass, so that a record's text that looks like a slot stays text.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], PAGE)


def plot_html(figure: Any, name: str, *, first: bool) -> str:
    """A plotly figure as part of a page; the first one brings plotly's script with it."""
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=first,
        div_id=name,
        config={
            "displaylogo": False,
            "responsive": True,
            "modeBarButtonsToRemove": _BUTTONS_LEFT_OUT,
        },
    )
    return drawn


def markup_safe(text: str) -> str:
    """Text for plotly, which takes markup in names and hover texts."""
    # plotly does not turn &quot; back into a quotation mark.
    return html.escape(text, quote=False)
