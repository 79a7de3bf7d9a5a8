"""The split of collected prompts: some never train, so that checkpoints can be judged on them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vbon.distil.answer import CollectedAnswer

_LETTERS = re.compile(r"[^\W\d_]+")


def is_held_out(answer: CollectedAnswer, share: float) -> bool:
    """Tell whether an answer's prompt belongs to the held-out share, by a hash.

    The hash is that of :func:`opening`, so a prompt is always on the same side, in every cache; and what a
    smaller share holds out, a larger one holds out too.
    """
    digest = hashlib.sha256(opening(answer).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def opening(answer: CollectedAnswer) -> str:
    """The part of a prompt that decides its side: as :func:`opening_of`."""
    return opening_of(answer.prompt, answer.messages)


def opening_of(prompt: str, messages: Sequence[Mapping[str, Any]] | None) -> str:
    """The part that all turns of a conversation share, in lower case and with single spaces.

    Of a chat, it ends with the first message of a user. A text is one turn, and is taken as a whole.

    Args:
        messages: the chat, instead of the text ``prompt``.
    """
    if messages is None:
        return _plain(prompt)
    parts = []
    for message in messages:
        parts.append(f"{message.get('role')}: {_plain(str(message.get('content')))}")
        if message.get("role") == "user":
            break
    return "\n".join(parts)


def template(answer: CollectedAnswer) -> str:
    """The part of :func:`opening` that is left without digits, punctuation and symbols.

    A text of these alone is its own template.
    """
    text = opening(answer)
    return " ".join(_LETTERS.findall(text)) or text


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
