"""Reads reward caches in their exchange format, JSONL.

A line has one of two forms, both from the official vBoN code. One prompt per line: ``{"prompt",
"responses", "rewards"}``; ``sample`` writes this form, and adds ``"response_ids"``, ``"finish_reasons"`` and
``"messages"``. One response per line: ``{"prompt", "text", "reward"}``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vbon.errors import DataError
from vbon.prompt_files import chat_of, check_text, encode_prompts
from vbon.prompts import Prompt, appended_ending

Float = NDArray[np.float64]

# A text whose encoding is part of the fingerprint, because the vocabulary alone does not show how the
# tokenizer normalises and which tokens it adds.
PROBE = "The Quick\n  brown fox, 1,234 Ünïcödé 狐"
# Bytes of a file from which on compiling it shows a progress bar.
PROGRESS_FROM = 32 << 20
# Samples tokenised in one call, which is far faster than one by one; also the most held in memory.
BLOCK = 4096


@dataclass(frozen=True, slots=True)
class TokenisedLine:
    """A line as token ids.

    Attributes:
        ids: the prompt.
        rewards: shape ``(M,)``.
        responses: aligned with ``rewards``; ``None`` if the line has no responses.
    """

    prompt: Prompt
    ids: Sequence[int]
    rewards: Float
    responses: Sequence[Sequence[int]] | None


@dataclass(frozen=True, slots=True)
class ParsedLine:
    """A line after parsing and validation.

    Attributes:
        texts: the responses if the line has only their texts, which still have to be encoded.
        response_ids: the responses as they were sampled.
        truncated: True for each response that hit the token limit, ``None`` if the line does not say.
    """

    prompt: Prompt
    rewards: Float
    texts: list[str] | None
    response_ids: list[list[int]] | None
    truncated: list[bool | None]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash that changes with anything that may change a token id of a prompt or response."""
    parts = [
        sorted(tokenizer.get_vocab().items()),
        tokenizer.eos_token_id,
        list(tokenizer(PROBE)["input_ids"]),
        getattr(tokenizer, "chat_template", None),
    ]
    if ending := appended_ending(tokenizer):  # which prompts are encoded without
        parts.append(ending)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@contextmanager
