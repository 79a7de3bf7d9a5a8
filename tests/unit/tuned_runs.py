"""Reports of tuning runs for tests, by default of the models of ``tests.unit.fakes.make_runtime``."""

from __future__ import annotations

from typing import Any

from tests.unit.measured import around, as_json, row, table

RUN = "0123456789ab"


def tuned_setting(label: str = "bon, N=4, of ref", **changes: Any) -> dict[str, Any]:
    """A measured setting of a report; ``changes`` may name any field."""
    return {
        "label": label, "mode": "bon", "policy": "ref", "n": 4, "reaches": True,
        "gains": {"reward": interval(1.0)}, "margin": interval(0.2), "price": interval(160.0, 5.0),
    } | changes  # fmt: skip


def interval(mean: float, half: float = 0.1) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "count": 64}


def trial(number: int, **changes: Any) -> dict[str, Any]:
    """A trial whose best setting was measured, or with ``error`` one that failed."""
    found = {"number": number, "tried": f"ref at temperature {number / 10:g}", "settings": 12}
    if "error" in changes:
        return found | {"settings": 0} | changes
    return found | {"best": tuned_setting(f"bon, N={number}, of ref", n=number)} | changes


def report(**changes: Any) -> dict[str, Any]:
    """A run at its trials."""
    trials = changes.get("trials", [])
    return {
        "status": "running", "phase": "trials", "started": "2026-11-01T10:00:00+00:00",
        "question": {"text": "reward >= best-of-4 at the lowest tokens", "metric": "reward",
                     "target": "reward >= best-of-4", "level": 0.8, "price": "tokens",
                     "load": "8 in flight"},
        "search": {"sampler": "gp", "seed": 0, "workers": 1, "finalists": 5, "trials": 20,
                   "prompts": {"tune": 64, "validate": 32, "test": 32}, "space": "n_max = 16\n"},
        "policies": {"ref": "fake", "vbon": "fake"}, "reward_revision": "fake", "out": "runs/tune",
        "trials_done": len(trials), "settings_measured": 12 * len(trials),
    } | changes  # fmt: skip


def recommending(**changes: Any) -> dict[str, Any]:
    """A run that has ended with best-of-4 as its recommendation."""
    found = tuned_setting()
    known: dict[str, Any] = {
        "status": "recommended", "phase": "ended", "trials": [trial(4)], "best": found,
        "recommended": found, "recommended_setting": row().model_dump(mode="json"),
        "serve": 'default_mode = "tuned"\n',
        "checks": [{"stage": "test", "trial": 1, "setting": found}],
    }  # fmt: skip
    return report(**known | changes)


def measured_table() -> dict[str, Any]:
    """The table of a run: the recommended setting, and a dearer one with a higher reward."""
    return as_json(table(row(), row(n=16, reward=around(2.0))))
