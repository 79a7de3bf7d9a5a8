"""Computes the tables of docs/comparison again from its records, with numpy and nothing of this project.

    python -m tests.recompute_comparison [DIRECTORY]

The definitions are those of docs/trust.md, written down a second time: means over prompts, then seeds, then
sandboxes; intervals by drawing indices instead of weights; domination by comparing every pair of points.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIRECTORY = Path(__file__).resolve().parents[1] / "docs" / "comparison"
DRAWS = 1500
# Two bootstraps of the same data differ by a few percent of the width of the interval.
END_TOLERANCE = 0.1
# Records have six digits.
TOLERANCE = 2e-5
POOLED = "all-sandboxes"

Sandbox = list[dict[str, Any]]  # the cells of one method in one sandbox


def read_records(directory: Path) -> dict[str, Any]:
    """The sweeps of ``records.json`` by the name that their tables begin with."""
    found = json.loads((directory / "records.json").read_text())["sweeps"]
    return {sweep["title"].replace(" ", "-"): sweep for sweep in found}


def read_table(directory: Path, name: str) -> list[dict[str, str]]:
    """The lines of a table."""
    with (directory / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def bound(n: float) -> float:
    """The KL bound of best-of-n, nats."""
    return math.log(n) - (n - 1) / n


def curve_of(cell: dict[str, Any], picks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The figures of one cell, over all prompts or over each row of ``picks``."""
    wins, kls = (np.array(cell["per_prompt"][field]) for field in ("win_rate", "kl_nats"))
    if picks is None:
        picks = np.arange(len(wins))[None]
    win, kl = wins[picks].mean(1), kls[picks].mean(1)
    n = win / (1 - win)
    needed = np.where(n > 1, np.log(n) - (n - 1) / n, 0.0)
    share = np.where(kl > 0, needed / kl, 0.0)
    return {"win_rate": win, "kl": kl, "equivalent_n": n, "share": share}


def figures_of(cell: dict[str, Any]) -> dict[str, float]:
    """The figures of one cell over all prompts."""
    return {field: float(value[0]) for field, value in curve_of(cell).items()}


def point_of(sandboxes: Sequence[Sandbox], field: str) -> float:
    """The mean over sandboxes of the mean over seeds."""
    return float(
        np.mean([np.mean([figures_of(cell)[field] for cell in cells]) for cells in sandboxes])
    )


