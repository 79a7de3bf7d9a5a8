"""The n at which the gold reward peaks, against enumeration and a curve that is known."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from vbon.maths.gold_peak import gold_curves, gold_peak
from vbon.storage.evaluation_record import EvaluationRecord


def test_curves_by_all_subsets() -> None:
    """The mean gold reward of the best by the reward, over all subsets; ties go to the lower index."""
    rng = np.random.default_rng(0)
    rewards = [rng.integers(0, 4, 6).astype(float), rng.standard_normal(5)]
    gold = [rng.standard_normal(6), rng.standard_normal(5)]
    found = gold_curves(rewards, gold, 5)
    for place, (own, values) in enumerate(zip(rewards, gold, strict=True)):
        for n in range(1, 6):
            bests = [
                min(subset, key=lambda i: (-own[i], i))
                for subset in itertools.combinations(range(len(own)), n)
            ]
            assert found[place, n - 1] == pytest.approx(np.mean(values[bests])), (place, n)
    with pytest.raises(ValueError, match="a prompt has 5 samples, too few for best-of-6"):
        gold_curves(rewards, gold, 6)


def hacked(top: float, prompts: int = 40, total: int = 32) -> tuple[list[Any], list[Any]]:
    """Samples whose gold reward is U - top U^8 of the quantile U of their reward, with noise.

    Best-of-n has E[U^k] = n / (n + k), so the curve is n / (n + 1) - top n / (n + 8).
    """
    rng = np.random.default_rng(1)
    quantiles = [rng.random(total) for _ in range(prompts)]
    return quantiles, [u - top * u**8 + 0.02 * rng.standard_normal(total) for u in quantiles]


def test_a_peak_inside_is_found() -> None:
    """At the peak 1 / (n + 1)^2 = 8 top / (n + 8)^2: (n + 8) / (n + 1) = sqrt(8 top) = 2.53, so n = 3.6."""
    found = gold_peak(*hacked(0.8), 31)
    assert found.n in (3, 4)
    assert found.low <= found.n <= found.high < 10
    assert found.resolved
    assert found.gold.mean == pytest.approx(3.6 / 4.6 - 0.8 * 3.6 / 11.6, abs=0.02)
    assert found.gold_at_largest.mean < found.gold.low
    assert "over-optimises" in str(found)


def test_a_peak_at_the_largest_n_is_not_resolved() -> None:
    found = gold_peak(*hacked(0.0), 31)
    assert (found.n, found.resolved) == (31, False)
    assert "highest at n = 31" in str(found)
    assert "not resolved: raise --reference-samples" in str(found)


def test_an_interval_that_reaches_the_largest_n_shows_no_fall() -> None:
    """The curve is flat beyond its peak, at n = (8 - 1.39) / .39 = 17, so few prompts cannot tell it."""
    found = gold_peak(*hacked(0.24, prompts=6), 31)
    assert found.high == 31
    assert found.n < 31
    assert not found.resolved
    assert "a fall is not shown" in str(found)


def test_the_record_has_the_peak_and_older_ones_have_none() -> None:
    found = gold_peak(*hacked(0.8), 31)
    record: dict[str, Any] = {"created": "now", "prompts": 1, "revisions": {}, "rows": []}
    assert EvaluationRecord.model_validate(record).gold_peak is None
    again = EvaluationRecord.model_validate({**record, "gold_peak": asdict(found)})
    assert again.gold_peak == found
