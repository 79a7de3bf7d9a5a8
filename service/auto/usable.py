"""The rows of a measured table that describe what a service has now, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.auto.choice import Prices, unpriced
from service.runtime.modes import find_mode
from service.runtime.runtime import Runtime
from service.settings import AUTO, TUNED
from service.strategies import Strategy
from vbon.engine.protocol import MOST_TEMPERATURE
from vbon.errors import InvalidInputError
from vbon.measured.table import MeasuredSetting, MeasuredTable


@dataclass(frozen=True, slots=True)
class UsableRow:
    """A measured setting that the service has now, with the strategy that it names."""

    row: MeasuredSetting
    strategy: Strategy


@dataclass(frozen=True, slots=True)
class Usable:
    """The usable rows of a table, and the reasons against the others.

    Attributes:
        rows: in the order of the table.
        general: sentences that concern all rows.
        refused: a sentence for each row that is not usable by itself, by its place in the table.
    """

    rows: tuple[UsableRow, ...]
    general: tuple[str, ...]
    refused: Mapping[int, str]

    @property
    def reasons(self) -> list[str]:
        """All reasons, each once."""
        return list(dict.fromkeys([*self.general, *self.refused.values()]))


# Everything of a service that decides which rows are usable: it is compared with every request.
State = tuple[object, ...]


def state_of(runtime: Runtime) -> State:
    """The revisions of all models and the policies with a name; equal states have equal usable rows."""
    policies = runtime.policies
    return (
        tuple((name, engine.info.revision) for name, engine in policies.items()),
        None if runtime.reward is None else runtime.reward.revision,
        None if runtime.gold is None else runtime.gold.revision,
    )


def usable_rows(table: MeasuredTable, runtime: Runtime, prices: Prices, hardware: str) -> Usable:
    """Compare a table with what is served."""
    served = {name: engine.info.revision for name, engine in runtime.policies.items()}
    reward = None if runtime.reward is None else runtime.reward.revision
    general = table.stale_everywhere(reward, hardware)
    gold = None if runtime.gold is None else runtime.gold.revision
    if prices.gain == "gold" and gold is not None and gold != table.gold_revision:
        general.append(
            f"The gold rewards of the table are of revision {table.gold_revision} of the gold reward model, "
            f"and this service has revision {gold}."
        )
    stale = table.stale_policies(served)
    found, refused = [], {}
    for place, row in enumerate(table.rows):
        strategy = _strategy(row, runtime)
        if isinstance(strategy, str):
            refused[place] = strategy
            continue
        # A strategy that uses other policies does not say which, so all must be as they were.
        needed = table.policies if strategy.uses_policies else {row.policy: ""}
        reason = next((stale[name] for name in needed if name in stale), None)
        reason = reason or unpriced(row, prices)
        if reason is not None:
            refused[place] = reason
        elif not general:
            found.append(UsableRow(row, strategy))
    return Usable(tuple(found), tuple(general), refused)


def _strategy(row: MeasuredSetting, runtime: Runtime) -> Strategy | str:
    """The strategy that a row names, or a sentence that says why this service does not have it."""
    limits = runtime.settings.limits
    if row.mode in (AUTO, TUNED):
        return f"Mode {row.mode!r} stands for another setting, so it cannot be one."
    if row.policy not in runtime.policies:
        return f"Policy {row.policy!r} of the table is not served."
    try:
        sent = {name: value for name, value in row.settings.items() if value is not None}
        mode = find_mode(runtime.modes, runtime.policies, row.mode, sent, row.policy)
    except InvalidInputError as error:
        return f"Setting {row.label!r} cannot be used: {error}."
    most = mode.strategy.most_candidates(row.n)
    if mode.strategy.reranks and most > limits.max_n:
        return f"Setting {row.label!r} draws up to {most} candidates, over limits.max_n {limits.max_n}."
    if row.max_tokens > limits.max_tokens:
        return (
            f"Setting {row.label!r} has max_tokens {row.max_tokens}, over limits.max_tokens "
            f"{limits.max_tokens}."
        )
    if row.temperature > MOST_TEMPERATURE:
        return (
            f"Setting {row.label!r} has temperature {row.temperature:g}, and engines take "
            f"{MOST_TEMPERATURE:g} at most."
        )
    return mode.strategy
