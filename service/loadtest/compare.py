"""Two runs against each other: what differs by more than their own rounds and prompts do.

Rounds of two runs are exchangeable if nothing changed, so speeds are tested by permuting them; rewards on the
same prompts are paired, and tested by flipping signs. Runs on different days also differ by what the machine
did meanwhile, which no test here can know.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from service.loadtest.figures import interval, permutation_p, ratio_interval, sign_flip_p
from service.loadtest.schema import CellResult, LoadTestResult, Quality, Round

LEVEL = 0.05
Verdict = Literal["better", "worse", "no difference seen", "too few rounds"]


class Difference(BaseModel):
    """One figure in both runs; ``change`` is B over A for speeds, B minus A for rewards.

    Attributes:
        p: two-sided, for no difference at all; ``None`` where the samples are too few to tell.
    """

    model_config = ConfigDict(extra="forbid")

    what: str
    measure: str
    a: float
    b: float
    change: float
    low: float
    high: float
    relative: bool
    p: float | None
    verdict: Verdict


class Comparison(BaseModel):
    """All figures that both runs have, and what they say together."""

    model_config = ConfigDict(extra="forbid")

    a: str
    b: str
    statement: str
    settings_changed: dict[str, tuple[object, object]]
    only_in_one: list[str]
    differences: list[Difference]

    @property
    def worse(self) -> bool:
        """Whether B is worse somewhere, by more than chance among so many figures explains."""
        return self.differs and any(one.verdict == "worse" for one in self.differences)

    @property
    def differs(self) -> bool:
        """Whether more figures differ than chance alone would make."""
        return _more_than_chance(self.differences)


_SPEEDS: tuple[tuple[str, Callable[[Round], float | None], bool], ...] = (
    ("requests/s", lambda one: one.requests_per_s, True),
    ("p50 E2E, ms", lambda one: one.p50_e2e_ms, False),
    ("p95 E2E, ms", lambda one: one.p95_e2e_ms, False),
)
_NO_MATTER = {"out", "store", "tag", "wait_s", "run_id", "supervised"}
_PROMPTS = {"prompts", "prompt_words", "prompt_count", "seed"}


def compare_runs(a: LoadTestResult, b: LoadTestResult) -> Comparison:
    """Every cell and variant that both have."""
    cells_a, cells_b = _cells(a), _cells(b)
    worth_a = {one.variant: one for one in a.quality}
    worth_b = {one.variant: one for one in b.quality}
    found = []
    for key in (key for key in cells_a if key in cells_b):
        found += _speeds(key, cells_a[key], cells_b[key])
    changed = {
        name: (a.settings.get(name), b.settings.get(name))
        for name in sorted(a.settings.keys() | b.settings.keys())
        if a.settings.get(name) != b.settings.get(name) and name not in _NO_MATTER
    }
    same_prompts = not changed.keys() & _PROMPTS
    if a.prompts_digest is not None and b.prompts_digest is not None:
        same_prompts = a.prompts_digest == b.prompts_digest
    if same_prompts:
        changed.pop("prompts", None)  # where the file lay
        for variant in (one for one in worth_a if one in worth_b):
            found += _rewards(worth_a[variant], worth_b[variant])
    return Comparison(
        a=a.id,
        b=b.id,
        statement=_statement(found),
        settings_changed=changed,
        only_in_one=sorted(cells_a.keys() ^ cells_b.keys()),
        differences=found,
    )


def _cells(result: LoadTestResult) -> dict[str, CellResult]:
    unit = {"closed": "in flight", "open": "requests/s"}
    return {f"{c.variant}, {c.load:g} {unit[c.load_kind]}": c for c in result.cells}


def _speeds(key: str, a: CellResult, b: CellResult) -> list[Difference]:
    found = []
    for measure, value, more_is_better in _SPEEDS:
        before = [x for x in map(value, a.rounds) if x is not None]
        after = [x for x in map(value, b.rounds) if x is not None]
        if not before or not after or not all(before):
            continue
        change, low, high = ratio_interval(after, before)
        p = permutation_p(before, after) if _enough(len(before), len(after)) else None
        found.append(
            Difference(
                what=key,
                measure=measure,
                a=float(np.mean(before)),
                b=float(np.mean(after)),
                change=change,
                low=low,
                high=high,
                relative=True,
                p=p,
                verdict=_verdict(p, (change > 1) == more_is_better),
            )
        )
    return found


def _enough(first: int, second: int) -> bool:
    """Whether any outcome could reach the level: 4 rounds each can, 3 cannot."""
    return 2 / comb(first + second, first) <= LEVEL


def _rewards(a: Quality, b: Quality) -> list[Difference]:
    shared = sorted(a.prompt_rewards.keys() & b.prompt_rewards.keys(), key=int)
    differences = [b.prompt_rewards[p] - a.prompt_rewards[p] for p in shared]
    found = interval(differences)
    if found is None:
        return []
    p = sign_flip_p(differences) if 2 / 2 ** len(shared) <= LEVEL else None
    return [
        Difference(
            what=a.variant,
            measure="mean reward",
            a=float(np.mean([a.prompt_rewards[one] for one in shared])),
            b=float(np.mean([b.prompt_rewards[one] for one in shared])),
            change=found.mean,
            low=found.low,
            high=found.high,
            relative=False,
            p=p,
            verdict=_verdict(p, found.mean > 0),
        )
    ]


def _verdict(p: float | None, better: bool) -> Verdict:
    if p is None:
        return "too few rounds"
    if p > LEVEL:
        return "no difference seen"
    return "better" if better else "worse"


def _more_than_chance(found: list[Difference]) -> bool:
    """Figures below the level beyond what 95 of 100 runs without any difference would show.

    Figures of a run hang together, which this does not count on.
    """
    tested = [one.p for one in found if one.p is not None]
    below = sum(p <= LEVEL for p in tested)
    return bool(tested) and below > _most_by_chance(len(tested))


def _most_by_chance(tests: int) -> int:
    """The 95% quantile of how many of so many independent tests fall below the level by chance."""
    share, count = 0.0, -1
    while share < 1 - LEVEL:
        count += 1
        share += comb(tests, count) * LEVEL**count * (1 - LEVEL) ** (tests - count)
    return count


def _statement(found: list[Difference]) -> str:
    tested = [one for one in found if one.p is not None]
    if not found:
        return "The runs have no cell or mode in common."
    if not tested:
        return "Too few rounds to tell chance from change: measure at least 4 rounds in each run."
    below = [one for one in tested if one.verdict in ("better", "worse")]
    counted = f"{len(below)} of {len(tested)} figures differ at the {LEVEL:.0%} level"
    if not _more_than_chance(found):
        return f"No difference beyond chance: {counted}, as many as chance alone can make."
    worse = [one for one in below if one.verdict == "worse"]
    side = (
        "better"
        if not worse
        else "worse"
        if len(worse) == len(below)
        else "partly better, partly worse"
    )
    return f"The runs differ: {counted}, more than chance alone would make; B is {side}."
