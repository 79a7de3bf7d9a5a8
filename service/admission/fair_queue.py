"""Fair queue: decides which request is next, first between callers, then between sizes of requests.

Both decisions use start-time fair queueing (Goyal, Vin, Cheng 1996). Each flow has a tag that counts the
tokens granted to it; a new flow starts at the tag of the flow served last. The flow with the lowest tag is
next, and its tag grows by the tokens of the request admitted. While two flows both wait, the tokens granted
to them differ by at most one request of each, however unequal the requests are. Deficit round robin gives
that bound only with quanta as large as the largest request. A new flow is overtaken by at most one request
of each other flow.

The queue has no clock and no tasks. :class:`service.admission.admission.Admission` makes requests wait.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from service.context.caller import Caller


@dataclass(eq=False, slots=True)
class Place:
    """A request in the queue, or admitted. Its size is capped at the whole capacity."""

    caller: Caller
    sequences: int
    tokens: int
    priority: int
    number: int
    state: Literal["waits", "runs", "left"] = "waits"

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: lowest priority first, then first come, first served."""
        return self.priority, self.number

    @property
    def size(self) -> int:
        """Size class of the request: 1, 2 to 7, 8 to 31, 32 to 127, ... sequences."""
        return self.sequences.bit_length() // 2


@dataclass(slots=True)
class _Lane:
    """One caller's waiting requests of one size class, in order."""

    tag: int = 0
    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class _Share:
    """One caller's running and waiting requests.

    Attributes:
        tag: the caller's tag among callers.
        now: tag of the lane served last.
    """

    tag: int = 0
    now: int = 0
    running: int = 0
    waiting: int = 0
    lanes: dict[int, _Lane] = field(default_factory=dict)

    def busy_lanes(self) -> Iterable[_Lane]:
        return (lane for lane in self.lanes.values() if lane.places)

    def next_lane(self) -> _Lane:
        """The lane to serve next: first by the priority of its first request, then by tag."""
        first = min(lane.places[0].priority for lane in self.busy_lanes())
        able = (lane for lane in self.busy_lanes() if lane.places[0].priority == first)
        return min(able, key=lambda lane: (lane.tag, lane.places[0].number))


class FairQueue:
    """Admits requests in fair order, at most ``sequences`` and ``tokens`` at once.

    If the next request does not fit into the free capacity, nothing behind it is admitted either; otherwise
    small requests would keep large ones waiting for ever. A caller at its own limit of sequences is skipped
    instead and blocks nobody.

    Attributes:
        running, running_tokens: sequences and tokens of the admitted requests.
        waiting: sequences of the waiting requests.
    """

    def __init__(self, *, sequences: int, tokens: int) -> None:
        self._sequences, self._tokens = sequences, tokens
        self.running = self.running_tokens = self.waiting = 0
        self._now = 0
        self._shares: dict[str, _Share] = {}
        self._numbers = count()

    def join(self, caller: Caller, sequences: int, tokens: int, priority: int = 0) -> Place:
        """Add a request to the queue. A request over the whole capacity counts as all of it."""
        place = Place(
            caller,
            min(sequences, self._sequences),
            min(tokens, self._tokens),
            priority,
            next(self._numbers),
        )
        share = self._shares.setdefault(caller.name, _Share())
        if not share.waiting:
            share.tag = max(share.tag, self._now)
        lane = share.lanes.setdefault(place.size, _Lane())
        if not lane.places:
            lane.tag = max(lane.tag, share.now)
        insort(lane.places, place, key=lambda other: other.order)
        share.waiting += place.sequences
        self.waiting += place.sequences
        return place

    def start(self, caller: Caller, sequences: int, tokens: int, priority: int = 0) -> Place:
        """Add a request that runs already, whether or not there is room for it."""
        place = Place(
            caller,
            min(sequences, self._sequences),
            min(tokens, self._tokens),
            priority,
            next(self._numbers),
            "runs",
        )
        self._shares.setdefault(caller.name, _Share())
        self._count(place, running=1)
        return place

    def admit(self) -> list[Place]:
        """The requests that may run now, in order. Call it after each :meth:`join` and :meth:`leave`."""
        admitted = []
        while (share := self._next_share()) is not None:
            lane = share.next_lane()
            place = lane.places[0]
            if not self._fits(place):
                break
            lane.places.pop(0)
            share.now, self._now = max(share.now, lane.tag), max(self._now, share.tag)
            lane.tag += place.tokens
            share.tag += place.tokens
            self._count(place, waiting=-1, running=1)
            place.state = "runs"
            admitted.append(place)
        return admitted

    def leave(self, place: Place) -> None:
        """Remove a request that has finished or been cancelled."""
        share = self._shares[place.caller.name]
        if place.state == "waits":
            share.lanes[place.size].places.remove(place)
            self._count(place, waiting=-1)
        elif place.state == "runs":
            self._count(place, running=-1)
        place.state = "left"
        if not self.running and not self.waiting:
            self._shares.clear()
            self._now = 0

    def waiting_of(self, caller: Caller) -> int:
        """Waiting sequences of one caller."""
        share = self._shares.get(caller.name)
        return share.waiting if share else 0

    def callers_waiting(self) -> int:
        """Number of callers with waiting requests."""
        return sum(share.waiting > 0 for share in self._shares.values())

    def _next_share(self) -> _Share | None:
        best: tuple[int, int] | None = None
        found = None
        for share in self._shares.values():
            if not share.waiting:
                continue
            place = share.next_lane().places[0]
            most = place.caller.max_sequences
            if most is not None and share.running + place.sequences > most:
                # The caller is at its own limit. It must not save up its turns for a later burst.
                share.tag = max(share.tag, self._now)
            elif best is None or (share.tag, place.number) < best:
                best, found = (share.tag, place.number), share
        return found

    def _fits(self, place: Place) -> bool:
        return (
            self.running + place.sequences <= self._sequences
            and self.running_tokens + place.tokens <= self._tokens
        )

    def _count(self, place: Place, *, waiting: int = 0, running: int = 0) -> None:
        share = self._shares[place.caller.name]
        share.waiting += waiting * place.sequences
        share.running += running * place.sequences
        self.waiting += waiting * place.sequences
        self.running += running * place.sequences
        self.running_tokens += running * place.tokens
