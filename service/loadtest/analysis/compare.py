"""Compares two runs: finds the figures that differ by more than the runs' own rounds and prompts do.

If nothing changed, the rounds of two runs are exchangeable, so speeds are tested by permuting rounds. Rewards
on the same prompts are paired and tested by flipping signs. If nothing changed, at most a share ``LEVEL`` of
the comparisons raises a false alarm, over all figures together. Runs on different days may also differ
because the machine did, which these tests cannot detect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np

from service.loadtest.analysis.comparison import LEVEL, Comparison, Difference, Verdict
from service.loadtest.analysis.comparison_words import comparison_statement, levels_statement
from service.loadtest.analysis.intervals import (
    Float,
    interval,
    least_permutation_p,
    sign_flip_p,
)
from service.loadtest.measured_models import measured_models
from service.loadtest.schema import CellResult, LoadTestResult, Quality, RoundResult
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import holm, joint_permutation, welch_interval


@dataclass(frozen=True, slots=True)
class _Measure:
    """A speed: its value in a round, which is tested, and in a cell, which is the one of the reports."""

    name: str
    in_round: Callable[[RoundResult], float | None]
    in_cell: Callable[[CellResult], float | None]
    more_is_better: bool = False


_SPEEDS = (
    _Measure(
        "requests/s",
        lambda one: one.requests_per_s,
        lambda cell: cell.requests_per_s.median,
        more_is_better=True,
    ),
    _Measure(
        "p50 E2E, ms",
        lambda one: one.p50_e2e_ms,
        lambda cell: None if cell.e2e_ms is None else cell.e2e_ms.p50,
    ),
    _Measure(
        "p95 E2E, ms",
        lambda one: one.p95_e2e_ms,
        lambda cell: None if cell.e2e_ms is None else cell.e2e_ms.p95,
    ),
)
_WIDEST = 100.0  # an interval whose ends differ by more says only that there are too few rounds
_SHORTEST_MS = 0.0005  # latencies are rounded to 0.001 ms
_IRRELEVANT = {"out", "store", "tag", "wait_s", "run_id", "supervised", "limit_s", "max_s"}
_PROMPTS = {"prompts", "prompt_words", "prompt_count", "seed"}


@dataclass(frozen=True, slots=True)
class _Speed:
    """One figure of a cell in the rounds that both runs have; NaN if a round does not have it.

    Attributes:
        shown: the figure of the whole cell in both runs, as in their reports.
    """

    what: str
    measure: str
    more_is_better: bool
    before: Float
    after: Float
    least: float
    shown: tuple[float, float]

    def logs(self) -> tuple[Float, Float]:
        """The logs of both runs' values: changes of speed are ratios, and noise grows with the speed."""
        return np.log(np.maximum(self.before, self.least)), np.log(
            np.maximum(self.after, self.least)
        )


@dataclass(frozen=True, slots=True)
class _Reward:
    """The rewards of one variant on the prompts that both runs have."""

    what: str
    a: float
    b: float
    differences: list[float]
    change: MeanInterval

    @property
    def least_p(self) -> float:
        """The smallest attainable p-value, which needs all signs to be equal."""
        return float(2 / 2 ** len(self.differences))


def compare_runs(a: LoadTestResult, b: LoadTestResult) -> Comparison:
    """The comparison of every cell and variant that both runs have."""
    cells_a, cells_b = _cells(a), _cells(b)
    changed = {
        name: (a.settings.get(name), b.settings.get(name))
        for name in sorted(a.settings.keys() | b.settings.keys())
        if a.settings.get(name) != b.settings.get(name) and name not in _IRRELEVANT
    }
    same_prompts = not changed.keys() & _PROMPTS
    if a.prompts_digest is not None and b.prompts_digest is not None:
        same_prompts = a.prompts_digest == b.prompts_digest
    rewards = []
    if same_prompts:
        changed.pop("prompts", None)  # only the path of the file differs
        rewards = _rewards(a.quality, b.quality)
    rounds, speeds = _speeds(cells_a, cells_b)
    level_speeds, level_rewards = _levels(
        least_permutation_p(rounds) if speeds else 1.0, _least_holm(rewards)
    )
    found = [
        *_speed_differences(speeds, level_speeds),
        *_reward_differences(rewards, level_rewards),
    ]
    return Comparison(
        a=a.id,
        b=b.id,
        statement=f"{comparison_statement(found)} {levels_statement(a.cells, b.cells)}".rstrip(),
        settings_changed=changed,
        models_changed=_models_changed(a, b),
        only_in_one=sorted(cells_a.keys() ^ cells_b.keys()),
        differences=found,
    )


def _models_changed(
    a: LoadTestResult, b: LoadTestResult
) -> dict[str, tuple[str | None, str | None]]:
    before, after = (_models(one) for one in (a, b))
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def _models(result: LoadTestResult) -> dict[str, str]:
    cells = [{"mode": cell.mode, "variant": cell.variant} for cell in result.cells]
    return measured_models({"server": result.server.model_dump(mode="json"), "cells": cells})


def _cells(result: LoadTestResult) -> dict[str, CellResult]:
    unit = {"closed": "in flight", "open": "requests/s"}
    return {f"{c.variant}, {c.load:g} {unit[c.load_kind]}": c for c in result.cells}


