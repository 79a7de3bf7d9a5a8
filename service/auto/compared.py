"""Measured settings beside each other for one kind of request, kept for the next requests of that kind.

A table has up to a thousand settings. To look at all of them for each prompt takes milliseconds of the event
loop, in which nothing else is answered; what is equal for many prompts is therefore worked out once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.auto.choice import Choice, Option, Prices, choose
from service.auto.usable import UsableRow
from service.runtime.routing import Budget

MOST_KINDS, MOST_BUDGETS = 32, 64  # kept; of more, those that were used least recently leave
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Compared:
    """The settings that can answer one kind of request, with what each gains and costs.

    Attributes:
        rows: none if no setting fits the request.
        options: one for each row.
    """

    rows: Sequence[UsableRow]
    options: Sequence[Option]
    _choices: Recent[tuple[UsableRow, Choice]] = field(default_factory=lambda: Recent(MOST_BUDGETS))

    def chosen(self, prices: Prices, budget: Budget | None) -> tuple[UsableRow, Choice]:
        """The best of the settings for a budget, of which there must be one at least.

        Raises:
            InvalidInputError: every setting costs more than the budget, or money has no price here.
        """

        def choice() -> tuple[UsableRow, Choice]:
            found = choose(self.options, prices, budget)
            return next(one for one in self.rows if one.row is found.option.row), found

        return self._choices.get(budget, choice)


class Recent(Generic[T]):
    """Results by their arguments, the few that were used last.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result for a key, made if it is not kept; an error is raised and not kept."""
        found = self._kept.pop(key) if key in self._kept else make()
        self._kept[key] = found
        if len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return found

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
