"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console

LOG_WIDTH = 130


def table_console() -> Console:
    """The terminal at its own width; a log file, which has none, wide enough for whole intervals."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
