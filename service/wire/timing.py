"""The heartbeats of a connection, by which each side notices that the other one is gone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds between heartbeats, and the silence after which the other side counts as dead.

    A process that dies is noticed at once, because the system closes its sockets; these times are for one
    that hangs, and for a network that fails.

    Attributes:
        beat_s: seconds between two heartbeats.
        silence_s: seconds without any message after which the other side counts as dead. They are counted in
            heartbeats of one's own, so that a process which was itself held up does not blame the other.
    """

    beat_s: float = 1.0
    silence_s: float = 10.0

    @property
    def most_missed(self) -> int:
        """The own heartbeats without a message from the other side after which it counts as dead."""
        return max(2, round(self.silence_s / self.beat_s))
