"""Tokens a minute: a bucket that fills evenly and holds a minute's worth."""

from __future__ import annotations


class Allowance:
    """What a caller may still decode.

    A request takes the most it can decode when it comes, and gives back what it did not. Times are of
    any one clock, in seconds.
    """

    def __init__(self, tokens_per_minute: int, now_s: float) -> None:
        self.tokens_per_minute = tokens_per_minute
        self._left = float(tokens_per_minute)
        self._at_s = now_s

    def take(self, tokens: int, now_s: float) -> float:
        """Take them and return 0, or take nothing and return after how many seconds they are there."""
        self._fill(now_s)
        if tokens <= self._left:
            self._left -= tokens
            return 0.0
        return (tokens - self._left) * 60 / self.tokens_per_minute

    def give_back(self, tokens: int, now_s: float) -> None:
        """What was not decoded after all; less than none where more was."""
        self._fill(now_s)
        self._left = min(float(self.tokens_per_minute), self._left + tokens)

    def _fill(self, now_s: float) -> None:
        gained = (now_s - self._at_s) * self.tokens_per_minute / 60
        self._left = min(float(self.tokens_per_minute), self._left + gained)
        self._at_s = now_s
