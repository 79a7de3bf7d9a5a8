"""The tables of the bench: regrets, paired differences, ranks, times, who wins where, and the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from vbon.maths.statistics import bootstrap_mean
from vbon.tuning.bench.problem import Problem

Float = NDArray[np.float64]
# Regrets (seeds, trials) of each sampler on each problem, and seconds per suggestion (seeds,).
Curves = Mapping[str, Mapping[str, Float]]
Seconds = Mapping[str, Mapping[str, Float]]

BASELINES = ("random", "gp")
PLAIN = ("sto-bnts", "hyper-bo")  # whose wins and losses are said in words
GROUPS = {
    "all": "all problems",
    "numbers": "fixed parameters",
    "conditional": "conditional parameters",
}
_ENOUGH_SEEDS = 20
_TIE = 1e-9  # regrets that differ by less are equal


def figures(
    problems: Sequence[Problem], curves: Curves, seconds: Seconds, start: int
) -> dict[str, Any]:
    """All figures of the report, for JSON and for the tables.

    ``differences`` are paired by seed: the sampler's regret less the baseline's, with a 95% interval of the
    mean, by the number of evaluations. ``groups`` have mean ranks, 1 for the lowest last regret.
    """
    marks = marks_of(start, next(iter(next(iter(curves.values())).values())).shape[1])
    found: dict[str, Any] = {"marks": marks, "problems": {}, "groups": {}}
    for problem in problems:
        own = curves[problem.name]
        found["problems"][problem.name] = {
            "summary": problem.summary,
            "conditional": problem.conditional,
            "samplers": {
                name: {
                    **_sampler(name, own, problem.tolerance, marks),
                    "seconds": float(seconds[problem.name][name].mean()),
                }
                for name in own
            },
        }
    kinds = {problem.name: problem.conditional for problem in problems}
    members = {
        "all": list(kinds),
        "numbers": [name for name, conditional in kinds.items() if not conditional],
        "conditional": [name for name, conditional in kinds.items() if conditional],
    }
    for group, names in members.items():
        if names:
            found["groups"][group] = _group({n: curves[n] for n in names}, seconds, names)
    return found


def marks_of(start: int, trials: int) -> list[int]:
    """Numbers of evaluations at which regrets are compared: a third, two thirds and all after the start."""
    later = trials - start
    return sorted({start + max(1, round(later * k / 3)) for k in (1, 2, 3)})


def seed_ranks(curves: Curves) -> tuple[list[str], Float]:
    """The samplers, and the rank of each on each seed, averaged over problems: (seeds, samplers)."""
    names = list(next(iter(curves.values())))
    tables = []
    for own in curves.values():
        last = np.stack([own[name][:, -1] for name in names], axis=1)
        tables.append(rankdata(np.round(last / _TIE) * _TIE, axis=1))
    return names, np.mean(tables, axis=0)


def _group(curves: Curves, seconds: Seconds, problems: Sequence[str]) -> dict[str, Any]:
    """Mean ranks, the lowest first, each with its difference from the lowest, and the choice among them."""
    names, table = seed_ranks(curves)
    order = sorted(range(len(names)), key=lambda k: (table[:, k].mean(), k))
    lowest = table[:, order[0]]
    samplers = {}
    for k in order:
        own_seconds = [float(seconds[problem][names[k]].mean()) for problem in problems]
        samplers[names[k]] = {
            "rank": asdict(bootstrap_mean(table[:, k])),
            "above_lowest": asdict(bootstrap_mean(table[:, k] - lowest)),
            "seconds": float(np.mean(own_seconds)),
        }
    return {"samplers": samplers, "choice": choice(samplers)}


def choice(samplers: Mapping[str, Mapping[str, Any]]) -> str:
    """The sampler to use by default.

    Of those whose rank is not above the lowest by a whole 95% interval of the paired difference, the fastest.
    """
    return min(_level(samplers), key=lambda name: samplers[name]["seconds"])


def _level(samplers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The samplers that are not distinguishable from the one with the lowest rank, which comes first."""
    return [name for name, row in samplers.items() if verdict(row["above_lowest"]) != "loses"]


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Wins, losses and neither of the two samplers of ``PLAIN``, against each baseline, and the choices."""
    lines = []
    for name in PLAIN:
        for baseline in BASELINES:
            places: dict[str, list[str]] = {"wins": [], "loses": [], "not distinguishable": []}
            for problem, table in found["problems"].items():
                by_mark = table["samplers"].get(name, {}).get("differences", {}).get(baseline)
                if by_mark is not None:
                    places[verdict(by_mark[str(found["marks"][-1])])].append(problem)
            parts = [f"{word} on {', '.join(where)}" for word, where in places.items() if where]
            if parts:
                lines.append(f"{name} against {baseline}: {'; '.join(parts)}.")
    for group, table in found["groups"].items():
        lowest, *_ = table["samplers"]
        rank = table["samplers"][lowest]["rank"]["mean"]
        level = _level(table["samplers"])
        lines.append(
            f"On {GROUPS[group]}, {lowest} has the lowest mean rank ({rank:.2f}); not distinguishable "
            f"from it: {', '.join(level[1:]) or 'none'}. The fastest of these is {table['choice']}."
        )
    return lines


def verdict(figure: Mapping[str, float]) -> str:
    """The word for a paired difference: a win is an interval below 0, of two pairs or more."""
    if figure["count"] < 2:
        return "not distinguishable"
    if figure["high"] < 0:
        return "wins"
    return "loses" if figure["low"] > 0 else "not distinguishable"


def markdown(found: Mapping[str, Any], seeds: int) -> str:
    """The tables of a documentation page."""
    marks = found["marks"]
    lines = [
        f"{seeds} seeds; differences are paired by seed, after {marks[-1]} evaluations, with 95% intervals."
    ]
    if seeds < _ENOUGH_SEEDS:
        lines.append(
            f"Intervals from so few seeds are too narrow; run {_ENOUGH_SEEDS} or more before you choose "
            "by them."
        )
    lines.append("")
    for name, table in found["problems"].items():
        heads = " | ".join(f"median regret at {mark}" for mark in marks)
        lines += [
            f"**{name}** ({table['summary']})", "",
            f"| sampler | {heads} | less random's | less gp's | evaluations to the tolerance | "
            "s per suggestion |",
            f"| --- | {'---: | ' * len(marks)}--- | --- | ---: | ---: |",
        ]  # fmt: skip
        for sampler, row in table["samplers"].items():
            medians = " | ".join(f"{row['median_regrets'][str(mark)]:.3g}" for mark in marks)
            cells = [
                _difference(row["differences"].get(baseline), marks[-1]) for baseline in BASELINES
            ]
            reached = "-" if row["evaluations"] is None else f"{row['evaluations']:.0f}"
            lines.append(
                f"| {sampler} | {medians} | {cells[0]} | {cells[1]} | {reached} | {row['seconds']:.3f} |"
            )
        lines.append("")
    for group, table in found["groups"].items():
        lines += [
            f"| sampler, {GROUPS[group]} | mean rank [95%] | above the lowest [95%] | s per suggestion |",
            "| --- | --- | --- | ---: |",
        ]
        for name, row in table["samplers"].items():
            rank, above = row["rank"], row["above_lowest"]
            lines.append(
                f"| {name} | {rank['mean']:.2f} [{rank['low']:.2f}, {rank['high']:.2f}] | "
                f"{above['mean']:.2f} [{above['low']:.2f}, {above['high']:.2f}] | {row['seconds']:.3f} |"
            )
        lines.append("")
    return "\n".join([*lines, *(f"- {line}" for line in sentences(found)), ""])


def _sampler(
    name: str, own: Mapping[str, Float], tolerance: float, marks: Sequence[int]
) -> dict[str, Any]:
    reached = [
        float(np.argmax(curve <= tolerance)) + 1 if (curve <= tolerance).any() else np.inf
        for curve in own[name]
    ]
    middle = float(np.median(reached))
    return {
        "median_regrets": {str(mark): float(np.median(own[name][:, mark - 1])) for mark in marks},
        "mean_regrets": {str(mark): float(own[name][:, mark - 1].mean()) for mark in marks},
        "solved": float(np.isfinite(reached).mean()),
        "evaluations": middle if np.isfinite(middle) else None,
        "differences": {
            baseline: {
                str(mark): asdict(
                    bootstrap_mean(own[name][:, mark - 1] - own[baseline][:, mark - 1])
                )
                for mark in marks
            }
            for baseline in BASELINES
            if baseline in own and baseline != name
        },
    }


def _difference(by_mark: Mapping[str, Mapping[str, float]] | None, mark: int) -> str:
    if by_mark is None:
        return ""
    figure = by_mark[str(mark)]
    word = {"wins": " wins", "loses": " loses", "not distinguishable": ""}[verdict(figure)]
    return f"{figure['mean']:+.2g} [{figure['low']:+.2g}, {figure['high']:+.2g}]{word}"
