"""What a soak found, as tables."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.soak.growth import Growth, growth
from tests.soak.load import Load
from tests.soak.watch import Watch

MINUTE_S = 60.0
Series = dict[str, list[tuple[float, float]]]


def growths(watch: Watch, load: Load) -> dict[str, Growth]:
    """Of all that was sampled, and of the latency's p50 and p99 by minute and kind."""
    found: dict[str, Growth] = {}
    for name, samples in watch.series.items():
        # A file descriptor or thread more is a leak; a few MB are the allocator's.
        least = 20.0 if "RSS" in name else 3.0
        if (one := growth(*zip(*samples, strict=True), least=least)) is not None:
            found[name] = one
    for name, samples in _latencies(load).items():
        if (one := growth(*zip(*samples, strict=True), share=0.2, least=5.0)) is not None:
            found[name] = one
    return found


def _latencies(load: Load) -> Series:
    by_minute: dict[tuple[str, int], list[float]] = defaultdict(list)
    for at_s, took_s, kind in load.latencies:
        by_minute[kind, int(at_s // MINUTE_S)].append(took_s * 1e3)
    series: Series = defaultdict(list)
    for (kind, minute), values in sorted(by_minute.items()):
        for percent in (50, 99):
            at_s = (minute + 0.5) * MINUTE_S
            series[f"{kind}: p{percent}, ms"].append((at_s, float(np.percentile(values, percent))))
    return series


def show(found: dict[str, Growth], load: Load) -> None:
    """Print them, with what was sent."""
    table = Table("series", "mean", "rise over the run [95%]", "tolerated", "verdict")
    for name, one in found.items():
        rise = f"{one.total:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"
        table.add_row(name, f"{one.mean:.1f}", rise, f"{one.tolerated:.1f}", one.verdict)
    console = Console(width=140)
    console.print(table)
    console.print(
        f"sent: {dict(load.kinds)}; refused, by status: {dict(sorted(load.refused.items()))}"
    )
    console.print(f"wrong: {len(load.wrong)}", *load.wrong[:10], sep="\n  ")
