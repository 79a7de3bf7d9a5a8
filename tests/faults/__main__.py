"""``python -m tests.faults``: every fault in full, then a table of what was promised and what came of it.

python -m tests.faults                      all, in full
python -m tests.faults --size 0.05 NAME ... some, small
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import traceback
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table

from tests.faults.catalogue import faults, load
from tests.faults.stage import Stage
from tests.faults.tally import Tally
from tests.tiny import build_tiny_sandbox, train_tiny_vbon


def main() -> int:
    """Exit status: 0 if every promise held."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m tests.faults", description=__doc__, formatter_class=raw
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(faults())}")
    parser.add_argument("--size", type=float, default=1.0, help="1 in full; CI runs 0.02")
    parser.add_argument("--json", type=Path, help="write the tallies there")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(faults())
    if unknown:
        parser.error(f"no fault {', '.join(unknown)}; there are {', '.join(faults())}")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        sandbox = build_tiny_sandbox(Path(folder) / "sandbox")
        train_tiny_vbon(sandbox)
        stage = Stage(sandbox, Path(folder), arguments.size)
        tallies = asyncio.run(run(arguments.names or faults(), stage))
    show(tallies)
    if arguments.json is not None:
        found = {
            # asdict makes pairs of a Counter's items.
            name: tally
            if isinstance(tally, str)
            else asdict(tally) | {"errors": dict(tally.errors)}
            for name, tally in tallies.items()
        }
        arguments.json.write_text(json.dumps(found, indent=2), encoding="utf-8")
    return int(any(isinstance(tally, str) or tally.broken() for tally in tallies.values()))


async def run(names: list[str], stage: Stage) -> dict[str, Tally | str]:
    """Inject them one after the other; what became of each, or why it could not be injected."""
    tallies: dict[str, Tally | str] = {}
    try:
        for name in names:
            begun = perf_counter()
            tallies[name] = await _injected(name, stage)
            print(f"{name}: {perf_counter() - begun:.0f} s; {_line(tallies[name])}", flush=True)
    finally:
        await stage.close()
    return tallies


def show(tallies: dict[str, Tally | str]) -> None:
    """Print them as a table."""
    table = Table(
        "fault", "promise", "asked", "answered", "errors", "left", "lost", "recovered, s", "held"
    )
    for name, tally in tallies.items():
        table.add_row(name, load(name).PROMISE, *_cells(tally))
    Console(width=160).print(table)


async def _injected(name: str, stage: Stage) -> Tally | str:
    try:
        tally: Tally = await load(name).inject(stage)
    except Exception as error:  # one that cannot be injected must not hide the others
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return tally


def _line(tally: Tally | str) -> str:
    """One fault's figures in a line, printed as soon as the fault has ended."""
    asked, answered, errors, left, lost, recovered, held = _cells(tally)
    return (
        f"{asked} asked, {answered} answered, errors {errors}, {left} left, {lost} lost, "
        f"recovered {recovered}; held: {held}"
    )


def _cells(tally: Tally | str) -> list[str]:
    if isinstance(tally, str):
        return ["-"] * 6 + [tally[:300]]
    errors = ", ".join(f"{kind} {count}" for kind, count in tally.errors.items())
    recovered = "-" if tally.recovered_s is None else f"{tally.recovered_s:.1f}"
    held = "; ".join(tally.broken()) or "yes"
    counts = [
        str(tally.asked),
        str(tally.answered),
        errors or "0",
        str(tally.left),
        str(len(tally.lost)),
    ]
    return [*counts, recovered, "; ".join([held, *tally.notes])]


if __name__ == "__main__":
    raise SystemExit(main())
