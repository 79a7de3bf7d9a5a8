"""Reads and encodes prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vbon.errors import DataError
from vbon.prompts import Message, Prompt, encode_prompt
from vbon.storage.atomic import reading, write_text


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file, duplicates dropped, in order.

    A line is JSON with ``"prompt"`` (text) or ``"messages"`` (a chat), or else the text itself.

    Raises:
        DataError: missing, unreadable or empty file, or a malformed line, which it names.
    """
    with reading(path):
        if not path.is_file():
            raise DataError(f"prompt file {path} does not exist")
        content = path.read_bytes()
    prompts: dict[str, Prompt] = {}
    # By line feeds alone: str.splitlines() also breaks at characters that JSON strings may hold.
    for number, raw in enumerate(content.split(b"\n"), start=1):
        where = f"{path}:{number}"
        try:
            line = raw.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8: {error.reason}") from error
        if "\0" in line:
            raise DataError(f"{where} holds NUL bytes; a damaged file?")
        if line.strip():
            prompt = _parse(line, where)
            check_text(prompt.key, where)
            prompts.setdefault(prompt.key, prompt)
    if not prompts:
        raise DataError(f"prompt file {path} holds no prompt")
    return list(prompts.values())


def _parse(line: str, where: str) -> Prompt:
    if not line.lstrip().startswith("{"):
        return Prompt(text=line)
    try:
        record = json.loads(line)
        if "messages" in record:
            return chat_of(record["messages"])
        text = record["prompt"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f'{where} is no JSON object with "prompt" or "messages"') from error
    if not isinstance(text, str) or not text:
        raise DataError(f'{where}: "prompt" must be a non-empty string')
    return Prompt(text=text)


def chat_of(messages: Any) -> Prompt:
    """A chat as JSON has it.

    Raises:
        KeyError, TypeError, ValueError: it is none, or a role or content is no text.
    """
    turns = tuple(Message(role=m["role"], content=m["content"]) for m in messages)
    if not all(isinstance(text, str) for turn in turns for text in turn.values()):
        raise TypeError("a turn's role and content are text")
    return Prompt(messages=turns)


def check_text(text: str, where: str) -> None:
    """Refuse what no tokenizer takes and no file holds, though JSON can spell it.

    Raises:
        DataError: the text holds half of a surrogate pair; names where it stands.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise DataError(f"{where} holds {half}, half a character; a damaged file?") from error


def write_prompts(path: Path, prompts: list[str]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def encode_prompts(tokenizer: Any, prompts: list[Prompt]) -> list[tuple[Prompt, list[int]]]:
    """Prompts with their token ids.

    Raises:
        DataError: for a prompt without tokens, or a chat without a chat template.
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
