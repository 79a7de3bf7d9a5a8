"""What schemathesis cannot know of this API: its modes, counts that end soon, and long time limits.

Two in three bodies are left as they were drawn, but for their time limits.
"""

from __future__ import annotations

from typing import Any

import schemathesis

MODES = ("ref", "bon", "vbon", "soft-bon", "bon@vbon", "auto")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    # A limit of no time is answered with 504, as it asks for; schemathesis takes every 5xx for a fault.
    # Mutants have such limits too, and there a 504 counts as wrong where none was asked for.
    limit_s = body.get("timeout_s")
    if isinstance(limit_s, float) and 0 < limit_s < 1:
        body["timeout_s"] = 1 + limit_s
    if len(str(body)) % 3:
        return body
    mode = MODES[len(str(body)) % len(MODES)]
    if "model" in body:
        body["model"] = mode
    # What does not fit the schema is left as it is: it has to be refused.
    modes = body.get("modes")
    if isinstance(modes, list) and modes and all(isinstance(one, str) for one in modes):
        body["modes"] = ["ref", "bon"]
    if _are_sides(body.get("sides")):
        body["sides"] = [{"mode": "ref"}, {"mode": "bon", "n": 2}]
    for name, most in {"max_tokens": 8, "n": 4, "best_of": 4, "repeats": 2}.items():
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            body[name] = 1 + value % most
    return body


def _are_sides(sides: Any) -> bool:
    if not isinstance(sides, list) or len(sides) != 2:
        return False
    known = (isinstance(one, dict) and one.keys() <= {"mode", "n"} for one in sides)
    return all(known) and all(
        isinstance(one.get("mode"), str) and 0 < len(one["mode"]) <= 128 and one.get("n") is None
        for one in sides
    )
