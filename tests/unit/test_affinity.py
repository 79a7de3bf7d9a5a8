"""The rule that keeps the sequences of a prompt at the replicas that have its prefix."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from vbon.engine.affinity import (
    BLOCK,
    OPENING,
    TOKENS_PER_SEQUENCE,
    Load,
    PrefixAffinity,
    least_busy,
    prefixes,
    price_of_prefill,
    rendezvous,
)

NAMES = ("a", "b", "c", "d")


def prompt(seed: int, tokens: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(32_000) for _ in range(tokens)]


class Fleet:
    """Replicas that decode for ever, and the front end that chooses among them."""

    def __init__(self, *names: str, capacity: int = 256, most_prefixes: int = 2**16) -> None:
        self.capacity = capacity
        self.in_flight = dict.fromkeys(names or NAMES, 0)
        self.served = dict.fromkeys(names or NAMES, 0)
        self.affinity = PrefixAffinity(most_prefixes)

    def loads(self) -> list[Load]:
        return [
            Load(name, count, self.capacity, self.served[name])
            for name, count in self.in_flight.items()
        ]

    def place(self, token_ids: Sequence[int], num_samples: int = 1) -> list[str]:
        """Start the sequences of one request and return their replicas."""
        group = self.affinity.group(token_ids)
        chosen = []
        for _ in range(num_samples):
            name = group.choose(self.loads())
            assert name is not None
            self.in_flight[name] += 1
            chosen.append(name)
        return chosen

    def end_all(self) -> None:
        for name, count in self.in_flight.items():
            self.served[name] += count
            self.in_flight[name] = 0


def test_a_prompt_is_remembered_at_ends_of_blocks_that_its_continuations_share() -> None:
    long = prompt(0, 5_000)
    whole = prefixes(long)
    ends = [one.tokens for one in whole]
    # By hand: 16 blocks of 16, then steps of 64 up to 1,024, of 256 up to 4,096, and of 1,024.
    assert ends == [*range(16, 257, 16), *range(320, 1025, 64), *range(1280, 4097, 256)]
    assert len({one.digest for one in whole}) == len(whole)
    for length in (0, 15, 16, 17, 255, 256, 257, 319, 1_024, 4_999):
        assert prefixes(long[:length]) == tuple(one for one in whole if one.tokens <= length)
    changed = prefixes([*long[:100], long[100] + 1, *long[101:]])
    same = [one.tokens for one, other in zip(whole, changed, strict=True) if one == other]
    assert same == [16, 32, 48, 64, 80, 96]


def test_the_opening_is_one_of_the_prefixes() -> None:
    assert OPENING in [one.tokens for one in prefixes(prompt(0, OPENING))]


def test_a_replica_that_leaves_moves_only_its_own_keys() -> None:
    keys = [f"key {i}".encode() for i in range(1_000)]
    first = {key: rendezvous(key, NAMES)[0] for key in keys}
    # Each count is binomial(1000, 1/4), so outside of 250 +- 70 (5 standard deviations) once in a million.
    assert all(180 < count < 320 for count in Counter(first.values()).values())
    for key in keys:
        order = rendezvous(key, NAMES)
        assert sorted(order) == list(NAMES)
        assert order == rendezvous(key, reversed(NAMES))
        for gone in NAMES:
            rest = [name for name in order if name != gone]
            assert rendezvous(key, [n for n in NAMES if n != gone]) == rest


def test_candidates_stay_together_until_a_replica_is_full_and_then_at_the_next() -> None:
    fleet = Fleet(capacity=10)
    chosen = fleet.place(prompt(1, 1_000), 25)
    assert [len(set(chosen[i : i + 10])) for i in (0, 10, 20)] == [1, 1, 1]
    assert len(set(chosen)) == 3
    # More than all can decode wait where least is in flight.
    fleet.place(prompt(1, 1_000), 23)
    assert list(fleet.in_flight.values()) == [12, 12, 12, 12]


def test_a_group_returns_to_its_first_replica_once_that_has_room() -> None:
    fleet = Fleet(capacity=2)
    group = fleet.affinity.group(prompt(1, 1_000))
    home = group.choose(fleet.loads())
    assert home is not None
    fleet.in_flight[home] = 2
    second = group.choose(fleet.loads())
    assert second != home
    fleet.in_flight[home] = 1
    assert group.choose(fleet.loads()) == home


def test_prompts_without_a_whole_block_go_to_the_least_busy_replica() -> None:
    fleet = Fleet()
    assert Counter(fleet.place(prompt(1, BLOCK - 1), 16)) == dict.fromkeys(NAMES, 4)
    assert len(set(fleet.place(prompt(1, BLOCK), 16))) == 1


def test_of_equally_busy_replicas_the_one_that_served_least_is_taken() -> None:
    assert least_busy([Load("a", 2, 8, 0), Load("b", 1, 8, 5), Load("c", 1, 8, 4)]) == "c"
    assert least_busy([]) is None
    assert PrefixAffinity().group(prompt(1, 100)).choose([]) is None


def test_a_conversation_returns_to_the_replica_that_has_its_turns() -> None:
    fleet = Fleet()
    conversations = {seed: prompt(seed, 300) for seed in range(40)}
    homes = {}
    for turn in range(4):
        for seed, history in conversations.items():
            [name] = fleet.place(history)
            assert homes.setdefault(seed, name) == name, turn
            history += prompt(1_000 * turn + seed, 200)
        fleet.end_all()
    assert set(homes.values()) == set(NAMES)


@pytest.mark.parametrize(
    ("excess", "returns"), [(0, True), (32, True), (39, True), (40, False), (100, False)]
)
def test_a_conversation_returns_unless_its_replica_is_much_busier(
    excess: int, returns: bool
) -> None:
    """By hand: 2,048 tokens to compute elsewhere weigh as much as 2,048 / 64 = 32 sequences.

    A quarter of the mean load comes on top, and of the 512 places e are taken, so that the tokens cost
    1 / (1 - e/512) times as much: e <= 32 / (1 - e/512) + e/2/4 holds up to e = 39.6.
    """
    assert TOKENS_PER_SEQUENCE == 64
    fleet = Fleet("home", "other")
    history = prompt(7, 2_048)
    fleet.in_flight["other"] = 1
    assert fleet.place(history) == ["home"]
    fleet.in_flight.update(home=excess, other=0)
    assert (fleet.place(history) == ["home"]) == returns


@pytest.mark.parametrize(
    ("front_ends", "price"),
    [
        (0.0, 1.0),
        (1.0, 4 / 3),
        (2.0, 2.0),
        (3.0, 4.0),
        (3.5, 8.0),
        (3.9, 8.0),
        (4.0, 8.0),
        (9.0, 8.0),
    ],
)
def test_prompt_tokens_cost_more_the_busier_all_replicas_are(
    front_ends: float, price: float
) -> None:
    """By hand: 25 of 100 places are taken, and so many times as many by all front ends together."""
    loads = [Load("a", 20, 50), Load("b", 5, 50)]
    assert price_of_prefill(loads, front_ends) == pytest.approx(price)


@pytest.mark.parametrize(
    ("others", "waits"), [(0, False), (1, False), (2, False), (3, True), (7, True)]
)
def test_a_request_waits_at_a_full_replica_if_that_costs_less_than_its_prompt(
    others: int, waits: bool
) -> None:
    """By hand: 8 places each, home has 8 sequences and the three others x each; the prompt has 160 tokens.

    Home costs 8 * 64 = 512, another 160 / (1 - (8 + 3x)/32) + 64x, which is 412 for x = 2 and 533 for 3;
    costs up to a quarter of the mean load above it, 56 and 68, are alike.
    """
    fleet = Fleet(capacity=8)
    history = prompt(7, 160)
    [home] = fleet.place(history)
    fleet.in_flight.update(dict.fromkeys(NAMES, others) | {home: 8})
    assert waits == (fleet.place(history) == [home])


def test_the_sequences_of_a_request_that_waits_stay_together() -> None:
    fleet = Fleet(capacity=8)
    history = prompt(7, 1_000)
    [home] = fleet.place(history)
    fleet.in_flight.update(dict.fromkeys(NAMES, 6) | {home: 8})
    assert fleet.place(history, 6) == [home] * 6


def test_nobody_waits_behind_more_than_one_replica_full_of_sequences() -> None:
    for length in (64, 1_000, 30_000):
        fleet = Fleet(capacity=8)
        history = prompt(7, length)
        for _ in range(100):
            fleet.place(history)
            least = min(fleet.in_flight.values())
            assert max(fleet.in_flight.values()) <= least + 8 + 1


def test_the_longer_of_two_shared_beginnings_decides() -> None:
    """Conversations with one system prompt differ after it, and each returns to its own replica."""
    fleet = Fleet("x", "y")
    system = prompt(0, 512)
    first, second = system + prompt(1, 512), system + prompt(2, 512)
    fleet.in_flight["y"] = 40
    assert fleet.place(first) == ["x"]
    fleet.in_flight.update(x=40, y=0)
    assert fleet.place(second) == ["y"]
    fleet.end_all()
    assert fleet.place(first + prompt(3, 100)) == ["x"]
    assert fleet.place(second + prompt(4, 100)) == ["y"]


def test_new_prompts_go_where_load_is_least_and_no_replica_gets_more_than_the_bound() -> None:
    fleet = Fleet(capacity=1_000)
    for seed in range(200):
        fleet.place(prompt(seed, 400), 4)
    mean = sum(fleet.in_flight.values()) / len(NAMES)
    # A replica takes a prompt up to a quarter of the mean above the least busy one.
    assert max(fleet.in_flight.values()) <= min(fleet.in_flight.values()) + 0.25 * mean + 4


def test_front_ends_that_do_not_know_of_each_other_agree() -> None:
    for seed in range(50):
        history = prompt(seed, 100)
        longer = history + prompt(seed + 100, 2_000)
        assert Fleet().place(history, 16) == Fleet().place(longer, 16)


def test_a_replica_that_restarts_has_nothing_cached() -> None:
    fleet = Fleet("home", "other")
    history = prompt(7, 2_048)
    fleet.in_flight["other"] = 1
    fleet.place(history)
    fleet.affinity.forget("home")
    fleet.in_flight.update(home=2, other=1)
    assert fleet.place(history) == ["other"]


def test_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    fleet = Fleet("home", "other", most_prefixes=64)
    kept = prompt(0, 256)
    for seed in range(1, 50):
        fleet.in_flight.update(home=0, other=1)
        fleet.place(kept)
        fleet.in_flight.update(home=0, other=0)
        fleet.place(prompt(seed, 256))
        assert len(fleet.affinity._holders) <= 64
    held = fleet.affinity.held(prefixes(kept), ("home", "other"))
    assert held["home"] == 256
    assert fleet.affinity.held(prefixes(prompt(1, 256)), ("home", "other")) == {
        "home": 0,
        "other": 0,
    }
