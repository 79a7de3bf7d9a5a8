"""Two-sample test of whether new prompts differ from those that were trained on.

The distinct prompts of equally many answers are compared: the newest ones, and as many of those up to the
training. Each prompt is a row: the mean reward of the reference policy's answers, the logarithm of its
length, and the presence of each common word. Whole rows are permuted between the two groups, and the largest
standardised difference among all figures is compared with its distribution over permutations
(:func:`vbon.maths.statistics.joint_permutation`, Westfall & Young 1993). If the prompts of both groups come
from one distribution, in whatever form, the probability that any figure is found to differ is at most the
level. Which words are counted is chosen from both groups together, so the choice does not depend on the
groups.

While a round waits, its prompts are tested up to nine times (:data:`LOOKS`), each time at a ninth of the
level, so a round begins early by mistake with at most the level's probability (Bonferroni).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vbon.distil.loop.stream import SeenPrompt

LOOKS = tuple(i / 10 for i in range(1, 10))  # shares of the new prompts that a round waits for
FEWEST = 24  # prompts of each group; with fewer, little could be found
MOST = 150  # answers of each group whose prompts are compared
_WORDS, _LEAST_SHARE = 60, 0.04
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Drift:
    """Figures that differ, each as a sentence, the surest first."""

    found: tuple[str, ...]
    p_value: float

    def __str__(self) -> str:
        return f"{'; '.join(self.found[:4])} (p = {self.p_value:.2g}, adjusted for all figures)"


def looks_due(new: int, wanted: int) -> int:
    """The number of tests that are due when so many of the wanted new prompts are there."""
    return sum(new >= max(FEWEST, math.ceil(share * wanted)) for share in LOOKS)


def find_drift(
    before: Sequence[SeenPrompt], after: Sequence[SeenPrompt], level: float
) -> Drift | None:
    """The figures by which two groups of prompts differ; ``None`` if none is found at this level."""
    import numpy as np

    from vbon.maths.statistics import joint_permutation

    before = [one for one in before if one.reward is not None]
    after = [one for one in after if one.reward is not None]
    if min(len(before), len(after)) < FEWEST:
        return None
    words = [set(_WORD.findall(one.text)) for one in (*before, *after)]
    shares = Counter(word for one in words for word in one)
    least = _LEAST_SHARE * len(words)
    # Ties are broken by the word itself: the order of first appearance would depend on the groups.
    common = sorted(
        (word for word, count in shares.items() if least <= count <= len(words) - least),
        key=lambda word: (-shares[word], word),
    )[:_WORDS]
    names = ["mean reward", "length", *common]
    rows = np.array(
        [
            [
                one.reward,
                math.log1p(len(one.text.split())),
                *(float(word in has) for word in common),
            ]
            for one, has in zip((*before, *after), words, strict=True)
        ]
    )
    first, second = rows[: len(before)], rows[len(before) :]
    _, adjusted = joint_permutation(first, second)
    order = [i for i in np.argsort(adjusted, kind="stable") if adjusted[i] <= level]
    if not order:
        return None
    return Drift(
        tuple(_said(names[i], first[:, i], second[:, i]) for i in order), float(adjusted[order[0]])
    )


def _said(name: str, first: object, second: object) -> str:
    import numpy as np

    before, after = (float(np.nanmean(np.asarray(one))) for one in (first, second))
    if name == "mean reward":
        return f"the reference policy's mean reward was {before:+.2f}, and is {after:+.2f} now"
    if name == "length":
        return f"prompts had {math.expm1(before):.1f} words, and have {math.expm1(after):.1f} now"
    return f"the word {name!r} was in {before:.0%} of the prompts, and is in {after:.0%} now"
