"""The prompts of a load test: a file's, the built-in ones, or made ones of sampled lengths."""

from __future__ import annotations

import random

from service.loadtest.config import LoadTestSettings
from vbon.prompt_files import BUILT_IN_PROMPTS, read_prompt_texts

_WORDS = tuple(dict.fromkeys(word for prompt in BUILT_IN_PROMPTS for word in prompt.split()))


def load_prompts(settings: LoadTestSettings) -> list[str]:
    """At least one prompt, in a fixed order for a seed.

    Raises:
        DataError: the file is missing, empty or malformed.
    """
    if settings.prompt_words is not None:
        return made_prompts(settings.prompt_words, settings.prompt_count, settings.seed)
    return read_prompt_texts(settings.prompts, settings.prompt_count)


def made_prompts(words: str, count: int, seed: int) -> list[str]:
    """So many prompts of random words; ``words`` is ``LENGTH`` or ``LEAST:MOST``, both included.

    No two begin alike, as far as chance allows, so a server's prefix cache does not help.
    """
    least, _, most = words.partition(":")
    source = random.Random(seed)
    lengths = [source.randint(*sorted((int(least), int(most or least)))) for _ in range(count)]
    return [" ".join(source.choices(_WORDS, k=length)) for length in lengths]
