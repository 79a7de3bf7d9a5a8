"""Chooses settings: finalists on tuning prompts, an order on validation prompts, one on test prompts.

The best of many settings looks better than it is. So the figures that choose the finalists are not those
that decide: these are measured again on other prompts with other seeds. On the test prompts, settings are
looked at in an order that was fixed before, from the widest margin to the lowest price, and the last one
before the first failure is taken. A fixed order keeps the error of one test for all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.tune.question import Priced, Question

_PER_DRAWING = 3  # finalists of one drawing, so that they do not all rest on the same candidates
_ROUNDING = 1e-9


def cheapest(rows: Sequence[Priced]) -> Priced | None:
    """The feasible row with the lowest price, the higher gain among equals; ``None`` if none is feasible."""
    found = [row for row in rows if row.feasible]
    return min(found, key=_by_price) if found else None


def best(question: Question, rows: Sequence[Priced]) -> Priced | None:
    """The row that answers the question: the cheapest at the target, or the highest gain in the limits."""
    if question.target is not None:
        return cheapest(rows)
    within = [row for row in rows if row.feasible]
    return max(within, key=lambda row: (row.gains[question.metric].low, -row.price), default=None)


def closest(question: Question, rows: Sequence[Priced]) -> Priced | None:
    """The row that is nearest to feasible: within the limits if any is, with the best lower bound."""
    if not rows:
        return None
    return max(rows, key=lambda row: (not row.over_limits, _lower_bound(question, row), -row.price))


def finalists(question: Question, rows: Sequence[Priced], count: int) -> list[Priced]:
    """The best row of each family of settings that differ in N alone, best first, at most ``count``.

    If fewer are feasible, those that come closest fill up, because chance may have been against them.
    """
    families: dict[object, list[Priced]] = {}
    for row in rows:
        families.setdefault(row.setting.family, []).append(row)
    winners = [found for own in families.values() if (found := best(question, own)) is not None]
    ranked = sorted(winners, key=lambda row: _rank(question, row))
    others = [closest(question, own) for own in families.values()]
    near = [row for row in others if row is not None and not row.feasible]
    near.sort(key=lambda row: (bool(row.over_limits), -_lower_bound(question, row)))
    chosen: list[Priced] = []
    for row in [*ranked, *near]:
        same = sum(one.setting.drawing == row.setting.drawing for one in chosen)
        if len(chosen) < count and same < _PER_DRAWING:
            chosen.append(row)
    return chosen


def test_order(question: Question, rows: Sequence[Priced]) -> list[Priced]:
    """The order of the test: from the widest margin to the lowest price, each cheaper than all before it.

    Only settings that were feasible on the validation prompts are tested. Without a target, the best comes
    first, and the others follow in case it does not bear the load.
    """
    feasible = [row for row in rows if row.feasible]
    if question.target is None:
        return sorted(feasible, key=lambda row: _rank(question, row))
    order: list[Priced] = []
    for row in sorted(feasible, key=lambda row: (-_lower_bound(question, row), row.price)):
        if not order or row.price < order[-1].price - _ROUNDING:
            order.append(row)
    return order


def passed(question: Question, order: Sequence[Priced]) -> list[Priced]:
    """The settings before the first failure, the recommended one first."""
    if question.target is None:
        return [row for row in order if not row.over_limits]
    found: list[Priced] = []
    for row in order:
        if not row.feasible:
            break
        found.insert(0, row)
    return found


def shortfall(question: Question, row: Priced) -> str:
    """The distance of a row from the target and the limits, as a phrase."""
    parts = list(row.over_limits)
    if row.margin is not None and not row.reaches:
        gain = row.gains[question.metric]
        parts.insert(
            0,
            f"its {question.metric} {gain.mean:.4g} [{gain.low:.4g}, {gain.high:.4g}] misses "
            f"{question.target} by {-row.margin.low:.3g} at its lower bound ({row.margin.mean:+.3g} on "
            "average)",
        )
    return "; ".join(parts) or "it meets the target"


def front(question: Question, rows: Sequence[Priced]) -> list[Priced]:
    """The rows that no other beats in both gain and price, by rising price."""
    found: list[Priced] = []
    for row in sorted(rows, key=_by_price):
        gain = row.gains[question.metric].mean
        if row.price < float("inf") and (
            not found or gain > found[-1].gains[question.metric].mean + _ROUNDING
        ):
            found.append(row)
    return found


def _by_price(row: Priced) -> tuple[float, float, int]:
    lower = row.margin.low if row.margin is not None else next(iter(row.gains.values())).low
    return row.price, -lower, row.setting.n


def _rank(question: Question, row: Priced) -> tuple[float, float]:
    if question.target is None:
        return -row.gains[question.metric].low, row.price
    return row.price, -_lower_bound(question, row)


def _lower_bound(question: Question, row: Priced) -> float:
    return row.margin.low if row.margin is not None else row.gains[question.metric].low
