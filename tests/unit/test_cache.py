"""The reward cache: forms, the estimate of F, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bestofn.errors import DataError
from training.cache import RewardCache


def write(path: Path, *records: object) -> Path:
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_both_forms_are_read_and_pooled(tmp_path: Path) -> None:
    path = write(
        tmp_path / "cache.jsonl",
        {"prompt": "a", "responses": ["x", "y"], "rewards": [2.0, 1.0]},
        {"prompt": "b", "text": "z", "reward": 5},
        {"prompt": "b", "text": "w", "reward": 4.5},
        {"prompt": "a", "responses": ["v"], "rewards": [0.0]},
    )
    cache = RewardCache.load(path)
    assert cache.prompts == ["a", "b"]
    np.testing.assert_array_equal(cache.rewards("a"), [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(cache.rewards("b"), [4.5, 5.0])
    assert cache.smallest == 2


def test_log_cdf_is_the_smoothed_strict_rank() -> None:
    cache = RewardCache({"a": [3.0, 1.0, 1.0, 2.0]})
    values = np.array([0.0, 1.0, 1.5, 2.0, 9.0])
    expected = np.log(np.array([1, 1, 3, 3, 5]) / 5)
    np.testing.assert_allclose(cache.log_cdf("a", values), expected)


@pytest.mark.parametrize(("m", "mean"), [(4, -0.65), (16, -0.86), (64, -0.95), (300, -0.987)])
def test_mean_log_cdf_under_the_reference_tends_to_minus_one(m: int, mean: float) -> None:
    """Derived: a fresh sample's rank among M is uniform on 0..M, so the mean is a finite sum."""
    expected = sum(math.log((rank + 1) / (m + 1)) for rank in range(m + 1)) / (m + 1)
    assert expected == pytest.approx(mean, abs=0.01)
    cache = RewardCache({"a": np.arange(m, dtype=float)})
    fresh = np.arange(m + 1) - 0.5  # one in each gap between the cached rewards
    assert cache.log_cdf("a", fresh).mean() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ('{"prompt": "a", "rew', "not valid JSON"),
        ({"rewards": [1]}, "no string"),
        ({"prompt": "a"}, "neither"),
        ({"prompt": "a", "rewards": []}, "at least one"),
        ({"prompt": "a", "rewards": ["x"]}, "'x' is not a number"),
        ({"prompt": "a", "rewards": [True]}, "True is not a number"),
        ('{"prompt": "a", "rewards": [NaN]}', "nan is not finite"),
        ('{"prompt": "a", "text": "b", "reward": Infinity}', "inf is not finite"),
        ({"prompt": "a", "responses": ["x"], "rewards": [1, 2]}, "1 responses but 2 rewards"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, record: object, words: str) -> None:
    path = write(tmp_path / "c.jsonl", {"prompt": "ok", "rewards": [1.0]}, record)
    with pytest.raises(DataError, match=words) as caught:
        RewardCache.load(path)
    assert "c.jsonl:2" in str(caught.value)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        RewardCache.load(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is empty"):
        RewardCache.load(write(tmp_path / "empty.jsonl", ""))


def test_a_prompt_never_sampled_is_named() -> None:
    with pytest.raises(DataError, match="'the film' is not in the reward cache"):
        RewardCache({"a": [1.0]}).log_cdf("the film", np.array([1.0]))


def test_warnings() -> None:
    good = RewardCache({"a": np.arange(64.0)})
    assert good.warn_about(16) == []
    flat = RewardCache({"a": np.ones(64), "b": np.arange(64.0)})
    assert "1 of 2 prompts have all-equal rewards" in flat.warn_about(16)[0]
    assert "M = 63" in RewardCache({"a": np.arange(63.0)}).warn_about(16)[0]
