"""Decisions on checkpoints as the trainer writes them and the service reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from vbon.distil.decision import Decision

ONE = {"mean": 0.9, "low": 0.85, "high": 0.95}
POLICY = dict.fromkeys(("win_rate", "reward", "kl_nats", "length", "truncated_share"), ONE)
DECISION: dict[str, Any] = {
    "verdict": "promote",
    "reasons": ["Its win rate is not below that of the live checkpoint by more than 0.05."],
    "figures": {
        "candidate": POLICY | {"gold": ONE},
        "live": None,
        "bon": POLICY,
        "reference": POLICY,
        "difference": {"win_rate": {"mean": -0.01, "low": -0.03, "high": 0.01}},
    },
    "spent": {"training_s": 12.5, "tokens": 4096},
}


def test_a_decision_survives_its_file() -> None:
    decision = Decision.model_validate_json(json.dumps(DECISION))
    assert decision.figures.candidate.gold is not None
    assert decision.figures.bon.gold is None
    assert Decision.model_validate_json(decision.model_dump_json()) == decision


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"verdict": "perhaps"}, "verdict"),
        ({"reason": "a typing error"}, "reason"),
        ({"spent": {"training_s": -1, "tokens": 0}}, "training_s"),
        ({"figures": DECISION["figures"] | {"bon": {"win_rate": ONE}}}, "kl_nats"),
        ({"figures": DECISION["figures"] | {"difference": {"reward": ONE | {"mean": 1}}}}, "contains"),
        ({"figures": DECISION["figures"] | {"difference": {"reward": ONE | {"high": "NaN"}}}}, "finite"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Decision.model_validate_json(json.dumps(DECISION | change))
