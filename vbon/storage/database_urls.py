"""URLs of databases in reports and messages, which get passed on: without their passwords."""

from __future__ import annotations

import re


def without_password(url: str) -> str:
    """A database URL without its password, even one with ``@`` in it, and without its query."""
    return re.sub(r"\?.*", "?***", re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", url))
