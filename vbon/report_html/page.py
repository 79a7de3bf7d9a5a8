"""Renders reports from templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# Okabe and Ito's colours without black and yellow, and an olive instead of the yellow: they can be told apart
# by colour-blind eyes and stand out on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933")

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: Path, values: dict[str, Any]) -> str:
    """The HTML page of a template that extends ``page.html`` and may import ``parts.html``.

    Every value is escaped, unless it is ``Markup``. ``page.html`` needs a ``title`` and ``terms`` that
    explain the figures. A page with charts also gives their ``style``, ``script`` and ``chart_json``.

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