def widened(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Means of chosen columns, as far from the mean of all columns as unbiased variance demands.

    Args:
        values: shape ``(DRAWS, columns)``.
        chosen: the columns chosen in each draw, as many as there are.
    """
    mean, size = values.mean(1), values.shape[1]
    if size == 1:
        return mean
    picked = np.take_along_axis(values, chosen, axis=1).mean(1)
    return mean + (picked - mean) * math.sqrt(size / (size - 1))


def draws_of(sandboxes: Sequence[Sandbox], fields: Sequence[str], own: int) -> np.ndarray:
    """Bootstrap draws, shape ``(DRAWS, fields)``; equal sandboxes and prompts for every ``own``."""
    size = len(sandboxes)
    outer = np.random.default_rng([10]).integers(size, size=(DRAWS, size))
    means = np.empty((len(fields), DRAWS, size))
    for b, cells in enumerate(sandboxes):
        prompts = len(cells[0]["per_prompt"]["win_rate"])
        picks = np.random.default_rng([11, b]).integers(prompts, size=(DRAWS, prompts))
        chosen = np.random.default_rng([12, b, own]).integers(len(cells), size=(DRAWS, len(cells)))
        values = [curve_of(cell, picks) for cell in cells]
        for f, field in enumerate(fields):
            means[f, :, b] = widened(np.stack([v[field] for v in values], axis=1), chosen)
    return np.stack([widened(of_field, outer) for of_field in means], axis=1)


def groups_of(sweeps: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[Sandbox]]:
    """The measured cells of each method and target, by sandbox."""
    groups: dict[tuple[str, int], list[Sandbox]] = {}
    for choice in sweeps[0]["choices"]["chosen"]:
        key = choice["method"], choice["target"]
        groups[key] = [
            [
                cell
                for cell in sweep["cells"].values()
                if cell["status"] == "ok"
                and (cell["method"], cell["setting"]) == (choice["method"], choice["setting"])
            ]
            for sweep in sweeps
        ]
    return {key: cells for key, cells in groups.items() if all(cells)}


def moved(cell: dict[str, Any]) -> bool:
    """Tell whether the interval of a cell's win rate lies above one half."""
    wins = np.array(cell["per_prompt"]["win_rate"])
    picks = np.random.default_rng(3).integers(len(wins), size=(DRAWS, len(wins)))
    return float(np.quantile(wins[picks].mean(1), 0.025)) > 0.5


class Differences(list[str]):
    """What differs between a table and the second computation."""

    def check(self, what: str, table: str, again: float, tolerance: float = TOLERANCE) -> None:
        """Note a figure that differs by more than the tolerance."""
        if abs(float(table) - again) > tolerance * max(1.0, abs(again)):
            self.append(f"{what}: {table} in the table, {again:.6g} again")

    def check_figure(
        self, what: str, line: dict[str, str], name: str, ends: tuple[float, float, float]
    ) -> None:
        """Note a mean or an end of an interval that differs."""
        mean, low, high = ends
        self.check(f"{what} {name}", line[f"{name}.mean"], mean)
        room = END_TOLERANCE * max(high - low, 1e-9)
        for end, value in (("low", low), ("high", high)):
            if abs(float(line[f"{name}.{end}"]) - value) > room:
                self.append(f"{what} {name}.{end}: {line[f'{name}.{end}']} and {value:.6g}")


def check_spending(
    sweeps: Sequence[dict[str, Any]], lines: list[dict[str, str]]
) -> tuple[Differences, dict[tuple[str, int], np.ndarray]]:
    """Compare the table of what the KL buys; also returns the draws of equivalent n and share."""
    found, fields = Differences(), ("equivalent_n", "share", "win_rate", "kl")
    groups = groups_of(sweeps)
    drawn: dict[tuple[str, int], np.ndarray] = {}
    seen = [(line["method"], int(line["target"])) for line in lines]
    if sorted(seen) != sorted(groups):
        found.append(f"the table has {sorted(seen)}, the records {sorted(groups)}")
        return found, drawn
    for line in lines:
        key = line["method"], int(line["target"])
        sandboxes = groups[key]
        drawn[key] = draws_of(sandboxes, fields, sorted(groups).index(key))
        found.check(f"{key} cells", line["seeds"], sum(len(cells) for cells in sandboxes))
        for f, field in enumerate(fields):
            low, high = np.quantile(drawn[key][:, f], [0.025, 0.975])
            ends = (point_of(sandboxes, field), float(low), float(high))
            if field == "share" and not any(moved(c) for cells in sandboxes for c in cells):
                ends = (0.0, 0.0, min(1.0, ends[2]))
            if field == "share":
                ends = (ends[0], max(0.0, ends[1]), ends[2])
            found.check_figure(str(key), line, field, ends)
    return found, drawn


def check_comparisons(
    lines: list[dict[str, str]], drawn: dict[tuple[str, int], np.ndarray]
) -> Differences:
    """Compare the columns that say which figures differ from the largest of their target."""
    found = Differences()
    for target in sorted({int(line["target"]) for line in lines}):
        block = [line for line in lines if int(line["target"]) == target]
        for column, field, f in (("n_differs", "equivalent_n", 0), ("share_differs", "share", 1)):
            first = max(block, key=lambda line: float(line[f"{field}.mean"]))
            best = drawn[first["method"], target][:, f]
            raw = []
            for line in block:
                difference = best - drawn[line["method"], target][:, f]
                fewer = min(np.sum(difference <= 0), np.sum(difference >= 0))
                raw.append(min(1.0, 2 * (fewer + 1) / (DRAWS + 1)))
            others = sorted(
                (p, line["method"]) for p, line in zip(raw, block, strict=True) if line is not first
            )
            highest = 0.0
            for rank, (p, method) in enumerate(others):
                highest = max(highest, min(1.0, p * (len(others) - rank)))
                line = next(one for one in block if one["method"] == method)
                # Close to 5%, two bootstraps may fall on different sides.
                if 0.02 < highest < 0.12:
                    continue
                if line[column] != str(highest < 0.05):
                    found.append(
                        f"N = {target}, {method} {column}: {line[column]}, p = {highest:.3f} again"
                    )
    return found


def check_target(
    sweeps: Sequence[dict[str, Any]], lines: list[dict[str, str]], target: int
) -> Differences:
    """Compare the table beside best-of-N."""
    found, groups = Differences(), groups_of(sweeps)
    best = [
        next(r for r in sweep["best_of_n"] if r["method"] == "best-of-n" and r["n"] == target)
        for sweep in sweeps
    ]
    for line in lines:
        sandboxes = groups[line["method"], target]
        wins = [np.mean([figures_of(c)["win_rate"] for c in cells]) for cells in sandboxes]
        ratio = np.mean([w / b["win_rate"]["mean"] for w, b in zip(wins, best, strict=True)])
        found.check(f"{line['method']} ratio", line["win_ratio.mean"], float(ratio))
        kl = point_of(sandboxes, "kl")
        found.check(f"{line['method']} KL", line["kl.mean"], kl)
        found.check(f"{line['method']} KL ratio", line["kl_ratio.mean"], kl / bound(target))
        if not float(line["win_rate.low"]) < float(line["win_rate.high"]):
            found.append(f"{line['method']}: the win rate has no interval")
    return found


def check_costs(sweeps: Sequence[dict[str, Any]], lines: list[dict[str, str]]) -> Differences:
    """Compare the budgets: medians over cells, with cached samples counted among the scored texts."""
    found = Differences()
    tried = [one["method"] for one in sweeps[0]["choices"]["tried"]]
    for line in lines:
        costs = [
            c["cost"] for s in sweeps for c in s["cells"].values() if c["method"] == line["method"]
        ]
        for field in (
            "optimizer_updates",
            "sequences_trained",
            "samples_drawn",
            "cached_samples",
            "tokens_drawn",
            "training_seconds",
        ):
            found.check(
                f"{line['method']} {field}",
                line[field],
                float(np.median([c[field] for c in costs])),
            )
        scored = [c["samples_drawn"] + c["cached_samples"] for c in costs]
        found.check(
            f"{line['method']} scored texts", line["scored_texts"], float(np.median(scored))
        )
        found.check(
            f"{line['method']} settings", line["settings_tried"], tried.count(line["method"])
        )
    return found


def check_choices(sweep: dict[str, Any]) -> Differences:
    """Choose again: the highest win rate within the KL of best-of-N, or the least KL if none is within."""
    found, tried = Differences(), sweep["choices"]["tried"]
    for choice in sweep["choices"]["chosen"]:
        own = [t for t in tried if t["method"] == choice["method"] and t["kl_nats"]]
        within = [t for t in own if t["kl_nats"]["mean"] <= bound(choice["target"])]
        best = (
            max(within, key=lambda t: t["win_rate"]["mean"])
            if within
            else min(own, key=lambda t: t["kl_nats"]["mean"])
        )
        if (best["setting"], bool(within)) != (choice["setting"], choice["within_budget"]):
            found.append(f"{choice['method']}, N = {choice['target']}: {best['setting']} again")
    return found


def check_frontier(sweep: dict[str, Any], lines: list[dict[str, str]]) -> Differences:
    """Compare the frontier of KL and win rate, alone and beside best-of-n with coins between two n."""
    found = Differences()
    cells = [c for c in sweep["cells"].values() if c["status"] == "ok"]
    places = [
        (c["method"], c["cell"]["seed"], figures_of(c)["kl"], figures_of(c)["win_rate"])
        for c in cells
    ]
    curve = sorted((r["kl_nats"]["mean"], r["win_rate"]["mean"]) for r in sweep["best_of_n"])

    def beaten(one: tuple[Any, ...]) -> bool:
        return any(
            other[1] == one[1]
            and other[2] <= one[2]
            and other[3] >= one[3]
            and other[2:] != one[2:]
            for other in places
        )

    def below_curve(one: tuple[Any, ...]) -> bool:
        if one[2] >= curve[-1][0]:
            return bool(curve[-1][1] >= one[3])
        for (kl, win), (next_kl, next_win) in itertools.pairwise(curve):
            if kl <= one[2] <= next_kl:
                chance = (one[2] - kl) / (next_kl - kl)
                return bool(win + chance * (next_win - win) > one[3])
        return False

    for line in lines:
        own = [p for p in places if p[0] == line["method"]]
        found.check(f"{line['method']} points", line["points"], len(own))
        found.check(
            f"{line['method']} on the frontier",
            line["on_frontier"],
            sum(not beaten(p) for p in own),
        )
        shares = [
            np.mean([not beaten(p) and not below_curve(p) for p in own if p[1] == seed])
            for seed in sorted({p[1] for p in own})
        ]
        found.check(
            f"{line['method']} with best-of-n",
            line["share_with_curve.mean"],
            float(np.mean(shares)),
        )
    return found


def page_lines(directory: Path) -> list[str]:
    """The lines of the page's first table, from the pooled table of what the KL buys."""

    def figure(line: dict[str, str], name: str, digits: int) -> str:
        mean, low, high = (
            f"{float(line[f'{name}.{end}']):.{digits}f}" for end in ("mean", "low", "high")
        )
        return f"{mean} [{low}, {high}]"

    mark = {"": "largest", "True": "less", "False": "not distinguishable"}
    return [
        f"| {line['target']} | {line['method']} | "
        f"{figure(line, 'equivalent_n', 2)} | {mark[line['n_differs']]} | "
        f"{figure(line, 'share', 2)} | {mark[line['share_differs']]} | {figure(line, 'win_rate', 3)} | "
        f"{figure(line, 'kl', 2)} |"
        for line in read_table(directory, f"{POOLED}-productive_share")
    ]


def differences(directory: Path) -> Iterator[tuple[str, Differences]]:
    """Each table with what differs from it."""
    by_name = read_records(directory)
    parts: dict[str, list[dict[str, Any]]] = {name: [sweep] for name, sweep in by_name.items()}
    parts[POOLED] = list(by_name.values())
    for name, sweeps in parts.items():
        lines = read_table(directory, f"{name}-productive_share")
        spending, drawn = check_spending(sweeps, lines)
        yield f"{name}-productive_share", spending
        if not spending:
            yield f"{name}-productive_share, comparisons", check_comparisons(lines, drawn)
        for target in sorted({choice["target"] for choice in sweeps[0]["choices"]["chosen"]}):
            table = f"{name}-target_{target}"
            yield table, check_target(sweeps, read_table(directory, table), target)
        yield f"{name}-cost", check_costs(sweeps, read_table(directory, f"{name}-cost"))
        if name != POOLED:
            yield f"{name}-search", check_choices(sweeps[0])
            pareto = f"{name}-pareto_win_rate"
            yield pareto, check_frontier(sweeps[0], read_table(directory, pareto))


def main() -> int:
    """Print what differs; the status is 1 if anything does."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    failed = False
    for table, found in differences(directory):
        print(f"{table}: {'; '.join(found) or 'the same'}")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
