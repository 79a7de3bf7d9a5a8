"""Prompt files: reading, checking, writing and encoding them.

A line of a prompt file is either JSON with ``"prompt"`` (text) or ``"messages"`` (a chat), or the text
itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vbon.errors import DataError
from vbon.prompts import Message, Prompt, encode_prompt
from vbon.storage.atomic import read_errors, write_text

# Openings of film reviews, which continue well with the sandbox's policy.
BUILT_IN_PROMPTS = (
    "the film was",
    "i watched this movie",
    "what i remember of the new comedy",
    "in this french drama",
    "the acting is",
    "this low budget thriller set in winter",
    "another recent documentary",
    "i watched the old western with my brother and",
)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file, in order and without duplicates.

    Raises:
        DataError: the file is missing, unreadable or empty, or a line is malformed; names the line.
    """
    return list({prompt.key: prompt for prompt, _ in _read_lines(path)}.values())


def read_prompt_texts(path: Path | None, limit: int) -> list[str]:
    """The first ``limit`` prompts of a file, or of the built-in ones, as texts; duplicates are kept.

    Raises:
        DataError: the same as :func:`read_prompts`, or a line is a chat.
    """
    if path is None:
        return list(BUILT_IN_PROMPTS[:limit])
    texts = []
    for prompt, where in _read_lines(path):
        if prompt.text is None:
            raise DataError(f'{where} is a chat; give a JSON object with "prompt", or plain text')
        texts.append(prompt.text)
    return texts[:limit]


def _read_lines(path: Path) -> Iterator[tuple[Prompt, str]]:
    """Each line's prompt, with its place (``FILE:LINE``) for error messages. Blank lines are skipped."""
    with read_errors(path):
        if not path.is_file():
            raise DataError(f"prompt file {path} does not exist")
        content = path.read_bytes()
    empty = True
    # Split at line feeds only: str.splitlines() also splits at characters that JSON strings may contain.
    for number, raw in enumerate(content.split(b"\n"), start=1):
        where = f"{path}:{number}"
        line = _decode_line(raw, where)
        if line.strip():
            prompt = _parse_line(line, where)
            check_text(prompt.key, where)
            empty = False
            yield prompt, where
    if empty:
        raise DataError(f"prompt file {path} contains no prompts")


def _decode_line(raw: bytes, where: str) -> str:
    try:
        line = raw.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8: {error.reason}") from error
    if "\0" in line:
        raise DataError(f"{where} contains NUL bytes; the file may be damaged")
    return line


def _parse_line(line: str, where: str) -> Prompt:
    if not line.lstrip().startswith("{"):
        return Prompt(text=line)
    try:
        record = json.loads(line)
        if "messages" in record:
            return chat_of(record["messages"])
        text = record["prompt"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f'{where} is not a JSON object with "prompt" or "messages"') from error
    if not isinstance(text, str) or not text:
        raise DataError(f'{where}: "prompt" must be a non-empty string')
    return Prompt(text=text)


def chat_of(messages: Any) -> Prompt:
    """The chat prompt of a list of messages, as parsed from JSON.

    Raises:
        KeyError, TypeError, ValueError: not a chat, or a role or content is not a string.
    """
    turns = tuple(Message(role=m["role"], content=m["content"]) for m in messages)
    if not all(isinstance(text, str) for turn in turns for text in turn.values()):
        raise TypeError("a message's role and content must be strings")
    return Prompt(messages=turns)


def check_text(text: str, where: str) -> None:
    """Refuse text with an unpaired surrogate: JSON can express it, but UTF-8 cannot encode it.

    Raises:
        DataError: the text contains one; the message starts with ``where``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DataError(
            f"{where} contains {half}, half a character (an unpaired surrogate); the file may be damaged"
        ) from error


def write_prompts(path: Path, prompts: list[str]) -> None:
    """Write a prompt file with one JSON object per line."""
    write_text(path, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def encode_prompts(tokenizer: Any, prompts: list[Prompt]) -> list[tuple[Prompt, list[int]]]:
    """Each prompt with its token ids.

    Raises:
        DataError: a prompt has no tokens, or is a chat and the tokenizer has no chat template.
    """
    encoded = []
    for prompt in prompts:
        try:
            ids = encode_prompt(tokenizer, prompt)
        except ValueError as error:
            raise DataError(f"prompt {prompt.key[:80]!r}: {error}") from error
        if not ids:
            raise DataError(f"prompt {prompt.key[:80]!r} has no tokens")
        encoded.append((prompt, ids))
    return encoded
