"""Prompt files: reading, checking, writing and encoding them.

Every command reads its prompts here. A record is a text, or an object with ``"prompt"`` (text, or a list of
messages) or with ``"messages"`` or ``"conversations"`` (a chat, in OpenAI's or ShareGPT's form);
:mod:`vbon.record_files` says which files hold records.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from vbon.errors import DataError
from vbon.prompts import Message, Prompt, Role, encode_prompt
from vbon.record_files.read import read_records
from vbon.record_files.records import Record, RecordFile, describe_value, find_column, listed
from vbon.storage.atomic import write_text

logger = logging.getLogger(__name__)

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
    "the director of this picture",
    "nobody expected the ending",
    "this comedy about a small town",
    "we saw the war film last night and",
    "her first role in a musical",
    "the plot of the crime story",
    "for a film about friendship",
    "the script is",
)

_CHATS = ("messages", "conversations")  # keys and columns that hold chats
# Keys and columns that hold prompts; the first of them that a record has is used.
PROMPT_COLUMNS = (*_CHATS, "prompt")
# Speakers of ShareGPT's conversations, and their roles here.
_SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class PromptFile:
    """Prompts as they stand in a file, duplicates included.

    Attributes:
        name: the source for messages.
        form: the form of the file, such as ``"JSON lines"``; empty for built-in prompts.
        sha256: hash of the file's bytes.
    """

    name: str
    form: str
    prompts: tuple[Prompt, ...]
    sha256: str

    def distinct(self) -> list[Prompt]:
        """The prompts without duplicates, in order."""
        return list({prompt.key: prompt for prompt in self.prompts}.values())

    def first(self, limit: int) -> list[Prompt]:
        """The first prompts, at most ``limit``, duplicates included."""
        return list(self.prompts[:limit])

    def describe(self, *, keeps_duplicates: bool, limit: int | None = None) -> str:
        """One sentence on what was read and how much of it is used.

        Args:
            limit: the number of prompts that are used at most.
        """
        count, chats = len(self.prompts), sum(bool(prompt.messages) for prompt in self.prompts)
        said = f"{self.name}: {counted(count, 'prompt')}"
        if self.form:
            said += f" from {self.form}"
        if chats:
            said += ", all chats" if chats == count else f", {chats} of them chats"
        answered = sum(p.messages[-1]["role"] == "assistant" for p in self.prompts if p.messages)
        if answered:
            said += f" ({answered} end with an assistant's message, which the answer follows)"
        distinct = len(self.distinct())
        if distinct < count:
            what = "kept" if keeps_duplicates else "dropped"
            said += f", {counted(count - distinct, 'duplicate')} {what}"
        usable = count if keeps_duplicates else distinct
        if limit is not None and limit < usable:
            said += f"; the first {limit} are used"
        return said


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def built_in_prompts() -> PromptFile:
    """The prompts that commands use without a file."""
    prompts = tuple(Prompt(text=text) for text in BUILT_IN_PROMPTS)
    return PromptFile("built-in prompts", "", prompts, "")


def read_prompts(
    path: Path, *, column: str | None = None, encoding: str | None = None
) -> list[Prompt]:
    """The prompts of a file, in order and without duplicates; logs what was read.

    Raises:
        DataError: the same as :func:`read_prompt_file`.
    """
    found = read_prompt_file(path, column=column, encoding=encoding)
    logger.info("%s", found.describe(keeps_duplicates=False))
    return found.distinct()


def read_prompt_file(
    path: Path, *, column: str | None = None, encoding: str | None = None
) -> PromptFile:
    """Read a prompt file, or standard input if the path is ``-``.

    Args:
        column: the key or column with the prompts; by default ``messages``, ``conversations`` or ``prompt``.
        encoding: of a text file; by default that of its byte order mark, or UTF-8.

    Raises:
        DataError: the file is missing, unreadable, damaged or empty, or a record is not a prompt; the
            message names the record.
    """
    wanted = (column,) if column else PROMPT_COLUMNS
    file = read_records(path, wanted, encoding=encoding, what="prompt file")
    _check_columns(file, wanted)
    prompts = tuple(_prompt_of(record, column) for record in file.records)
    if not prompts:
        raise DataError(f"prompt file {file.name} contains no prompts")
    return PromptFile(file.name, file.form, prompts, file.sha256)


def _check_columns(file: RecordFile, wanted: Sequence[str]) -> None:
    if file.columns is None or any(find_column(file.columns, name) for name in wanted):
        return
    *first, last = [f'"{name}"' for name in wanted]
    names = f"{', '.join(first)} or {last}" if first else last
    raise DataError(
        f"{file.name} has no column {names}; its columns are {listed(file.columns)}: name the one with the "
        "prompts with --prompt-column"
    )


def _prompt_of(record: Record, column: str | None) -> Prompt:
    where, value = record.where, record.value
    if isinstance(value, dict):
        prompt = _prompt_in(value, where, column)
    elif isinstance(value, str):
        prompt = _text_prompt(value, where, "prompt")
    else:
        raise DataError(f'{where} is not a JSON object with "prompt" or "messages"')
    check_text(prompt.key, where)
    return prompt


def _prompt_in(value: dict[str, Any], where: str, column: str | None) -> Prompt:
    """The prompt of an object; chats come before ``prompt`` unless they are null or an empty cell."""
    for name in (column,) if column else PROMPT_COLUMNS:
        key = find_column(list(value), name)
        chat = name in _CHATS
        if key is None or (value[key] in (None, "") and column is None and chat):
            continue
        found = value[key]
        if chat and isinstance(found, str):  # a cell of a table
            found = _parsed_cell(found, where, name)
        if _is_sharegpt(found):
            return _sharegpt_prompt(found, where, name)
        if chat or isinstance(found, list):
            return _chat(found, where, name)
        return _text_prompt(found, where, name)
    wanted = f'"{column}"' if column else '"prompt" or "messages"'
    raise DataError(
        f"{where} is not a JSON object with {wanted}, but has {listed(list(value))}; name the key of the "
        "prompts with --prompt-column"
    )


def _text_prompt(value: Any, where: str, name: str) -> Prompt:
    if not isinstance(value, str) or not value:
        raise DataError(
            f'{where}: "{name}" must be a non-empty string, but is {describe_value(value)}'
        )
    return Prompt(text=value)


def _chat(messages: Any, where: str, name: str) -> Prompt:
    try:
        return chat_of(messages)
    except _PartError as error:
        raise DataError(f'{where}: "{name}" {error}') from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{where} is not a JSON object with a chat as "{name}": each message must have a "role" '
            f'({", ".join(ROLES)}) and "content" as text, and each of its "tool_calls" a "function" with a '
            '"name"'
        ) from error


def _is_sharegpt(found: Any) -> bool:
    return isinstance(found, list) and any(
        isinstance(turn, dict) and "from" in turn and "role" not in turn for turn in found
    )


def _sharegpt_prompt(turns: list[Any], where: str, name: str) -> Prompt:
    """The chat of a ShareGPT conversation up to its last human turn; answers after it are left out."""
    messages = []
    for turn in turns:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or not isinstance(turn.get("value"), str):
            raise DataError(
                f'{where}: each turn of "{name}" must have "from" and "value" as texts, as all others do'
            )
        if speaker not in _SPEAKERS:
            raise DataError(
                f'{where}: "{name}" has a turn from {speaker!r:.40}; the speakers are '
                f"{', '.join(_SPEAKERS)}"
            )
        messages.append(Message(role=_SPEAKERS[speaker], content=turn["value"]))
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise DataError(f'{where}: "{name}" has no human turn, which an answer could follow')
    return Prompt(messages=tuple(messages))


def _parsed_cell(cell: str, where: str, name: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{where}: "{name}" is not JSON; write the chat as a JSON array') from error


def chat_of(messages: Any) -> Prompt:
    """The chat prompt of a list of messages, as parsed from JSON; keys that no template reads are left out.

    Raises:
        KeyError, TypeError, ValueError: not a chat, or a role or content is not a string.
    """
    return Prompt(messages=tuple(_message_of(message) for message in messages))


def _message_of(found: Any) -> Message:
    calls = found.get("tool_calls") if isinstance(found, dict) else None
    content = found["content"]
    if content is None and calls:  # as OpenAI writes the turn of an assistant that only calls tools
        content = ""
    if isinstance(content, list):  # as OpenAI writes a content of several parts
        content = "".join(_text_of_part(part) for part in content)
    message = Message(role=found["role"], content=content)
    if message["role"] not in ROLES:
        raise ValueError(f"the roles of a chat are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise TypeError("a message's content must be a string")
    if calls:
        message["tool_calls"] = [_call_of(call) for call in calls]
    for key in ("name", "tool_call_id", "reasoning_content"):
        if found.get(key) is not None:
            message[key] = str(found[key])
    return message


def _call_of(call: Any) -> dict[str, Any]:
    if not isinstance(call["function"]["name"], str):
        raise TypeError("the function of a tool call needs a name")
    return dict(call)


class _PartError(ValueError):
    """The content of a message has a part that is not a text."""


def _text_of_part(part: Any) -> str:
    if part["type"] != "text":
        raise _PartError(
            f"has a part of type {part['type']!r:.40}, but only parts of type 'text' can be read"
        )
    if not isinstance(part["text"], str):
        raise TypeError("the text of a part must be a string")
    return str(part["text"])


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


def prompt_record(prompt: Prompt) -> dict[str, Any]:
    """The JSON object of a prompt, as prompt files and requests have it."""
    if prompt.text is not None:
        return {"prompt": prompt.text}
    return {"messages": list(prompt.messages)}


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write a prompt file with one JSON object per line."""
    write_text(path, "".join(json.dumps(prompt_record(prompt)) + "\n" for prompt in prompts))


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
