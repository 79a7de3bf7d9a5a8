"""Token bucket that limits how many tokens an API key may decode a minute."""

from __future__ import annotations


class TokenBucket:
    """Tokens that a caller may still decode; refills evenly and holds at most one minute's tokens.

    A request takes the largest number of tokens that it can decode, and gives back the unused ones when
    it ends. All times are seconds of one clock of the caller's choice.
    """

    def __init__(self, tokens_per_minute: int, now_s: float) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._left = float(tokens_per_minute)
        self._at_s = now_s

    def take(self, tokens: int, now_s: float) -> float:
        """Take the tokens and return 0, or take none and return the seconds until there are enough."""
        self._fill(now_s)
        if tokens <= self._left:
            self._left -= tokens
            return 0.0
        return (tokens - self._left) * 60 / self.tokens_per_minute

    def lose(self, tokens: int, now_s: float) -> None:
        """Take as many of the tokens as there are."""
        self._fill(now_s)
        self._left = max(0.0, self._left - tokens)

    def empty_for_s(self, now_s: float) -> float:
        """Seconds until there is a whole token; 0 if there is one."""
        self._fill(now_s)
        return max(0.0, (1.0 - self._left) * 60 / self.tokens_per_minute)

    def give_back(self, tokens: int, now_s: float) -> None:
        """Return unused tokens; a negative number takes tokens that were decoded beyond those taken."""
        self._fill(now_s)
        self._left = min(float(self.tokens_per_minute), self._left + tokens)

    def _fill(self, now_s: float) -> None:
        gained = (now_s - self._at_s) * self.tokens_per_minute / 60
        self._left = min(float(self.tokens_per_minute), self._left + gained)
        self._at_s = now_s
