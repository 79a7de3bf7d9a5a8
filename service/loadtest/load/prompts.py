"""Chooses the prompts of a load test: from a file, built in, or generated with random lengths."""

from __future__ import annotations

import random

from service.loadtest.config import LoadTestSettings
from vbon.prompt_files import BUILT_IN_PROMPTS, read_prompt_texts

_WORDS = tuple(dict.fromkeys(word for prompt in BUILT_IN_PROMPTS for word in prompt.split()))


def load_prompts(settings: LoadTestSettings) -> list[str]:
    """The prompts of a run, at least one, in an order fixed by the seed.

    Raises:
        DataError: the file is missing, empty or malformed.
    """
    if settings.prompt_words is not None:
        return generated_prompts(settings.prompt_words, settings.prompt_count, settings.seed)
    return read_prompt_texts(settings.prompts, settings.prompt_count)


def generated_prompts(words: str, count: int, seed: int) -> list[str]:
    """Prompts of random words; ``words`` is ``LENGTH`` or ``LEAST:MOST``, both ends included.

    Prompts rarely begin alike, so a server's prefix cache does not help.
    """
    least, _, most = words.partition(":")
    source = random.Random(seed)
    lengths = [source.randint(*sorted((int(least), int(most or least)))) for _ in range(count)]
    return [" ".join(source.choices(_WORDS, k=length)) for length in lengths]
