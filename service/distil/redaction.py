"""The redaction hook: a user's function that changes an answer before it is kept, or drops it.

The function gets one dictionary with ``prompt`` (a text) or ``messages`` (a chat), and ``responses`` (texts).
It returns a dictionary of the same form, or ``None`` to drop the answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vbon.distil.answer import CollectedAnswer
from vbon.errors import DataError, InvalidInputError
from vbon.prompt_files import chat_of
from vbon.rewards.python_callable import import_named

Redaction = Callable[[dict[str, Any]], Any]


def open_redaction(spec: str) -> Redaction:
    """Import the function that ``package.module:function`` or ``./file.py:function`` names.

    Raises:
        InvalidInputError: it cannot be imported or called.
    """
    module, _, attribute = spec.rpartition(":")
    if not module or not attribute:
        raise InvalidInputError(
            f"distil.redact is {spec!r}; write package.module:function or ./file.py:function",
            field="distil.redact",
        )
    try:
        found = import_named(module, attribute)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidInputError(
            f"cannot import the function {spec} of distil.redact: {said}", field="distil.redact"
        ) from error
    if not callable(found):
        raise InvalidInputError(
            f"{spec} of distil.redact is {type(found).__name__}, not a function",
            field="distil.redact",
        )
    return found


def redacted(function: Redaction, answer: CollectedAnswer) -> CollectedAnswer | None:
    """The answer as the function returns it; ``None`` if it drops it.

    Token ids spell out a text, so they are left out of an answer whose responses have changed.

    Raises:
        DataError: the function returned something of another form. The message repeats nothing of it.
        Exception: whatever the function raises.
    """
    before = _record(answer)
    after = function(copy.deepcopy(before))
    if after is None:
        return None
    if not isinstance(after, dict) or after.keys() != before.keys():
        names = " and ".join(before)
        raise DataError(f"distil.redact must return a dictionary with {names}, or None")
    responses = after["responses"]
    if not _are_texts(responses) or len(responses) != len(answer.responses):
        raise DataError(f"distil.redact must return {len(answer.responses)} texts as responses")
    if after == before:
        return answer
    if tuple(responses) != answer.responses:
        answer = replace(answer, responses=tuple(responses), response_ids=None)
    return replace(_with_prompt(answer, after), redacted=True)


def _record(answer: CollectedAnswer) -> dict[str, Any]:
    responses = list(answer.responses)
    if answer.messages is None:
        return {"prompt": answer.prompt, "responses": responses}
    return {"messages": [dict(one) for one in answer.messages], "responses": responses}


def _with_prompt(answer: CollectedAnswer, record: dict[str, Any]) -> CollectedAnswer:
    if answer.messages is None:
        if not isinstance(record["prompt"], str) or not record["prompt"]:
            raise DataError("distil.redact must return a text that is not empty as prompt")
        return replace(answer, prompt=record["prompt"])
    try:
        prompt = chat_of(record["messages"])
    except (KeyError, TypeError, ValueError):
        raise DataError("distil.redact must return a chat as messages") from None
    return replace(answer, prompt=prompt.key, messages=prompt.messages)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
