"""Prefix affinity: the choice of a replica for each sequence, by the prefixes that replicas have cached.

A replica that has decoded a prompt keeps the keys and values of its blocks, so that it computes the next
sequence of the same prompt, or of one that begins alike, from there on. The rule has four parts:

- **Candidates stay together.** The sequences of one request go to one replica until that is full, and only
  then to a second.
- **Requests go where their prefix is.** A replica costs a request the prompt tokens that it has to compute,
  and :data:`TOKENS_PER_SEQUENCE` for each sequence that it has already; the cheapest is chosen. A
  conversation thus returns to its replica unless that is much busier than another.
- **A full replica is worth a wait.** Tokens that are computed once more also delay all requests after them,
  while a wait costs nobody else anything. So the busier all replicas are, the more a prompt token costs
  (:func:`price_of_prefill`), and a request may wait at the replica that has its prefix. That has at most as
  many sequences more than the least busy one as it decodes at once, so that no request waits for long.
- **Equals are told apart by the prompt's opening.** Replicas whose loads differ by no more than
  :data:`BALANCE` allows are ordered by rendezvous hashing, so that front ends that do not know of each
  other's requests agree, and a replica that joins or leaves moves its own share of the prompts only.

Prompts without one whole block have nothing to reuse, and go to the least busy replica.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

# How the replica of a sequence is chosen: by this rule, or the least busy one for each sequence.
Placement = Literal["prefix", "least-busy"]

# Tokens of a block of vLLM's prefix cache on a GPU; on a CPU blocks have 128.
BLOCK = 16
# The tokens of a prompt's opening, by which rendezvous hashing orders the replicas. A longer system prompt
# gives all of its conversations the same order; loads and longer prefixes then tell them apart.
OPENING = 64
# Prompt tokens whose computation takes about as long as one more sequence slows down a request beside it: by
# arithmetic 60 to 160, for a toy on two cores as for 8 B parameters on one GPU.
TOKENS_PER_SEQUENCE = 64
# Loads up to this multiple of the mean count as equal, as in consistent hashing with bounded loads.
BALANCE = 1.25
# The most that a prompt token costs, as a multiple of its own time.
MOST_PRICE = 8.0
# Prefixes that are remembered, about 200 bytes each: those of some thousand long prompts.
MOST_PREFIXES = 2**16


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a replica that may take a sequence.

    Attributes:
        name: tells replicas apart; front ends must use the same one to agree.
        in_flight: sequences sent or waiting to be sent.
        capacity: sequences that it decodes at once.
        served: sequences answered so far, which tells equally busy replicas apart.
    """

    name: str
    in_flight: int
    capacity: int
    served: int = 0

    def has_room(self, sequences: int) -> bool:
        """True if so many more sequences would not wait, or if it is idle."""
        return self.in_flight == 0 or self.in_flight + sequences <= self.capacity


def least_busy(loads: Iterable[Load]) -> str | None:
    """The replica with the least in flight, and of equals the one that has served least."""
    found = min(loads, key=lambda load: (load.in_flight, load.served), default=None)
    return None if found is None else found.name


