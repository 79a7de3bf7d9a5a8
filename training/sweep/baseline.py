"""Measures the baseline of a sweep: the reference policy and best-of-n."""

from __future__ import annotations

from typing import Any

from training.configs import SweepConfig
from training.outputs.identity import read_json_record
from training.sweep.shared_inputs import SharedInputs
from vbon.storage.atomic import write_json
from vbon.storage.provenance import provenance

BASELINE = "baseline.json"
# The curve reaches at least this n.
_CURVE_N = 4
# Every n up to this one is measured, so that the curve between powers of two is no guess.
_EVERY_N_UP_TO = 32
_BASELINE_SETTINGS = {
    "policy",
    "reward",
    "gold",
    "heldout",
    "prompt_column",
    "encoding",
    "heldout_prompts",
    "reference_samples",
    "max_new_tokens",
    "temperature",
    "title",
}


def baseline_is_current(config: SweepConfig, shared: SharedInputs) -> bool:
    """Tell whether the recorded baseline was measured with these settings and inputs."""
    record = read_json_record(config.out / BASELINE) or {}
    wanted = _baseline_identity(config, shared)
    return all(record.get(name) == value for name, value in wanted.items())


def measure_baseline(config: SweepConfig, shared: SharedInputs) -> None:
    """Measure the baseline and write its record."""
    from training.evaluation.rows import evaluation_rows

    rows = evaluation_rows(shared.training.heldout_reference, {}, _CURVE_N, _EVERY_N_UP_TO)
    write_json(
        config.out / BASELINE,
        {
            **provenance(config.model_dump(mode="json")),
            **_baseline_identity(config, shared),
            "title": config.title,
            "prompts": len(shared.training.heldout),
            "rows": [row.model_dump() for row in rows],
        },
    )


def _baseline_identity(config: SweepConfig, shared: SharedInputs) -> dict[str, Any]:
    """The settings and inputs that determine the baseline, as they stand in its record."""
    return {
        "settings": config.model_dump(mode="json", include=_BASELINE_SETTINGS),
        "revisions": shared.revisions,
        "every_n_up_to": _EVERY_N_UP_TO,
        "heldout_sha256": shared.measured_with["heldout_sha256"],
    }
