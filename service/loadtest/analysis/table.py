"""Turns a load test's result into a table of measured settings, from which mode ``auto`` chooses."""

from __future__ import annotations

from datetime import datetime

from service.loadtest.schema import CellResult, LoadTestResult, Quality, ServedMode
from vbon.errors import DataError
from vbon.measured.table import MeasuredPrompts, MeasuredSetting, MeasuredTable

_REFERENCE = "ref"


def measured_table(result: LoadTestResult, in_flight: float | None = None) -> MeasuredTable:
    """The settings that a load test measured, with the latencies at one closed-loop level.

    Args:
        in_flight: the level; by default the lowest above 1 that every variant has, or else the lowest.

    Raises:
        DataError: the result lacks what a table needs.
    """
    server = result.server
    if server.api != "native" or server.hardware is None or result.prompts_digest is None:
        raise DataError(
            "the result does not tell the server's revisions and hardware, which a table needs; measure a "
            "server of this version with its own API"
        )
    if result.settings.get("ignore_eos"):
        raise DataError(
            "the answers were decoded up to max_tokens (--ignore-eos), so their rewards and tokens are not "
            "those of real answers; measure without it"
        )
    level = _level(result, in_flight)
    cells = {
        cell.variant: cell
        for cell in result.cells
        if (cell.load_kind, cell.load) == ("closed", level)
    }
    modes = {mode.name: mode for mode in server.modes}
    measured = [one for one in result.quality if one.reward is not None and one.variant in cells]
    if not measured:
        raise DataError("the result has no variant with both rewards and latencies; measure again")
    rows = [_row(one, cells[one.variant], modes, result) for one in measured]
    used = {row.policy for row in rows}
    rewards = [mode.reward_model.revision for mode in server.modes if mode.reward_model is not None]
    return MeasuredTable(
        made_at=datetime.fromisoformat(result.created),
        made_by="vbon loadtest",
        prompts=MeasuredPrompts(count=result.prompts, sha256=result.prompts_digest),
        hardware=server.hardware,
        policies={one.name: one.revision for one in server.policies if one.name in used},
        reward_revision=rewards[0] if rewards else None,
        gold_revision=None if server.gold_model is None else server.gold_model.revision,
        concurrency=round(level),
        rows=rows,
    )


def _level(result: LoadTestResult, asked: float | None) -> float:
    """The closed-loop level whose latencies are taken."""
    variants = {cell.variant for cell in result.cells}
    closed = [cell for cell in result.cells if cell.load_kind == "closed"]
    levels = sorted(
        level
        for level in {cell.load for cell in closed}
        if {cell.variant for cell in closed if cell.load == level} == variants
    )
    told = ", ".join(f"{level:g}" for level in levels) or "none"
    if not levels or (asked is not None and asked not in levels):
        raise DataError(
            f"a table needs a level of requests in flight at which every variant was measured, and "
            f"{'there is none' if asked is None else f'{asked:g} is not one'}; there are: {told}"
        )
    if asked is not None:
        return asked
    return next((level for level in levels if level > 1), levels[0])


def _row(
    quality: Quality, cell: CellResult, modes: dict[str, ServedMode], result: LoadTestResult
) -> MeasuredSetting:
    name, _, policy = (
        quality.mode.partition("@") if quality.mode not in modes else (quality.mode, "", "")
    )
    served = modes[name].policy
    if cell.generated_tokens is None or served is None:
        raise DataError(
            f"the result has no tokens per answer of {quality.variant}; an earlier version made it, so "
            "compute it again with `vbon loadtest report DIRECTORY`, or measure again"
        )
    settings = result.settings
    return MeasuredSetting(
        mode=name,
        policy=policy or served.name,
        n=quality.n,
        temperature=settings["temperature"],
        max_tokens=settings["max_tokens"],
        reward=quality.reward,
        gold=quality.gold,
        win_rate=quality.win_rate if settings.get("baseline") == _REFERENCE else None,
        generated_tokens=cell.generated_tokens,
        latency_mean_s=cell.latency_mean_s,
        latency_p95_s=cell.latency_p95_s,
        failed=sum(cell.errors.values()) + sum(quality.errors.values()),
        unscored=quality.unscored,
    )
