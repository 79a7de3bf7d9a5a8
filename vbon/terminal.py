"""The console that tables are printed to."""

from __future__ import annotations

import sys

from rich.console import Console

LOG_WIDTH = 130


def table_console() -> Console:
    """A console as wide as the terminal, or 130 columns for a file, enough to keep intervals in one line."""
    return Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
