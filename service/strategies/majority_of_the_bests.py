r"""Majority of the bests (arXiv 2511.18630): the most frequent answer of best-of-m, m below N.

An imperfect reward often gives best-of-m's mode the right answer while the single highest reward is wrong.
The paper estimates the distribution of best-of-m's answer by bootstrapping: it draws m of the N candidates
many times and counts the answers of the bests. Over all subsets of size m, the share of those whose best is
candidate i has a closed form,

    w_i = C(rank_i - 1, m - 1) / C(N, m),      rank 1 for the lowest reward,

because the other m - 1 come from the ``rank_i - 1`` candidates below it. So nothing is resampled: an answer's
share is the sum of its candidates' w_i, which is the unbiased estimate of best-of-m's probability of that
answer. (Derived here, and compared with an enumeration of all subsets in the tests. With replacement, as in a
bootstrap, the weights are ``(rank_i / N)^m - ((rank_i - 1) / N)^m``, and the estimate is biased.)

m = 1 is majority voting without rewards, m = N is best-of-N. The bootstrap is consistent if m grows and m/N
falls to 0, which the default, the square root of N, does. The paper chooses m from the rewards; that rule is
not implemented here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from service.strategies.answer_key import MOST_PATTERN, answer_key, compiled
from service.strategies.bounds import MOST_COUNT
from service.strategies.protocol import Float
from service.strategies.rerank import CandidatePool, Reranker, best
from vbon.maths.curves import selection_weights


class MajorityOfTheBests(Reranker):
    """Returns the highest reward among the candidates that give the most frequent answer of best-of-m.

    Answers with the same share are decided by their highest rewards. Candidates that give no answer are
    returned only if none gives one; the highest reward is then returned.
    """

    description: ClassVar[str] = "N samples, the most frequent answer among the bests of m of them"
    source: ClassVar[str] = "arXiv 2511.18630"
    needs: ClassVar[frozenset[str]] = frozenset({"texts"})

    subset_size: int | None = Field(
        None,
        ge=1,
        le=MOST_COUNT,
        description="m of the best-of-m whose answers are counted: 1 counts all candidates alike, n is "
        "best-of-n; default: the square root of n, rounded up; at most n",
    )
    answer_pattern: str | None = Field(
        None,
        max_length=MOST_PATTERN,
        description="regular expression (RE2) whose last match is the answer, or the first group of that "
        "match, such as '####\\s*(.+)'; default: the whole text. Answers are compared without case, "
        "surplus spaces and punctuation at their ends",
    )

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            compiled(value)
        return value

    def answers(self, pool: CandidatePool) -> list[str | None]:
        """The normalised answer of each candidate; ``None`` if it gives none."""
        assert pool.texts is not None
        return [answer_key(text, self.answer_pattern) for text in pool.texts]

    def shares(self, pool: CandidatePool) -> dict[str, float]:
        """The estimated probability that best-of-m gives each answer."""
        count = len(pool.rewards)
        size = min(self.subset_size or math.ceil(math.sqrt(count)), count)
        found: dict[str, float] = defaultdict(float)
        weights = selection_weights(pool.rewards, size)
        for answer, weight in zip(self.answers(pool), weights, strict=True):
            if answer is not None:
                found[answer] += float(weight)
        return dict(found)

    def distribution(self, pool: CandidatePool) -> Float:
        """All probability on the highest reward of the most frequent answer."""
        shares, answers = self.shares(pool), self.answers(pool)
        if not shares:
            return best(pool.rewards)
        # Shares are sums of floats, so those of equal answers may differ in their last digits.
        most = max(shares.values()) - 1e-9
        frequent = np.array([answer is not None and shares[answer] >= most for answer in answers])
        return best(np.where(frequent, pool.rewards, -np.inf))

    def facts(self, pool: CandidatePool, weights: Float) -> dict[str, object]:
        """The answer, its share among the bests, and the number of different answers."""
        shares, answer = self.shares(pool), self.answers(pool)[int(np.argmax(weights))]
        return {
            "answer": None if answer is None else answer[:200],
            "share": None if answer is None else round(shares[answer], 6),
            "answers": len(shares),
        }
