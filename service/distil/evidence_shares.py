"""Bounds on the part of a checkpoint's evidence that one conversation or one API key may have.

A prompt that is asked a thousand times says a thousand times the same. The tests of a checkpoint would
hold for that prompt alone, and whoever asks it would decide.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable
from typing import Literal

# Comparisons that are looked at, so that a long good time gives nobody a long turn.
WINDOW = 1000
# Requests of one key in a row, of those to compare, after which no other is expected. A key with nine tenths
# of the requests has so many once in 40,000.
ALONE = 100
_MOST_CHECKPOINTS = 4

Excess = Literal["conversation_share", "key_share"]


class EvidenceShares:
    """Counts the comparisons of each checkpoint's present test by conversation and by key.

    One conversation may have one comparison, and more once these are at most its share. Keys are counted from
    the moment on at which a second one has sent: a key that is alone has no bound. One that sends
    :data:`ALONE` in a row is alone again, or a single request of another would end the watch of a checkpoint.

    Args:
        conversation: share of the comparisons that one conversation may have.
        key: the same for one API key, once there are several.
    """

    def __init__(self, conversation: float, key: float) -> None:
        self._conversation, self._key = conversation, key
        self._tests: dict[str, _Test] = {}

    def take(self, checkpoint: str, test: Hashable, conversation: str, key: str) -> Excess | None:
        """Count a comparison that is about to be made, or tell whose share it would exceed.

        Args:
            test: the checkpoint's test in progress; another one begins to count anew.
        """
        found = self._tests.get(checkpoint)
        if found is None or found.test != test:
            self._tests.pop(checkpoint, None)
            while len(self._tests) >= _MOST_CHECKPOINTS:
                del self._tests[next(iter(self._tests))]
            found = self._tests[checkpoint] = _Test(test)
        place = hash(conversation)
        if found.conversations[place] >= _most(self._conversation, len(found.window)):
            return "conversation_share"
        if found.several(key) and found.keys[key] >= _most(self._key, found.keys.total()):
            return "key_share"
        found.add(place, key)
        return None

    def give_back(self, checkpoint: str, test: Hashable, conversation: str, key: str) -> None:
        """Count a comparison no longer, which has come to nothing."""
        found = self._tests.get(checkpoint)
        if found is not None and found.test == test:
            found.remove(hash(conversation), key)


def _most(share: float, total: int) -> float:
    """The number of comparisons, of so many, at which one may not have another; the first is allowed."""
    return max(1.0, share * (total + 1))


class _Test:
    """The newest comparisons of one test with their counts.

    Attributes:
        window: conversation and key of each; ``None`` for those of the time with a single key.
    """

    def __init__(self, test: Hashable) -> None:
        self.test = test
        self.window: deque[tuple[int, str | None]] = deque()
        self.conversations: Counter[int] = Counter()
        self.keys: Counter[str] = Counter()
        self._last: str | None = None
        self._in_a_row = 0
        self._several = False

    def several(self, key: str) -> bool:
        """True if other keys than this one, which sends now, have sent lately."""
        if key != self._last:
            self._several = self._last is not None
            self._last, self._in_a_row = key, 0
        self._in_a_row += 1
        self._several &= self._in_a_row <= ALONE
        return self._several

    def add(self, place: int, key: str) -> None:
        """Count a comparison, and the oldest no longer if there are too many."""
        counted = key if self._several else None
        self.window.append((place, counted))
        self.conversations[place] += 1
        if counted is not None:
            self.keys[counted] += 1
        if len(self.window) > WINDOW:
            self._uncount(*self.window.popleft())

    def remove(self, place: int, key: str) -> None:
        """Count one comparison of these no longer."""
        for entry in ((place, key), (place, None)):
            if entry in self.window:
                self.window.remove(entry)
                self._uncount(*entry)
                return

    def _uncount(self, place: int, key: str | None) -> None:
        self.conversations[place] -= 1
        if not self.conversations[place]:
            del self.conversations[place]
        if key is not None:
            self.keys[key] -= 1
