"""Texts of given lengths in tokens, as a reward model reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vbon.prompts import Prompt
from vbon.rewards import Scorable

PROMPT = "the film was"
# Common words, of which most tokenizers make one token each.
COMMON = (
    "a and the of to in is it that was good bad long short old new story people time way year man life "
    "day part place work film scene plot music light end first last great small own right big high "
    "little next early young few public same able"
)
WORDS = COMMON.split()
_ROUNDS = 8

Count = Callable[[Sequence[Scorable]], list[int]]


def texts_of(
    lengths: Sequence[int], count_tokens: Count, rng: np.random.Generator
) -> list[Scorable]:
    """One text for each length, of that many tokens or a few less, special tokens included.

    A text is one of random words, whose number is corrected until the tokens fit.

    Args:
        count_tokens: the tokens that the model reads for each text.
    """
    limits = np.asarray(lengths)
    words = [[str(word) for word in rng.choice(WORDS, size=limit)] for limit in limits]
    numbers = limits.copy()
    items = _items(words, numbers)
    for _ in range(_ROUNDS):
        counts = np.asarray(count_tokens(items))
        missing = limits - counts
        if not missing.any():
            return items
        # Words have about as many tokens each as those so far.
        steps = np.rint(missing * numbers / np.maximum(counts, 1)).astype(int)
        steps = np.where(steps == 0, np.sign(missing), steps)
        numbers = np.clip(numbers + steps, 0, limits)
        items = _items(words, numbers)
    # The length cannot be met where one word more is a token too many.
    while (over := np.asarray(count_tokens(items)) > limits).any() and numbers[over].any():
        numbers = np.maximum(numbers - over, 0)
        items = _items(words, numbers)
    return items


def _items(words: list[list[str]], numbers: np.ndarray) -> list[Scorable]:
    return [
        Scorable(Prompt(text=PROMPT), "".join(f" {word}" for word in own[:number]))
        for own, number in zip(words, numbers, strict=True)
    ]
