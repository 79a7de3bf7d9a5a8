"""The routes whose state the holder has."""

from __future__ import annotations

import re

from starlette.types import Scope

# Those that read are among them where what they read may be in the holder's memory.
HELD: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (method, re.compile(path))
    for method, path in (
        (".+", r"/loadtests(/.*)?"),
        ("GET", r"/page/reports/[^/]+"),
        ("POST", r"/preferences(/pairs)?"),
        ("PUT|DELETE", r"/auto/table"),
        ("POST", r"/tune/runs/[^/]+/apply"),
    )
)


def is_held(scope: Scope) -> bool:
    """True if the holder serves this request."""
    method, path = scope["method"], scope["path"]
    return any(re.fullmatch(methods, method) and one.fullmatch(path) for methods, one in HELD)
