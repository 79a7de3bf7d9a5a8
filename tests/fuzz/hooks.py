"""What schemathesis cannot know of this API: which modes there are, and counts that end soon.

Two in three bodies are left as they were drawn.
"""

from __future__ import annotations

from typing import Any

import schemathesis

MODES = ("ref", "bon", "vbon", "soft-bon", "bon@vbon")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    if not isinstance(body, dict) or len(str(body)) % 3:
        return body
    mode = MODES[len(str(body)) % len(MODES)]
    if "model" in body:
        body["model"] = mode
    if isinstance(body.get("modes"), list):
        body["modes"] = ["ref", "bon"]
    if isinstance(body.get("sides"), list):
        body["sides"] = [{"mode": "ref"}, {"mode": "bon", "n": 2}]
    for name, most in {"max_tokens": 8, "n": 4, "best_of": 4, "repeats": 2}.items():
        if isinstance(body.get(name), int):
            body[name] = 1 + body[name] % most
    return body
