"""A candidate with its reward."""

from __future__ import annotations

from dataclasses import dataclass

from vbon.engine import Candidate


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate and its reward, which is ``None`` if it was not scored or could not be."""

    candidate: Candidate
    reward: float | None
