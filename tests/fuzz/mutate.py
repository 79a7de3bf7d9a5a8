"""Valid requests, and what becomes of them: a value of another kind, a key too many, a byte flipped."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from tests.unit.measured import around, as_json, row, table
from tests.unit.tuned_runs import RUN, recommending

# In a server of ``tests.fuzz.server``, all of its settings can be used.
TABLE = table(
    row("ref", 1, max_tokens=3), row("bon", 4, max_tokens=3, gold=around(0.5)),
    row("soft-bon", 2, policy="vbon", settings={"reward_temperature": 0.5}, top_p=0.9, top_k=5),
    row("adaptive-bon", 4, settings={"min_n": 2, "max_n": 4}, temperature=0.5, win_rate=around(0.7)),
)  # fmt: skip

VALID: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/generate?mode=bon", {"prompt": "the film was", "n": 4, "max_tokens": 6, "seed": 7}),
    ("/generate?mode=bon", {"prompt": "a", "n": [1, 2], "max_tokens": 3, "return_candidates": True}),
    ("/generate?mode=ref", {"prompts": ["a", "b"], "max_tokens": 3, "logprobs": True, "stop": ["x"]}),
    ("/generate?mode=vbon", {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
                              "max_tokens": 3}),
    ("/generate?mode=soft-bon", {"prompt": "a", "n": 2, "max_tokens": 3, "reward_temperature": 0.5}),
    ("/generate?mode=bon", {"prompt": "a", "n": 2, "max_tokens": 3, "stream": True, "timeout_s": 4.5}),
    ("/v1/completions", {"model": "bon", "prompt": "a", "best_of": 2, "max_tokens": 3, "logprobs": 0}),
    ("/v1/completions", {"model": "ref", "prompt": ["a", "b"], "max_tokens": 3, "user": "x"}),
    (
        "/v1/completions",
        {"model": "ref", "prompt": "a", "max_tokens": 3, "stream": True,
         "stream_options": {"include_usage": True}},
    ),
    (
        "/v1/chat/completions",
        {"model": "bon@vbon", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
         "max_tokens": 3, "best_of": 2},
    ),
    (
        "/v1/chat/completions",
        {"model": "bon", "max_tokens": 9, "best_of": 3, "n": 2, "seed": -1, "top_k": -1, "min_p": 0.1,
         "min_tokens": 2, "stop_token_ids": [3], "frequency_penalty": 0.5, "presence_penalty": -0.5,
         "repetition_penalty": 1.1, "logit_bias": {"3": 2}, "stop": "", "temperature": None,
         "messages": [{"role": "developer", "content": ""},
                      {"role": "assistant", "content": None, "refusal": None, "annotations": [],
                       "tool_calls": [{"id": "a", "type": "function",
                                       "function": {"name": "f", "arguments": "{}"}}]},
                      {"role": "tool", "tool_call_id": "a", "content": "x", "name": "f"}]},
    ),
    (
        "/v1/chat/completions",
        {"model": "vbon", "max_tokens": 40, "messages": [{"role": "user", "content": "a"}],
         "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {
             "type": "object", "properties": {"a": {"enum": ["b"]}, "c": {"$ref": "#/$defs/D"}},
             "required": ["a"], "$defs": {"D": {"type": "integer", "minimum": 2}}}}}},
    ),
    (
        "/v1/chat/completions",
        {"model": "bon", "max_tokens": 40, "best_of": 2, "stream": True, "parallel_tool_calls": False,
         "messages": [{"role": "user", "content": "a"}], "tool_choice": "required",
         "tools": [{"type": "function", "function": {"name": "f", "parameters": {
             "type": "object", "properties": {"a": {"type": "boolean"}}}}}]},
    ),
    ("/compare", {"prompts": ["a"], "n": 2, "max_tokens": 3, "modes": ["ref", "bon"],
                  "settings": {"bon": {}}, "repeats": 1, "concurrency": 2}),
    ("/compare", {"prompts": ["a", {"messages": [{"role": "user", "content": "hi"}]}], "max_tokens": 3,
                  "modes": ["ref"]}),
    ("/v1/score", {"prompt": "a", "completions": ["b", ""], "model": "reward", "timeout_s": 4.5}),
    ("/v1/score", {"prompts": ["a", {"messages": [{"role": "user", "content": "q"}]}],
                   "completions": ["b", "c"]}),
    ("/v1/score", {"text_1": "a", "text_2": ["b", "c"]}),
    ("/preferences/pairs", {"prompt": "a", "sides": [{"mode": "ref"}, {"mode": "bon", "n": 2}],
                            "max_tokens": 3}),
    ("/preferences", {"pair": "x", "winner": "tie"}),
    ("/loadtests/0123456789ab", {"name": "a", "tags": ["b"]}),
    ("/admin/reload", {"model": "ref"}),
    ("/generate?mode=auto", {"prompt": "a", "max_tokens": 3, "budget": {"tokens": 40}}),
    ("/v1/completions", {"model": "auto", "prompt": ["a", "b"], "max_tokens": 3, "n": 2,
                         "budget": {"reward": -0.5}}),
    ("/auto/table", as_json(TABLE)),
    (f"/tune/runs/{RUN}", recommending()),
    (f"/tune/runs/{RUN}/table", as_json(TABLE)),
    (f"/tune/runs/{RUN}/apply", {"settings": "recommended"}),
    ("/distil/rollback", {"to": None}),
    ("/distil/checkpoints/0001/promote", {"status": "rolling", "step": 0}),
    ("/distil/progress", {"round": "0001", "phase": "train", "done": 3, "of": 9, "left_s": 2.5}),
    ("/distil/checkpoints", {"path": "rounds/0001/checkpoint", "decision": {
        "verdict": "undecided", "reasons": ["a"], "spent": {"training_s": 1.5, "tokens": 3},
        "figures": {policy: {
            figure: {"mean": 0.5, "low": 0.4, "high": 0.6}
            for figure in ("win_rate", "reward", "kl_nats", "length", "truncated_share")
        } for policy in ("candidate", "bon", "reference")}}}),
)  # fmt: skip

PUT = {
    "/auto/table",
    "/distil/progress",
    f"/tune/runs/{RUN}",
    f"/tune/runs/{RUN}/table",
}  # all others are POST

TEXTS = (
    "", " ", "\x00", "a\x00b", "\ud800", "\udfff tail", "\ufeff", "\u202e rtl", "e\u0301" * 50,
    "\u200b\u200d", "👩‍👩‍👧‍👦", "</s>", "<s>", "<|im_end|>", "{{7*7}}", "%s%n", "' or 1=1 --", "<script>",
    "../../etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/", "a" * 20_000, "\r\nx: y", "NaN",
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**40, 0.1, -0.0, 1e-320,
    1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
PATCH = {"/loadtests/0123456789ab"}
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": ""}, [None], {"prompt": "a"})


@dataclass(frozen=True)
class Sent:
    """A request to make; ``valid`` where nothing was changed."""

    target: str
    content: bytes
    headers: dict[str, str]

    @property
    def method(self) -> str:
        """The method of the route that this is for."""
        if self.target in PATCH:
            return "PATCH"
        return "PUT" if self.target in PUT else "POST"


def mutant(chance: random.Random) -> Sent:
    """One to three changes to a valid request, in its structure, its bytes or its headers."""
    target, body = chance.choice(VALID)
    changed: Any = deepcopy(body)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        changed = _structure(changed, chance)
    content = _written(changed, chance)
    if chance.random() < 0.25:
        for _ in range(chance.randint(1, 3)):
            content = _bytes(content, chance)
    if chance.random() < 0.1:
        target = chance.choice(VALID)[0]
    if chance.random() < 0.1:
        target += chance.choice(("?mode=", "&mode=bon&policy=%00", "&x=%ff", "&policy=vbon", "%00"))
    return Sent(target, content, _headers(chance))


def _headers(chance: random.Random) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if chance.random() < 0.1:
        headers["content-type"] = chance.choice(
            ("text/plain", "application/xml", "", "application/json; charset=utf-16", "multipart/form-data",
             "application/x-www-form-urlencoded", "application/vnd.x+json", "a" * 500, ";;;")
        )  # fmt: skip
    if chance.random() < 0.05:
        headers["x-request-id"] = chance.choice(
            ("", "a b", "<b>", "x" * 5000, "ok-1", "é", "a;b\tc")
        )
    if chance.random() < 0.05:
        headers[chance.choice(("accept", "origin", "host", "expect", "authorization", "range"))] = (
            chance.choice(
                ("", "null", "*/*", "100-continue", "Bearer x", "bytes=0-", "http://[", "a,b")
            )
        )
    return headers


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict):
        found += [place for key, inner in value.items() for place in _places(inner, (*at, key))]
    elif isinstance(value, list):
        found += [place for i, inner in enumerate(value) for place in _places(inner, (*at, i))]
    return found


def _structure(body: Any, chance: random.Random) -> Any:
    """Put something else in one place, or take the place away, rename it, wrap it or repeat it."""
    place = chance.choice(_places(body))
    if not place:
        return chance.choice((body, body, [body], _value(chance)))
    holder = body
    for step in place[:-1]:
        holder = holder[step]
    last, kind = place[-1], chance.randrange(6)
    if kind == 0:
        del holder[last]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(TEXTS)[:300] or "n"] = holder.pop(last)
    elif kind == 2:
        holder[last] = [holder[last]] * chance.choice((1, 2, 50))
    elif kind == 3:
        holder[last] = {"content": holder[last]}
    else:
        holder[last] = _value(chance)
    return body


def _value(chance: random.Random) -> Any:
    # A copy, because later changes may be made inside it.
    return deepcopy(chance.choice(chance.choice((TEXTS, NUMBERS, OTHERS))))


def _written(body: Any, chance: random.Random) -> bytes:
    text = json.dumps(body, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.1 and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]}, {text[1:]}"  # every key twice
    if chance.random() < 0.05:
        text = text.replace("3", "1e400").replace("2", "9" * 5000, 1)
    return text.encode("utf-8", "surrogatepass")


def _bytes(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    to = min(len(content), at + chance.randrange(12))
    return chance.choice(
        (
            content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
            content[:at] + chance.randbytes(3) + content[at:],
            content[:at] + content[to:],
            content[:at],
            content[:at] + content[at:to] * 40 + content[to:],
            content[:at]
            + chance.choice((b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"[[", b'"', b"\\u")),
        )
    )
