"""How a strategy tells what it is doing to whoever streams the answer."""

from __future__ import annotations

from typing import ClassVar

from service.strategies.scored import ScoredCandidate
from vbon.engine import Candidate, Partial


class Observer:
    """Told of events as they happen; this one does not listen.

    The methods are called on the event loop in the middle of the work: they may not block or raise.

    Attributes:
        follows_tokens: whether :meth:`grown` is of use, which decides how single samples are drawn.
    """

    follows_tokens: ClassVar[bool] = False

    def admitted(self, prompt_tokens: int) -> None:
        """The request has its place; decoding begins."""

    def grown(self, partial: Partial) -> None:
        """The answer of a single-sample mode is longer now."""

    def finished(self, candidate: Candidate) -> None:
        """A candidate is decoded, its score still to come."""

    def scored(self, candidate: ScoredCandidate) -> None:
        """A candidate has its reward (or has none), or was given up with what it had."""


UNOBSERVED = Observer()