def price_of_prefill(loads: Sequence[Load], front_ends: float = 1.0) -> float:
    """The cost of computing one prompt token, as a multiple of its own time.

    Work that is added to a queue delays all that comes until the queue is empty again. At a utilisation of u
    that is 1 / (1 - u) times the work on average, itself included; the sequences in flight are the estimate
    of u.

    Args:
        front_ends: sequences of all front ends for each one in ``loads``.
    """
    places = sum(load.capacity for load in loads)
    free = 1 - front_ends * sum(load.in_flight for load in loads) / places
    return min(MOST_PRICE, 1 / free) if free > 0 else MOST_PRICE


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt: its length in tokens, and a hash of them."""

    tokens: int
    digest: bytes


def prefixes(token_ids: Sequence[int]) -> tuple[Prefix, ...]:
    """The prefixes by which a prompt is remembered, the shortest first.

    They end at every block up to 256 tokens, at every fourth up to 1,024, and so on, which keeps them few.
    A prompt that another one continues has the same ones, as far as it goes.
    """
    data = array("q", token_ids)
    state = hashlib.blake2b(digest_size=16)
    found: list[Prefix] = []
    begin = 0
    for end in _ends(len(token_ids)):
        state.update(data[begin:end].tobytes())
        found.append(Prefix(end, state.digest()))
        begin = end
    return tuple(found)


def _ends(length: int) -> Iterable[int]:
    end, step, limit = BLOCK, BLOCK, 16 * BLOCK
    while end <= length:
        yield end
        if end == limit:
            step, limit = 4 * step, 4 * limit
        end += step


def rendezvous(key: bytes, names: Iterable[str]) -> list[str]:
    """The replicas in the order of this key: each has a hash with it, and the highest comes first."""

    def weight(name: str) -> bytes:
        return hashlib.blake2b(name.encode(), key=key, digest_size=8).digest()

    return sorted(names, key=lambda name: (weight(name), name), reverse=True)


class PrefixAffinity:
    """The memory of the prefixes that were sent to the replicas of one policy, and the rule above it.

    Args:
        most_prefixes: prefixes that are remembered; those that were not used for longest are forgotten.
    """

    def __init__(self, most_prefixes: int = MOST_PREFIXES) -> None:
        self._most = most_prefixes
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def group(self, prompt_token_ids: Sequence[int]) -> PromptGroup:
        """The sequences of one request, which have this prompt."""
        return PromptGroup(self, prefixes(prompt_token_ids), len(prompt_token_ids))

    def forget(self, name: str) -> None:
        """Forget what a replica has cached, because it restarts."""
        for digest in [digest for digest, held in self._holders.items() if name in held]:
            self._holders[digest] = tuple(one for one in self._holders[digest] if one != name)

    def held(self, prompt: Sequence[Prefix], names: Iterable[str]) -> dict[str, int]:
        """The prompt tokens that each of these replicas has cached."""
        missing = dict.fromkeys(names, 0)
        found: dict[str, int] = {}
        for prefix in reversed(prompt):
            for name in self._holders.get(prefix.digest, ()):
                if name in missing:
                    found[name] = prefix.tokens
                    del missing[name]
            if not missing:
                break
        return found | missing

    def remember(self, prompt: Sequence[Prefix], name: str) -> None:
        """Remember that a replica has computed this prompt."""
        # The longest first, so that the shorter ones, without which it cannot be cached, are forgotten last.
        for prefix in reversed(prompt):
            held = self._holders.pop(prefix.digest, ())
            self._holders[prefix.digest] = held if name in held else (*held, name)
        while len(self._holders) > self._most:
            self._holders.popitem(last=False)


class PromptGroup:
    """The sequences of one request, which stay together as far as there is room."""

    def __init__(
        self, affinity: PrefixAffinity, prompt: tuple[Prefix, ...], prompt_tokens: int
    ) -> None:
        self._affinity, self._prompt, self._prompt_tokens = affinity, prompt, prompt_tokens
        self._used: list[str] = []
        self._waits = False

    def choose(
        self, loads: Sequence[Load], sequences: int = 1, front_ends: float = 1.0
    ) -> str | None:
        """The replica of the next sequence; ``None`` if there are none.

        Args:
            loads: the replicas that may take it, as they are now.
            sequences: how many sequences are sent at once.
            front_ends: sequences of all front ends for each one in ``loads``.
        """
        if not loads or not self._prompt:
            return least_busy(loads)
        with_room = {load.name: load for load in loads if load.has_room(sequences)}
        for name in self._used:
            if name in with_room:
                return name
        spills = bool(self._used) and not self._waits
        if spills and with_room:
            candidates = list(with_room.values())
        else:
            least = min(load.in_flight for load in loads)
            candidates = [
                load
                for load in loads
                if load.name in with_room or load.in_flight <= least + load.capacity
            ]
        # What a group has spilled is spread evenly where all are full.
        alike = BALANCE if with_room or not spills else 1.0
        price = price_of_prefill(loads, front_ends)
        name = self._cheapest(candidates, price, alike)
        if not self._used:
            self._waits = name not in with_room
        if name not in self._used:
            self._used.append(name)
        self._affinity.remember(self._prompt, name)
        return name

    def _cheapest(self, loads: Sequence[Load], price: float, balance: float) -> str:
        """The replica that has least to compute and to decode.

        Among those alike it is the one that has most of the prompt, and else the first by its opening.

        Args:
            price: of a prompt token.
            balance: loads up to this multiple of the mean are alike.
        """
        held = self._affinity.held(self._prompt, [load.name for load in loads])
        costs = {
            load.name: price * (self._prompt_tokens - held[load.name])
            + TOKENS_PER_SEQUENCE * load.in_flight
            for load in loads
        }
        mean_load = sum(load.in_flight for load in loads) / len(loads)
        alike = min(costs.values()) + (balance - 1) * mean_load * TOKENS_PER_SEQUENCE
        close = [name for name, cost in costs.items() if cost <= alike]
        most = max(held[name] for name in close)
        return rendezvous(self._opening, [name for name in close if held[name] == most])[0]

    @property
    def _opening(self) -> bytes:
        """The key of the prompt's opening, which stays the same as a conversation grows."""
        whole = next((one for one in self._prompt if one.tokens == OPENING), None)
        return (whole or self._prompt[0]).digest
