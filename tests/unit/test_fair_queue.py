"""The guarantees of the fair queue under random arrivals and departures."""

from __future__ import annotations

from collections import Counter
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from service.admission.fair_queue import FairQueue, Place
from service.context.caller import ANYBODY, Caller

SEQUENCES, TOKENS = 16, 400
CALLERS = (Caller("a"), Caller("b", max_sequences=6), Caller("c"))

joins = st.tuples(
    st.sampled_from(CALLERS), st.integers(1, 24), st.integers(1, 60), st.integers(-1, 1)
)
leaves = st.integers(0, 10**6)
# None stands for a caller that has not been seen before.
events = st.lists(st.one_of(joins, joins, leaves, st.none()), max_size=60)


class Traffic:
    """Feeds events to a queue and checks all invariants after each."""

    def __init__(self) -> None:
        self.queue = FairQueue(sequences=SEQUENCES, tokens=TOKENS)
        self.there: list[Place] = []
        self.overtaken: dict[Place, Counter[str]] = {}
        self._new = count()

    def play(self, event: tuple[Caller, int, int, int] | int | None) -> None:
        if event is None:
            place = self.queue.join(Caller(f"new{next(self._new)}"), 2, 20)
            self.overtaken[place] = Counter()
            self.there.append(place)
        elif not isinstance(event, int):
            caller, sequences, tokens, priority = event
            sequences = min(sequences, caller.max_sequences or sequences)
            place = self.queue.join(caller, sequences, sequences * tokens, priority)
            self.there.append(place)
        elif self.there:
            self.queue.leave(self.there.pop(event % len(self.there)))
        before = [place for place in self.there if place.state == "waits"]
        self._check_order(before, self.queue.admit())
        self._check_now()

    def _check_order(self, waiting: list[Place], admitted: list[Place]) -> None:
        left = set(waiting) | set(admitted)
        for place in admitted:
            left.discard(place)
            own = [other for other in left if other.caller.name == place.caller.name]
            assert all(other.priority >= place.priority for other in own)
            like = [o for o in own if (o.size, o.priority) == (place.size, place.priority)]
            assert all(other.number > place.number for other in like)
            self.overtaken.pop(place, None)
            for newcomer, by in self.overtaken.items():
                if newcomer in left:
                    by[place.caller.name] += 1
                    # No starvation: each caller already waiting may overtake a new one once, never twice.
                    assert by[place.caller.name] == 1
                    assert place.number < newcomer.number or place.caller in CALLERS

    def _check_now(self) -> None:
        runs = [place for place in self.there if place.state == "runs"]
        waits = [place for place in self.there if place.state == "waits"]
        queue = self.queue
        assert queue.running == sum(place.sequences for place in runs) <= SEQUENCES
        assert queue.running_tokens == sum(place.tokens for place in runs) <= TOKENS
        assert queue.waiting == sum(place.sequences for place in waits)
        own = Counter[str]()
        for place in runs:
            own[place.caller.name] += place.sequences
        assert all(own[c.name] <= c.max_sequences for c in CALLERS if c.max_sequences)
        assert not waits or runs
        # Capacity stays free only if the next request does not fit or its caller is at its limit.
        held = {
            place.caller
            for place in waits
            if place.caller.max_sequences is not None
            and own[place.caller.name] + place.sequences > place.caller.max_sequences
        }
        able = [place for place in waits if place.caller not in held]
        fits = [
            place.sequences <= SEQUENCES - queue.running
            and place.tokens <= TOKENS - queue.running_tokens
            for place in able
        ]
        assert not able or not all(fits)


@given(events)
def test_never_too_many_never_idle_never_out_of_turn_and_nothing_left_behind(
    happened: list[tuple[Caller, int, int, int] | int | None],
) -> None:
    traffic = Traffic()
    for event in happened:
        traffic.play(event)
    while traffic.there:
        traffic.play(len(traffic.there) * 7)
    fresh = FairQueue(sequences=SEQUENCES, tokens=TOKENS)
    del traffic.queue._numbers, fresh._numbers
    assert vars(traffic.queue) == vars(fresh)


@given(events)
def test_everything_that_waits_is_served_in_the_end(
    happened: list[tuple[Caller, int, int, int] | int | None],
) -> None:
    traffic = Traffic()
    for event in happened:
        traffic.play(event)
    for _ in range(len(traffic.there)):
        running = [i for i, place in enumerate(traffic.there) if place.state == "runs"]
        if running:
            traffic.play(running[0])
    assert traffic.there == []