def compile_progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the megabytes done, and show a progress bar for a large file."""
    if total < PROGRESS_FROM:
        yield lambda megabytes: None
        return
    from vbon.progress_bar import ProgressBar  # imports transformers

    with ProgressBar(f"compiling {name} (MB)", total >> 20) as bar:
        yield bar.advance


def raw_lines(
    source: BinaryIO, path: Path, digest: Any, advance: Callable[[int], None]
) -> Iterator[tuple[str, bytes]]:
    """The non-blank lines of a file, each with its position as ``PATH:NUMBER``.

    Args:
        digest: a hashlib object that is updated with every byte.
        advance: called with the number of further megabytes read.
    """
    done = 0
    for number, line in enumerate(source, start=1):
        digest.update(line)
        before, done = done, done + len(line)
        if done >> 20 > before >> 20:
            advance((done >> 20) - (before >> 20))
        if line.strip():
            yield f"{path}:{number}", line


def tokenised(
    raw: Iterable[tuple[str, bytes]],
    tokenizer: Any,
    max_new_tokens: int,
    vocab_size: int | None = None,
) -> Iterator[TokenisedLine]:
    """Parse and tokenise lines, given as ``(position, line)``.

    Responses that come only as text are encoded again, which may give other tokens than were sampled. EOS is
    appended to complete responses, and truncated ones are cut to ``max_new_tokens``. If a line does not say
    which they are, a response of ``max_new_tokens`` or more counts as truncated.

    Raises:
        DataError: a line is malformed (the message names it), or a prompt cannot be encoded.
    """
    block: list[tuple[ParsedLine, list[int]]] = []
    samples = 0
    prompt: Prompt | None = None
    ids: list[int] = []
    for where, line in raw:
        record = parse(line, where, max_new_tokens)
        if vocab_size is not None:
            _check_vocabulary(record, where, vocab_size)
        if record.prompt != prompt:  # lines of one prompt usually follow each other
            [(prompt, ids)] = encode_prompts(tokenizer, [record.prompt])
        block.append((record, ids))
        samples += len(record.rewards)
        if samples >= BLOCK:
            yield from _encoded(block, tokenizer, max_new_tokens)
            block, samples = [], 0
    yield from _encoded(block, tokenizer, max_new_tokens)


def _encoded(
    block: list[tuple[ParsedLine, list[int]]], tokenizer: Any, max_new_tokens: int
) -> Iterator[TokenisedLine]:
    texts = [text for record, _ in block for text in record.texts or ()]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    for record, ids in block:
        responses = record.response_ids
        if record.texts is not None:
            responses = []
            for cut in record.truncated:
                response = list(next(encoded))
                if cut is None:
                    cut = len(response) >= max_new_tokens
                ended = [*response, tokenizer.eos_token_id]
                responses.append(response[:max_new_tokens] if cut else ended)
        yield TokenisedLine(record.prompt, ids, record.rewards, responses)


def parse(line: bytes, where: str, max_new_tokens: int) -> ParsedLine:
    """Parse and validate a line of either form.

    Args:
        where: the line's position, for error messages.

    Raises:
        DataError: the line is malformed; the message names the line and the error.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not valid JSON ({error}); the file may be truncated"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise DataError(f'{where} has no string "prompt"')
    if "rewards" in record:
        values, texts = record["rewards"], record.get("responses")
        if not isinstance(values, list) or not values:
            raise DataError(f'{where}: "rewards" must be a list with at least one number')
    elif "reward" in record:
        values, texts = [record["reward"]], None
        if record.get("text") is not None:
            texts = [record["text"]]
    else:
        raise DataError(f'{where} has neither "rewards" nor "reward"')
    rewards = _rewards(values, where)
    response_ids = record.get("response_ids")
    reasons = record.get("finish_reasons") or [None] * len(values)
    columns = {"responses": texts, "response_ids": response_ids, "finish_reasons": reasons}
    for name, column in columns.items():
        if column is not None and not isinstance(column, list):
            raise DataError(f'{where}: "{name}" must be a list')
        if column is not None and len(column) != len(values):
            raise DataError(f"{where} has {len(column)} {name} but {len(values)} rewards")
    for text in texts or ():
        if isinstance(text, str):
            check_text(text, where)
    if response_ids is not None:
        _check_ids(response_ids, where, max_new_tokens)
        texts = None
    elif texts is not None and not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} has a response that is not a text")
    truncated = [None if reason is None else reason == "length" for reason in reasons]
    return ParsedLine(_prompt(record, where), rewards, texts, response_ids, truncated)


def _rewards(values: list[Any], where: str) -> Float:
    if not set(map(type, values)) <= {int, float}:
        wrong = next(value for value in values if type(value) not in (int, float))
        raise DataError(f"{where}: reward {wrong!r} is not a number")
    try:
        rewards = np.asarray(values, dtype=np.float64)
    except OverflowError as error:
        raise DataError(f"{where} has a reward that is too large for a float") from error
    if not np.isfinite(rewards).all():
        wrong = rewards[~np.isfinite(rewards)][0]
        raise DataError(f"{where}: reward {wrong} is not finite; remove such samples")
    return rewards


def _check_ids(responses: list[Any], where: str, max_new_tokens: int) -> None:
    for ids in responses:
        if (
            not isinstance(ids, list)
            or set(map(type, ids)) != {int}
            or not 0 <= min(ids) <= max(ids) <= np.iinfo(np.int32).max
        ):
            raise DataError(f'{where}: "response_ids" must be non-empty lists of token ids')
        if len(ids) > max_new_tokens:
            raise DataError(
                f"{where} has a response of {len(ids)} tokens, over max_new_tokens = "
                f"{max_new_tokens}; set --max-new-tokens to the limit it was sampled with"
            )


def _check_vocabulary(line: ParsedLine, where: str, vocab_size: int) -> None:
    largest = max((max(ids) for ids in line.response_ids or ()), default=0)
    if largest >= vocab_size:
        raise DataError(
            f"{where} has token id {largest}, but the policy's vocabulary ends at {vocab_size - 1}; "
            "check that the cache was sampled from this policy"
        )


def _prompt(record: dict[str, Any], where: str) -> Prompt:
    check_text(record["prompt"], where)
    if not record.get("messages"):
        return Prompt(text=record["prompt"])
    try:
        prompt = chat_of(record["messages"])
    except (KeyError, TypeError) as error:
        raise DataError(f'{where}: "messages" must be turns with "role" and "content"') from error
    check_text(prompt.key, where)
    return prompt
