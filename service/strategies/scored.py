"""A candidate with its reward."""

from __future__ import annotations

from dataclasses import dataclass

from vbon.engine import Candidate


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate and its reward; ``None`` if it was not or could not be scored."""

    candidate: Candidate
    reward: float | None