@given(
    st.lists(st.integers(1, 400), min_size=12, max_size=40),
    st.lists(st.integers(1, 40), min_size=12, max_size=40),
)
def test_two_that_both_wait_get_equal_tokens_within_a_request_of_each(
    first: list[int], second: list[int]
) -> None:
    queue = FairQueue(sequences=1, tokens=TOKENS)
    for name, sizes in (("a", first), ("b", second)):
        for tokens in sizes:
            queue.join(Caller(name), 1, tokens)
    left = {"a": len(first), "b": len(second)}
    granted = Counter[str]()
    while all(left.values()):
        [place] = queue.admit()
        granted[place.caller.name] += place.tokens
        left[place.caller.name] -= 1
        assert abs(granted["a"] - granted["b"]) <= max(first) + max(second)
        queue.leave(place)


def test_one_caller_s_small_requests_do_not_wait_for_all_its_large_ones() -> None:
    queue = FairQueue(sequences=64, tokens=10**6)
    for _ in range(100):
        queue.join(ANYBODY, 64, 6400)
    for _ in range(100):
        queue.join(ANYBODY, 1, 100)
    order: list[int] = []
    running = queue.admit()
    while running:
        order.extend(place.sequences for place in running)
        for place in running:
            queue.leave(place)
        running = queue.admit()
    assert order[0] == 64
    # Equal tokens: one large request for 64 small ones, until all small ones are admitted.
    assert order[:66].count(1) >= 64
    assert order[:200].count(64) >= 2
    assert order.count(64) == order.count(1) == 100


def test_small_requests_that_keep_coming_do_not_starve_a_large_one() -> None:
    queue = FairQueue(sequences=8, tokens=10**6)
    running = [queue.join(ANYBODY, 1, 1) for _ in range(8)]
    queue.admit()
    large = queue.join(ANYBODY, 8, 8)
    rounds = 0
    while large.state == "waits":
        queue.join(ANYBODY, 1, 1)
        queue.admit()
        queue.leave(running.pop(0))
        running.extend(queue.admit())
        rounds += 1
        assert rounds < 40


def test_who_is_held_back_by_its_own_limit_holds_nobody_back() -> None:
    queue = FairQueue(sequences=8, tokens=10**6)
    small = Caller("small", max_sequences=2)
    places = [queue.join(small, 2, 2) for _ in range(3)]
    other = queue.join(Caller("other"), 4, 4)
    queue.admit()
    assert [place.state for place in places] == ["runs", "waits", "waits"]
    assert other.state == "runs"


def turns(queue: FairQueue, rounds: int) -> list[Place]:
    """The requests admitted in order when one may run at a time."""
    order = []
    for _ in range(rounds):
        [place] = queue.admit()
        queue.leave(place)
        order.append(place)
    return order


def test_time_away_is_not_saved_up() -> None:
    queue = FairQueue(sequences=1, tokens=10**6)
    steady, back = Caller("steady"), Caller("back")
    queue.join(back, 1, 10)
    for _ in range(100):
        queue.join(steady, 1, 10)
    turns(queue, 50)
    for _ in range(20):
        queue.join(back, 1, 10)
    names = Counter(place.caller.name for place in turns(queue, 20))
    assert names == {"steady": 10, "back": 10}


def test_a_size_that_was_away_does_not_save_it_up_either() -> None:
    queue = FairQueue(sequences=8, tokens=80)
    queue.join(ANYBODY, 1, 80)
    for _ in range(100):
        queue.join(ANYBODY, 8, 80)
    turns(queue, 50)
    for _ in range(20):
        queue.join(ANYBODY, 1, 80)
    assert Counter(place.sequences for place in turns(queue, 20)) == {8: 10, 1: 10}


def test_turns_missed_for_one_s_own_limit_are_not_saved_up() -> None:
    queue = FairQueue(sequences=2, tokens=10**6)
    limited, steady = Caller("limited", max_sequences=1), Caller("steady")
    long = queue.join(limited, 1, 10)
    assert queue.admit() == [long]
    for _ in range(20):
        queue.join(limited, 1, 10)
    for _ in range(100):
        queue.join(steady, 1, 10)
    turns(queue, 50)
    queue.admit()  # one more keeps running, so from here on one is admitted at a time
    queue.leave(long)
    names = Counter(place.caller.name for place in turns(queue, 20))
    assert abs(names["limited"] - names["steady"]) <= 2
