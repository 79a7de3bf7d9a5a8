"""The question that a run answers: what to reach, at the lowest price of which kind, within which limits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.tune.drawing import Float
from service.tune.latency import Expected, LatencyModel
from service.tune.setting import Measured, Setting
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import bootstrap_means
from vbon.measured.target import Metric, Target

Price = Literal["tokens", "cost", "latency"]
_ROUNDING = 1e-9
_SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Question:
    """A target at the lowest price, or the highest gain within limits.

    Attributes:
        target: ``None``: maximise ``metric`` within the limits.
        price_per_hour: of the serving machine; ``None``: cost is taken as proportional to tokens.
        p95_ms: the highest 95th percentile of latency, under the stated load.
        most_tokens: tokens decoded for an answer, at most, on average.
    """

    target: Target | None
    metric: Metric
    price: Price
    p95_ms: float | None = None
    most_tokens: float | None = None
    price_per_hour: float | None = None

    def __str__(self) -> str:
        limits = [f"p95 latency at most {self.p95_ms:g} ms"] if self.p95_ms is not None else []
        if self.most_tokens is not None:
            limits.append(f"at most {self.most_tokens:g} tokens an answer")
        within = f" with {' and '.join(limits)}" if limits else ""
        if self.target is None:
            return f"the highest {self.metric}{within}"
        return f"{self.target} at the lowest {self.price}{within}"

    @property
    def needs_latency(self) -> bool:
        """True if latencies decide anything."""
        in_money = self.price == "cost" and self.price_per_hour is not None
        return self.p95_ms is not None or self.price == "latency" or in_money


@dataclass(frozen=True, slots=True)
class Priced:
    """A measured setting with its figures, as the question looks at it.

    Attributes:
        margin: by how much the gain exceeds the target, paired by prompt where that is best-of-K.
        expected: latency and machine time; ``None`` if they were not measured.
        price: of an answer: tokens, money or seconds; infinite if it is not known.
    """

    measured: Measured
    gains: Mapping[Metric, MeanInterval]
    tokens: MeanInterval
    margin: MeanInterval | None
    expected: Expected | None
    price: float
    over_limits: tuple[str, ...] = ()

    @property
    def setting(self) -> Setting:
        """The setting."""
        return self.measured.setting

    @property
    def reaches(self) -> bool:
        """True if the lower bound of the gain meets the target; without a target, always."""
        return self.margin is None or self.margin.low >= -_ROUNDING

    @property
    def feasible(self) -> bool:
        """True if it reaches the target within the limits, and its price is known."""
        return self.reaches and not self.over_limits and math.isfinite(self.price)


def level_of(question: Question, baseline: Sequence[Measured]) -> Float | float | None:
    """The level of the target: a number, or the gain of best-of-K on each prompt.

    Args:
        baseline: best-of-n of the reference policy at the server's own sampling, from n = 1.
    """
    target = question.target
    if target is None:
        return None
    if target.level is not None:
        return target.level
    assert target.best_of is not None
    return baseline[target.best_of - 1].gains[target.metric]


def priced(
    question: Question,
    rows: Sequence[Measured],
    level: Float | float | None,
    latency: LatencyModel,
) -> list[Priced]:
    """The rows with intervals, prices and broken limits; rows without a gain on any prompt are left out."""
    rows = [row for row in rows if not np.isnan(row.gains[question.metric]).all()]
    if not rows:
        return []
    metrics = [
        name for name in rows[0].gains if any(not np.isnan(row.gains[name]).all() for row in rows)
    ]
    gains: dict[Metric, list[MeanInterval | None]] = {
        name: _intervals([row.gains[name] for row in rows]) for name in metrics
    }
    margins: list[MeanInterval | None] = [None] * len(rows)
    if level is not None:
        margins = _intervals([row.gains[question.metric] - level for row in rows])
    tokens = bootstrap_means(np.stack([row.tokens for row in rows]))
    found = []
    for place, row in enumerate(rows):
        if level is not None and margins[place] is None:
            continue
        expected = latency.expected(row)
        own = {name: values[place] for name, values in gains.items()}
        found.append(
            Priced(
                row,
                {name: value for name, value in own.items() if value is not None},
                tokens[place],
                margins[place],
                expected,
                _price(question, tokens[place].mean, expected),
                tuple(_over_limits(question, tokens[place].mean, expected)),
            )
        )
    return found


def _intervals(rows: Sequence[Float]) -> list[MeanInterval | None]:
    known = [place for place, row in enumerate(rows) if not np.isnan(row).all()]
    intervals = bootstrap_means(np.stack([rows[place] for place in known])) if known else []
    by_place = dict(zip(known, intervals, strict=True))
    return [by_place.get(place) for place in range(len(rows))]


def _price(question: Question, tokens: float, expected: Expected | None) -> float:
    if question.price == "tokens" or (question.price == "cost" and question.price_per_hour is None):
        return tokens
    if expected is None:
        return float("inf")
    if question.price == "latency":
        return expected.mean_s.mean
    assert question.price_per_hour is not None
    return question.price_per_hour / _SECONDS_PER_HOUR * expected.seconds_per_answer


def _over_limits(question: Question, tokens: float, expected: Expected | None) -> list[str]:
    """The limits that a setting breaks, each with by how much."""
    found = []
    if question.most_tokens is not None and tokens > question.most_tokens:
        found.append(f"{tokens:.4g} tokens an answer, over {question.most_tokens:g}")
    if question.p95_ms is not None:
        if expected is None:
            found.append("its latency is not known")
        elif expected.p95_s.mean * 1e3 > question.p95_ms:
            found.append(
                f"p95 latency {expected.p95_s.mean * 1e3:.4g} ms, over {question.p95_ms:g} ms"
            )
    return found


def digest_of(parts: Mapping[str, Any]) -> str:
    """A short digest of all that decides what a run asks."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
