"""Reads JSON files that others may have written, so that whatever is wrong with one is a ``ValueError``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json_file(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON; the message says why, without the path.
    """
    return parse_json(path.read_bytes())


def parse_json(content: bytes) -> Any:
    """The value that JSON stands for.

    Raises:
        ValueError: it is not JSON; the message says why.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
