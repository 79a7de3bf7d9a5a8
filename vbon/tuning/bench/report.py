"""The tables of the bench: regrets, paired differences, ranks, and who wins where."""

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
# Regrets (seeds, trials) of each sampler on each problem.
Curves = Mapping[str, Mapping[str, Float]]

BASELINES = ("random", "gp")
PLAIN = ("sto-bnts", "hyper-bo")  # whose wins and losses are said in words
_TIE = 1e-9  # regrets that differ by less are equal


def figures(problems: Sequence[Problem], curves: Curves) -> dict[str, Any]:
    """All figures of the report, for JSON and for the tables.

    ``differences`` are paired by seed: the sampler's last regret less the baseline's, with a 95% interval of
    the mean. ``ranks`` are means over problems and seeds, 1 for the lowest last regret.
    """
    found: dict[str, Any] = {"problems": {}, "ranks": ranks(curves)}
    for problem in problems:
        own = curves[problem.name]
        found["problems"][problem.name] = {
            "summary": problem.summary,
            "samplers": {name: _sampler(name, own, problem.tolerance) for name in own},
        }
    return found


def ranks(curves: Curves) -> dict[str, dict[str, float]]:
    """The mean rank of each sampler with its interval, the best first."""
    rows = []
    names = list(next(iter(curves.values())))
    for own in curves.values():
        last = np.stack([own[name][:, -1] for name in names], axis=1)
        rows.append(rankdata(np.round(last / _TIE) * _TIE, axis=1))
    table = np.vstack(rows)
    means = {name: bootstrap_mean(table[:, k]) for k, name in enumerate(names)}
    return {name: asdict(means[name]) for name in sorted(names, key=lambda n: means[n].mean)}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """Wins, losses and neither of the two samplers of ``PLAIN``, against each baseline."""
    lines = []
    for name in PLAIN:
        for baseline in BASELINES:
            places: dict[str, list[str]] = {"wins": [], "loses": [], "not distinguishable": []}
            for problem, table in found["problems"].items():
                figure = table["samplers"].get(name, {}).get("differences", {}).get(baseline)
                if figure is not None:
                    places[verdict(figure)].append(problem)
            parts = [f"{word} on {', '.join(where)}" for word, where in places.items() if where]
            if parts:
                lines.append(f"{name} against {baseline}: {'; '.join(parts)}.")
    best = next(iter(found["ranks"]))
    lines.append(f"Lowest mean rank: {best} ({found['ranks'][best]['mean']:.2f}).")
    return lines


def verdict(figure: Mapping[str, float]) -> str:
    """The word for a paired difference of regrets: a win is an interval below 0."""
    if figure["high"] < 0:
        return "wins"
    return "loses" if figure["low"] > 0 else "not distinguishable"


def markdown(found: Mapping[str, Any]) -> str:
    """The tables of a documentation page."""
    lines = []
    for name, table in found["problems"].items():
        lines += [
            f"**{name}** ({table['summary']})", "",
            "| sampler | median regret | less random's | less gp's | evaluations to the tolerance | s |",
            "| --- | ---: | --- | --- | ---: | ---: |",
        ]  # fmt: skip
        for sampler, row in table["samplers"].items():
            cells = [_difference(row["differences"].get(baseline)) for baseline in BASELINES]
            reached = "-" if row["evaluations"] is None else f"{row['evaluations']:.0f}"
            lines.append(
                f"| {sampler} | {row['median_regret']:.3g} | {cells[0]} | {cells[1]} | {reached} | "
                f"{row.get('seconds', 0):.1f} |"
            )
        lines.append("")
    lines += ["| sampler | mean rank [95%] |", "| --- | --- |"]
    for name, row in found["ranks"].items():
        lines.append(f"| {name} | {row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] |")
    return "\n".join([*lines, "", *(f"- {line}" for line in sentences(found)), ""])


def _sampler(name: str, own: Mapping[str, Float], tolerance: float) -> dict[str, Any]:
    last = own[name][:, -1]
    reached = [
        float(np.argmax(curve <= tolerance)) + 1 if (curve <= tolerance).any() else np.inf
        for curve in own[name]
    ]
    middle = float(np.median(reached))
    return {
        "median_regret": float(np.median(last)),
        "mean_regret": float(last.mean()),
        "evaluations": middle if np.isfinite(middle) else None,
        "differences": {
            baseline: asdict(bootstrap_mean(last - own[baseline][:, -1]))
            for baseline in BASELINES
            if baseline in own and baseline != name
        },
    }


def _difference(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    word = {"wins": " wins", "loses": " loses", "not distinguishable": ""}[verdict(figure)]
    return f"{figure['mean']:+.2g} [{figure['low']:+.2g}, {figure['high']:+.2g}]{word}"
