"""Tables of measured settings for tests, by default of the models of ``tests.unit.fakes.make_runtime``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from vbon.maths.intervals import MeanInterval
from vbon.measured.hardware import describe_hardware
from vbon.measured.table import MeasuredPrompts, MeasuredSetting, MeasuredTable


def around(mean: float, half: float = 0.1) -> MeanInterval:
    return MeanInterval(mean, mean - half, mean + half, 100)


def row(mode: str = "bon", n: int = 4, **changes: Any) -> MeasuredSetting:
    """A setting of mode ``bon`` or of a policy; ``changes`` may name any field."""
    known: dict[str, Any] = {
        "mode": mode, "policy": "ref", "n": n, "temperature": 1.0, "max_tokens": 48,
        "reward": around(1.0), "generated_tokens": around(40.0 * n),
        "latency_mean_s": around(0.5), "latency_p95_s": around(0.9),
    }  # fmt: skip
    return MeasuredSetting.model_validate(known | changes)


def table(*rows: MeasuredSetting, **changes: Any) -> MeasuredTable:
    """A table of these settings, measured on this machine."""
    known: dict[str, Any] = {
        "made_at": datetime(2026, 11, 1, tzinfo=UTC), "made_by": "vbon tune",
        "prompts": MeasuredPrompts(count=100, sha256="ab" * 32), "hardware": describe_hardware(),
        "policies": {"ref": "fake", "vbon": "fake"}, "reward_revision": "fake", "gold_revision": "fake",
        "concurrency": 8, "rows": list(rows or (row(),)),
    }  # fmt: skip
    return MeasuredTable.model_validate(known | changes)


def as_json(one: MeasuredTable) -> dict[str, Any]:
    """The table as a request has it."""
    return one.model_dump(mode="json")
