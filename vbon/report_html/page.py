"""Renders reports from templates, and turns plotly figures into parts of them."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

# Okabe and Ito's colours without black and yellow, and an olive instead of the yellow: they can be told apart
# by colour-blind eyes and stand out on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933")

_TEMPLATES = Path(__file__).parent / "templates"
_REMOVED_BUTTONS = ["select2d", "lasso2d", "autoScale2d"]


def render_page(template: Path, values: dict[str, Any]) -> str:
    """The HTML page of a template that extends ``page.html`` and may import ``parts.html``.

    Every value is escaped, except plots of :func:`plot_html`. ``page.html`` needs a ``title``, and ``terms``
    that explain the figures.

    Raises:
        jinja2.UndefinedError: a value that the template uses is missing.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def plot_html(figure: Any, name: str, *, first: bool) -> Markup:
    """A plotly figure as part of a page; the first one of a page includes plotly's script."""
    drawn: str = figure.to_html(
        full_html=False,
        include_plotlyjs=first,
        div_id=name,
        config={
            "displaylogo": False,
            "responsive": True,
            "modeBarButtonsToRemove": _REMOVED_BUTTONS,
        },
    )
    return Markup(drawn)


def markup_safe(text: str) -> str:
    """Text escaped for plotly, which interprets markup in names and hover texts."""
    # plotly does not turn &quot; back into a quotation mark.
    return html.escape(text, quote=False)
