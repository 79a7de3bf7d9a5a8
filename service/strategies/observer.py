"""Observers, through which a strategy reports its progress to a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from service.strategies.scored import ScoredCandidate
from vbon.engine import Candidate, ModelInfo, Partial


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first event of a request: decoding starts.

    Attributes:
        policy: the model that decodes.
        reranks: whether the answer is chosen among several candidates.
        most_candidates: the most that may be drawn.
    """

    prompt_tokens: int
    policy: ModelInfo
    reranks: bool
    most_candidates: int = 1


class Observer:
    """Base class of observers; ignores all events.

    The methods are called on the event loop during decoding, so they must not block or raise.

    Attributes:
        follows_tokens: True if the observer uses :meth:`grown`; single samples are then streamed.
        has_tokens: True once it has been told tokens of an answer, which another model cannot go on with.
        has_candidates: True once it has been told of candidates, which cannot be taken back.
    """

    follows_tokens: ClassVar[bool] = False
    has_tokens: bool = False
    has_candidates: bool = False

    def admitted(self, admitted: Admitted) -> None:
        """The request was admitted and decoding starts."""

    def grown(self, partial: Partial) -> None:
        """The sample of a single-sample mode has grown."""

    def finished(self, candidate: Candidate) -> None:
        """A candidate has been decoded and not yet scored."""

    def scored(self, candidate: ScoredCandidate) -> None:
        """A candidate has been scored, has no score, or was rejected early."""


UNOBSERVED = Observer()
