"""The places that no other place dominates: none costs at most as much and gains at least as much."""

from __future__ import annotations

from collections.abc import Sequence

# A price, the lower the better, and a gain, the higher the better.
Place = tuple[float, float]


def dominates(one: Place, other: Place) -> bool:
    """Tell whether ``one`` has no higher price and no lower gain than ``other``, and differs from it."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


def front(places: Sequence[Place]) -> list[int]:
    """The indices of the places that no other dominates, by rising price; of equal places, all."""
    order = sorted(range(len(places)), key=lambda index: (places[index][0], -places[index][1]))
    kept: list[int] = []
    for index in order:
        last = places[kept[-1]] if kept else None
        if last is None or places[index][1] > last[1] or places[index] == last:
            kept.append(index)
    return kept
