"""Chooses the prompts of a load test: from a file, built in, or generated with random lengths."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from service.loadtest.config import LoadTestSettings
from vbon.prompt_files import (
    BUILT_IN_PROMPTS,
    built_in_prompts,
    counted,
    read_prompt_file,
    write_prompts,
)
from vbon.prompts import Prompt

_WORDS = tuple(dict.fromkeys(word for prompt in BUILT_IN_PROMPTS for word in prompt.split()))
_KEPT = "prompts.jsonl"  # in the directory of the run


def load_prompts(
    settings: LoadTestSettings, say: Callable[[str], None] = lambda _: None
) -> list[Prompt]:
    """The prompts of a run, at least one, in an order fixed by the seed.

    Args:
        say: called with a sentence on the file that was read.

    Raises:
        DataError: the file is missing, empty or malformed.
    """
    if settings.prompt_words is not None:
        made = generated_prompts(settings.prompt_words, settings.prompt_count, settings.seed)
        return [Prompt(text=text) for text in made]
    kept = settings.out / _KEPT
    if settings.prompts is None:
        file = read_prompt_file(kept) if kept.is_file() else built_in_prompts()
        return file.first(settings.prompt_count)
    if not _can_be_read_again(settings.prompts) and kept.is_file():
        file = read_prompt_file(kept)
    else:
        file = read_prompt_file(
            settings.prompts, column=settings.prompt_column, encoding=settings.encoding
        )
    say(file.describe(keeps_duplicates=True, limit=settings.prompt_count))
    return file.first(settings.prompt_count)


def served_prompts(
    settings: LoadTestSettings,
    ask: Callable[[LoadTestSettings], list[Prompt] | None],
    say: Callable[[str], None] = lambda _: None,
) -> list[Prompt] | None:
    """The prompts of the server's evaluation, for a new run that names none; ``None`` if there are none.

    Args:
        ask: asks the server.
        say: called with a sentence on them.
    """
    named = settings.prompts is not None or settings.prompt_words is not None
    if named or settings.api != "native" or (settings.out / _KEPT).is_file():
        return None
    found = ask(settings)
    if found is None:
        return None
    used = found[: settings.prompt_count]
    say(f"{counted(len(used), 'prompt')} of the evaluation that the server shows")
    return used


def keep_prompts(
    settings: LoadTestSettings, prompts: Sequence[Prompt], *, served: bool = False
) -> None:
    """Write prompts that cannot be read again beside the results, for a run that is continued.

    Args:
        served: they are from the server; otherwise only those of standard input or a pipe are written.

    Raises:
        ExportError: they could not be written.
    """
    piped = settings.prompts is not None and not _can_be_read_again(settings.prompts)
    if piped or served:
        write_prompts(settings.out / _KEPT, prompts)


def _can_be_read_again(path: Path) -> bool:
    return path.is_file() or path.is_dir() or (str(path) != "-" and not path.exists())


def generated_prompts(words: str, count: int, seed: int) -> list[str]:
    """Prompts of random words; ``words`` is ``LENGTH`` or ``LEAST:MOST``, both ends included.

    Prompts rarely begin alike, so a server's prefix cache does not help.
    """
    least, _, most = words.partition(":")
    source = random.Random(seed)
    lengths = [source.randint(*sorted((int(least), int(most or least)))) for _ in range(count)]
    return [" ".join(source.choices(_WORDS, k=length)) for length in lengths]