def _speeds(a: dict[str, CellResult], b: dict[str, CellResult]) -> tuple[int, list[_Speed]]:
    """The number of rounds that both runs have, and every figure in them.

    Rounds of the same number are at the same place in their runs: equally long after the start, with their
    cells in the same order. With equally many rounds in each run, a change of the spread alone is also rarely
    mistaken for a change of speed.
    """
    shared = [key for key in a if key in b]
    rounds = sorted(_numbers(a[key] for key in shared) & _numbers(b[key] for key in shared))
    found = []
    for key in shared:
        half = _half_an_answer([*a[key].rounds, *b[key].rounds])
        if half is None:
            continue
        for measure in _SPEEDS:
            before, after = (
                _values(one.rounds, measure.in_round, rounds) for one in (a[key], b[key])
            )
            if np.isnan(before).all() or np.isnan(after).all():
                continue  # no latency, because nothing was answered; requests/s shows that
            shown = _shown(measure, a[key], before), _shown(measure, b[key], after)
            least = half if measure.name == "requests/s" else _SHORTEST_MS
            found.append(
                _Speed(key, measure.name, measure.more_is_better, before, after, least, shown)
            )
    return len(rounds), found


def _shown(measure: _Measure, cell: CellResult, rounds: Float) -> float:
    """The figure that the reports show for the cell; without one, the mean of the rounds."""
    found = measure.in_cell(cell)
    return float(np.nanmean(rounds)) if found is None else found


def _numbers(cells: Iterable[CellResult]) -> set[int]:
    return {one.round for cell in cells for one in cell.rounds}


def _values(
    measured: Sequence[RoundResult],
    value: Callable[[RoundResult], float | None],
    rounds: Sequence[int],
) -> Float:
    found = {one.round: value(one) for one in measured}
    # None becomes NaN.
    return np.array([found.get(number) for number in rounds], dtype=np.float64)


def _half_an_answer(rounds: Iterable[RoundResult]) -> float | None:
    """The throughput of half an answer per block, used for rounds without answers, because 0 has no log.

    ``None`` if no round has an answer.
    """
    one_answer = [r.requests_per_s / r.requests for r in rounds if r.requests and r.requests_per_s]
    return float(np.median(one_answer)) / 2 if one_answer else None


def _rewards(a: Sequence[Quality], b: Sequence[Quality]) -> list[_Reward]:
    others = {one.variant: one.prompt_rewards for one in b}
    found = []
    for one in a:
        before, after = one.prompt_rewards, others.get(one.variant, {})
        shared = sorted(before.keys() & after.keys(), key=int)
        differences = [after[key] - before[key] for key in shared]
        change = interval(differences)
        if change is None:
            continue
        means = [float(np.mean([side[key] for key in shared])) for side in (before, after)]
        found.append(_Reward(one.variant, means[0], means[1], differences, change))
    return found


def _least_holm(rewards: Sequence[_Reward]) -> float:
    """The smallest p-value that the first of Holm's steps attains."""
    return min((len(rewards) * one.least_p for one in rewards), default=1.0)


def _levels(speeds: float, rewards: float) -> tuple[float, float]:
    """The levels at which speeds and rewards are tested, from the smallest p-value that each can attain.

    Each gets half of ``LEVEL``. One gets all of it if the other is absent or cannot attain its half, which
    depends only on the numbers of rounds and prompts. A level of 0 means that it cannot be tested.
    """
    half = LEVEL / 2
    if speeds <= half and rewards <= half:
        return half, half
    if rewards <= half:
        return 0.0, LEVEL
    if speeds <= LEVEL:
        return LEVEL, 0.0
    return 0.0, LEVEL if rewards <= LEVEL else 0.0


def _speed_differences(speeds: Sequence[_Speed], level: float) -> list[Difference]:
    logs = [one.logs() for one in speeds]
    tested: list[tuple[float, float] | None] = [None] * len(speeds)
    if speeds and level:
        alone, adjusted = joint_permutation(
            np.column_stack([before for before, _ in logs]),
            np.column_stack([after for _, after in logs]),
        )
        tested = [(float(p), float(q)) for p, q in zip(alone, adjusted, strict=True)]
    found = []
    for one, (before, after), p in zip(speeds, logs, tested, strict=True):
        before, after = before[~np.isnan(before)], after[~np.isnan(after)]
        change = float(after.mean() - before.mean())
        ends = welch_interval(before, after)
        if ends is not None and exp(min(ends[1] - ends[0], 700)) > _WIDEST:
            ends = None
        better = (change > 0) == one.more_is_better
        found.append(
            Difference(
                what=one.what,
                measure=one.measure,
                a=one.shown[0],
                b=one.shown[1],
                change=exp(change),
                low=None if ends is None else exp(ends[0]),
                high=None if ends is None else exp(ends[1]),
                relative=True,
                p=None if p is None else p[0],
                p_adjusted=None if p is None else p[1],
                level=None if p is None else level,
                verdict="too few rounds" if p is None else _verdict(p[1], level, better),
            )
        )
    return found


def _reward_differences(rewards: Sequence[_Reward], level: float) -> list[Difference]:
    tested: list[tuple[float, float] | None] = [None] * len(rewards)
    # Testing a variant that cannot attain the level would only cost the others power.
    enough = [i for i, one in enumerate(rewards) if one.least_p <= level]
    alone = [sign_flip_p(rewards[i].differences) for i in enough]
    for i, *p_values in zip(enough, alone, holm(alone), strict=True):
        tested[i] = (p_values[0], p_values[1])
    return [
        Difference(
            what=one.what,
            measure="mean reward",
            a=one.a,
            b=one.b,
            change=one.change.mean,
            low=one.change.low,
            high=one.change.high,
            relative=False,
            p=None if p is None else p[0],
            p_adjusted=None if p is None else p[1],
            level=None if p is None else level,
            verdict="too few prompts" if p is None else _verdict(p[1], level, one.change.mean > 0),
        )
        for one, p in zip(rewards, tested, strict=True)
    ]


def _verdict(p_adjusted: float, level: float, better: bool) -> Verdict:
    if p_adjusted > level:
        return "no difference seen"
    return "better" if better else "worse"
