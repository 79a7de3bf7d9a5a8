"""Warnings about figures that may mislead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from service.loadtest.analysis.full_load import load_reason
from service.loadtest.config import LoadTestSettings
from service.loadtest.schema import CellResult, Quality, Saturation, ServerDescription, VariantCost

BUSY_CLIENT = 0.8
MANY_ERRORS = 0.01
FEW_PROMPTS = 10
FEW_REQUESTS = 100  # of fewer requests, p99 is little more than the slowest one
LAG_MS = 10.0
LONG_ANSWER = 0.5  # of the length of a block
BEHIND = 0.9  # of the rate asked for


def result_warnings(
    settings: LoadTestSettings,
    server: ServerDescription,
    cells: Sequence[CellResult],
    quality: Sequence[Quality],
    done: int,
    planned: int,
) -> list[str]:
    """All warnings about a result, in sentences; empty if there are none."""
    found = []
    if done < planned:
        found.append(f"The run was interrupted: {done} of {planned} blocks were measured.")
    for cell in cells:
        found += cell_warnings(cell, cell.block_s if settings.requests is None else None)
    few = sum(cell.requests < FEW_REQUESTS for cell in cells)
    if few:
        found.append(
            f"{few} of {len(cells)} cells have fewer than {FEW_REQUESTS} requests, so their p99 is little "
            "more than the slowest request."
        )
    for one in quality:
        if one.unscored or one.errors:
            failed = sum(one.errors.values())
            found.append(
                f"{one.variant}: {one.unscored} answers or candidates had no score and {failed} scoring "
                "requests failed; they are left out."
            )
    counts = [one.reward.count for one in quality if one.reward is not None]
    if counts and min(counts) < FEW_PROMPTS:
        found.append(
            f"Rewards were measured on only {min(counts)} prompt{'' if min(counts) == 1 else 's'}, so their "
            f"intervals are too narrow; {FEW_PROMPTS} or more are needed (--prompts, --quality-prompts)."
        )
    names = dict.fromkeys([cell.mode for cell in cells] + [one.mode for one in quality])
    found += sampling_warnings(settings, server, names)
    if server.api == "openai":
        found.append(
            "The server may take top_k, min_p and a repetition penalty from the model's "
            "generation_config.json; OpenAI's API has no field for them. Start vllm serve with "
            "--generation-config vllm to sample the policy itself."
        )
    if len({cell.streamed for cell in cells}) > 1:
        found.append(
            "Single-sample modes were streamed, which costs the server one event per token; the other modes "
            "answer in one piece. Leave out --stream to treat all modes alike."
        )
    return found


def sampling_warnings(
    settings: LoadTestSettings, server: ServerDescription, measured: Iterable[str]
) -> list[str]:
    """The warnings about checkpoints that this run samples or scores otherwise than their training did.

    Args:
        measured: the modes, or MODE@POLICY. Each policy is a mode of its name.
    """
    records = {mode.name: mode.training for mode in server.modes}
    policies = dict.fromkeys(name.partition("@")[2] or name for name in measured)
    found = []
    for name in policies:
        record = records.get(name)
        if record is None:
            continue
        differences = record.sampling_differences(
            *settings.sampling, ignore_eos=settings.ignore_eos
        )
        if differences:
            found.append(
                f"{name}: {'; '.join(differences)}. Its KL, win rate and reward are not those of its card."
            )
        found += [f"{name}: {difference}." for difference in record.reward_differences()]
    return found


def rising_warning(cost: VariantCost, levels: int, remedy: str) -> str:
    """The warning about a variant that was not fully loaded.

    Args:
        levels: the number of load levels at which it was measured.
        remedy: the text of :func:`load_remedy`.
    """
    return (
        f"{cost.variant} was not fully loaded: {load_reason(cost.source, levels)}, so its true cost is "
        f"lower. {remedy[:1].upper()}{remedy[1:]}."
    )


def search_warnings(saturation: Sequence[Saturation]) -> list[str]:
    """The warnings about saturation searches that did not finish."""
    return [
        f"{found.variant}: the search for its highest rate was not finished. {found.rate:.3g} requests/s "
        "passed once, and a higher rate may pass too, so costs do not use it."
        for found in saturation
        if not found.confirmed and found.rate is not None
    ]


def cell_warnings(cell: CellResult, block_s: float | None = None) -> list[str]:
    """The warnings about one cell; ``block_s`` is ``None`` if blocks end after a number of requests."""
    name, found = f"{cell.variant} at {cell.load:g}", []
    failed = sum(cell.errors.values())
    if failed > MANY_ERRORS * (failed + cell.requests):
        kinds = ", ".join(f"{count} {kind}" for kind, count in cell.errors.items())
        found.append(f"{name}: {failed} of {failed + cell.requests} requests failed ({kinds}).")
    if cell.requests and cell.e2e_ms is None:
        found.append(
            f"{name}: no request was both sent and answered within a block, so latency is unknown; blocks "
            "must be longer than an answer takes (--duration-s)."
        )
    if cell.e2e_ms is not None and block_s and cell.e2e_ms.p50 > LONG_ANSWER * 1e3 * block_s:
        found.append(
            f"{name}: half of the answers took over {cell.e2e_ms.p50 / 1e3:.3g} s of a block of "
            f"{block_s:g} s, so the start-up of the block affects its figures. Use longer blocks "
            "(--duration-s) or fewer requests in flight."
        )
    if cell.client_cpu > BUSY_CLIENT:
        found.append(
            f"{name}: the client used {cell.client_cpu:.0%} of a core and may have added to the latency."
        )
    if cell.load_kind == "open" and cell.send_lag_ms is not None:
        if cell.send_lag_ms.p99 > LAG_MS:
            found.append(
                f"{name}: requests were sent up to {cell.send_lag_ms.p99:.0f} ms late (p99); latency counts "
                "from when they were due."
            )
        # With few requests, chance alone can make the rate this much lower.
        if cell.requests >= FEW_REQUESTS and cell.requests_per_s.median < BEHIND * cell.load:
            found.append(
                f"{name}: the server answered only {cell.requests_per_s.median:.3g} requests/s, so its queue "
                "grows and latencies depend on the length of a block."
            )
    return found
