"""What a reader should know before trusting a figure."""

from __future__ import annotations

from collections.abc import Sequence

from service.loadtest.config import LoadTestSettings
from service.loadtest.schema import CellResult, Quality, Saturation, ServerDescription, VariantCost

BUSY_CLIENT = 0.8
MANY_ERRORS = 0.01
FEW_PROMPTS = 10
FEW_REQUESTS = 100  # below it a p99 is little more than the slowest request
LAG_MS = 10.0
LONG_ANSWER = 0.5  # of a block
BEHIND = 0.9


def result_warnings(
    settings: LoadTestSettings,
    server: ServerDescription,
    cells: Sequence[CellResult],
    quality: Sequence[Quality],
    done: int,
    planned: int,
) -> list[str]:
    """Sentences; none is good news."""
    found = []
    if done < planned:
        found.append(f"The run was interrupted: {done} of {planned} blocks were measured.")
    for cell in cells:
        found += cell_warnings(cell, settings.duration_s if settings.requests is None else None)
    few = sum(cell.requests < FEW_REQUESTS for cell in cells)
    if few:
        found.append(
            f"{few} of {len(cells)} cells have fewer than {FEW_REQUESTS} requests: there p99 is little more "
            "than the slowest one."
        )
    for one in quality:
        if one.unscored or one.errors:
            failed = sum(one.errors.values())
            found.append(
                f"{one.variant}: {one.unscored} answers or candidates had no score and {failed} requests "
                "for scores failed; they are left out."
            )
    counts = [one.reward.count for one in quality if one.reward is not None]
    if counts and min(counts) < FEW_PROMPTS:
        found.append(f"Rewards are of {min(counts)} prompts only; their intervals are rough.")
    if server.api == "native" and settings.stream and any(cell.streamed for cell in cells):
        found.append(
            "Modes of one sample were streamed, which costs the server an event a token; the others answer "
            "in one piece. --no-stream compares them alike."
        )
    return found


def rising_warning(cost: VariantCost) -> str:
    """Of a variant that may well answer more than was asked of it."""
    return (
        f"{cost.variant}: throughput still rose at the highest level tried ({cost.source}), so an answer "
        "costs at most what is said; a mode of one sample needs N times as many in flight as best-of-N to "
        "fill the same engine (--concurrency)."
    )


def search_warnings(saturation: Sequence[Saturation]) -> list[str]:
    """Of searches for the saturation point that did not come to an end."""
    return [
        f"{found.variant}: the search for its highest rate was not finished; {found.rate:.3g} requests/s "
        "passed once, and it may bear more. It is not used for costs."
        for found in saturation
        if not found.confirmed and found.rate is not None
    ]


def cell_warnings(cell: CellResult, block_s: float | None = None) -> list[str]:
    """Those of one cell, whose blocks last so long (``None``: until a number of requests is answered)."""
    name, found = f"{cell.variant} at {cell.load:g}", []
    failed = sum(cell.errors.values())
    if failed > MANY_ERRORS * (failed + cell.requests):
        kinds = ", ".join(f"{count} {kind}" for kind, count in cell.errors.items())
        found.append(f"{name}: {failed} of {failed + cell.requests} requests failed ({kinds}).")
    if cell.requests and cell.e2e_ms is None:
        found.append(
            f"{name}: no request was both sent and answered within a block, so there is no latency; blocks "
            "must be longer than an answer takes (--duration-s)."
        )
    if cell.e2e_ms is not None and block_s and cell.e2e_ms.p50 > LONG_ANSWER * 1e3 * block_s:
        found.append(
            f"{name}: half of the answers took over {cell.e2e_ms.p50 / 1e3:.3g} s, and a block is "
            f"{block_s:g} s: its start, before all is under way, weighs in. Longer blocks (--duration-s) "
            "or fewer in flight show the mode at its pace."
        )
    if cell.client_cpu > BUSY_CLIENT:
        found.append(
            f"{name}: the client used {cell.client_cpu:.0%} of a core; some of the latency may be its own."
        )
    if cell.load_kind == "open" and cell.send_lag_ms is not None:
        if cell.send_lag_ms.p99 > LAG_MS:
            found.append(
                f"{name}: requests were sent up to {cell.send_lag_ms.p99:.0f} ms late (p99); their latency "
                "counts from when they were due."
            )
        # Of few requests chance alone can make so many fewer than asked.
        if cell.requests >= FEW_REQUESTS and cell.requests_per_s.median < BEHIND * cell.load:
            found.append(
                f"{name}: the server answered {cell.requests_per_s.median:.3g}/s, less than it was asked; "
                "its queue grows, and latencies depend on how long a block is."
            )
    return found
