"""Simulated servers of known capacities, rewards and noise: intervals cover the truth, decisions are right.

Each truth is run 200 times through the analysis that reports use, from cells and rewards by prompt to the
sentences. An interval that covers in 93.75% (the smallest and the largest of five rounds) does so in fewer
than 180 of 200 runs with a probability of 1.5%. Decisions that are wrong in 3.1% (all five rounds on the
wrong side of a tie) are so in 10 or more of 200 with a probability of 11%. The seeds are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray

from service.loadtest.analysis.break_even import (
    MeasuredVariant,
    TrainingExpense,
    break_even,
    capacity_of,
    cost_of,
    median_ends,
)
from service.loadtest.analysis.decision import decide
from service.loadtest.analysis.equal_n import crossing, crossings, equal_n
from service.loadtest.analysis.extension import extended_rounds, least_coverage, wanted
from service.loadtest.analysis.verdict import Side, judged
from service.loadtest.schema import BreakEven, CellResult, Quality, RoundResult
from vbon.maths.statistics import median_range

Float = NDArray[np.float64]
RUNS, ROUNDS, PROMPTS, N = 200, 5, 48, 4
BEST = np.array([0.0, 1.0, 1.5, 1.75])  # mean reward of the best of 1, 2, 3, 4
PRICE, TRAINING = 3.6, 1.0  # an answer at 1/s costs .001


@dataclass(frozen=True)
class Truth:
    """A server: answers per second of vBoN, best-of-4 and one sample, and vBoN's reward."""

    tuned: float
    sampled: float
    single: float
    reward: float

    @property
    def equal_n(self) -> float:
        return crossing(BEST, self.reward)[0]

    @property
    def ratio(self) -> float:
        return self.tuned / self.sampled

    @property
    def equal_ratio(self) -> float:
        one, best = 1 / self.single, 1 / self.sampled
        return (one + (self.equal_n - 1) / (N - 1) * (best - one)) * self.tuned

    @property
    def requests(self) -> float:
        return paid_after(self.ratio, self.tuned)

    @property
    def equal_requests(self) -> float:
        return paid_after(self.equal_ratio, self.tuned)


def paid_after(ratio: float, tuned: float) -> float:
    saved = (ratio - 1) * PRICE / 3600 / tuned
    return TRAINING / saved if saved > 0 else inf


TRUTHS = {
    "clear win": Truth(40, 10, 40, 1.25),  # best-of-2.5 for the price of one
    "clear loss": Truth(8, 10, 40, 0.3),  # little reward, and dearer than best-of-4
    "near tie": Truth(10.2, 10, 40, 1.7),  # 2% cheaper, a little worse
    "equal reward": Truth(25, 10, 40, 1.25),  # between integers, and no cheaper than best-of-2.5
    "nearly best-of-4": Truth(40, 10, 40, 1.74),  # the interval of equal n ends beyond the curve
}


def cells_of(name: str, n: int, rates: Float) -> list[CellResult]:
    """Three levels, of which the upper two are saturated; the noise of the lower one is its own."""
    return [
        CellResult.model_construct(
            variant=name,
            mode=name,
            n=n,
            load_kind="closed",
            load=load / n if load > 1 else 1,
            streamed=False,
            goodput_per_s=None,
            requests_per_s=median_range(own),
            rounds=[
                RoundResult.model_construct(
                    round=i, requests_per_s=float(rate), goodput_per_s=None, goodput_share=None
                )
                for i, rate in enumerate(own)
            ],
        )
        for load, own in zip((1, 512, 1024), rates, strict=True)
    ]


def quality_of_means(name: str, n: int, means: Float) -> Quality:
    return Quality.model_construct(
        variant=name,
        mode=name,
        n=n,
        reward=None,
        win_rate=None,
        prompt_rewards={str(i): float(value) for i, value in enumerate(means)},
    )


def simulate(
    truth: Truth, rng: np.random.Generator, own_noise: float = 0.05
) -> tuple[BreakEven, list[str], int]:
    """One load test: rounds with noise of their own and of 5% in common, prompts of many levels.

    It is analysed after five rounds and, if the analysis asks for more, again after all of them, as a run is.

    Returns:
        The pair, the sentences of its decision, and the number of rounds.
    """
    most = extended_rounds(ROUNDS)
    drift = rng.normal(0, 0.05, most)
    prices = {name: rng.normal(0, own_noise, (3, most)) + drift for name in ("vbon", "bon", "ref")}
    level = rng.normal(0, 2, PROMPTS)
    matrix = level[:, None] + BEST * (1 + rng.normal(0, 0.2, (PROMPTS, 1)))
    means = {"vbon": level + truth.reward + rng.normal(0, 0.4, PROMPTS), "bon": matrix[:, -1]}
    pair, lines = analysed(truth, prices, matrix, means, ROUNDS)
    extension = wanted([pair], ROUNDS)
    if extension is None:
        return pair, lines, ROUNDS
    return *analysed(truth, prices, matrix, means, extension.rounds), extension.rounds


def analysed(
    truth: Truth, noise: dict[str, Float], matrix: Float, means: dict[str, Float], rounds: int
) -> tuple[BreakEven, list[str]]:
    """The analysis of the first rounds of a load test."""
    measured: dict[str, tuple[MeasuredVariant, list[CellResult]]] = {}
    sizes = {"vbon": (truth.tuned, 1), "bon": (truth.sampled, N), "ref": (truth.single, 1)}
    for name, (rate, n) in sizes.items():
        own = noise[name][:, :rounds]
        rates = rate * np.array([0.3, 0.99, 1.0])[:, None] * np.exp(own)
        cells = cells_of(name, n, rates)
        capacity = capacity_of(name, cells, [])
        assert capacity is not None
        quality = quality_of_means(name, n, means[name]) if name in means else None
        measured[name] = MeasuredVariant(name, capacity, quality, n), cells
    (tuned, tuned_cells), (sampled, sampled_cells) = measured["vbon"], measured["bon"]
    pair = break_even(
        tuned,
        sampled,
        TrainingExpense(1.0, TRAINING, "by hand"),
        (list(range(PROMPTS)), matrix),
        PRICE,
        measured["ref"][0],
    )
    found = judged(pair, Side(tuned, tuned_cells), Side(sampled, sampled_cells), complete=True)
    costs = [cost_of(name, side.capacity, PRICE) for name, (side, _) in measured.items()]
    return found, decide([found], costs, [], [], [], "EUR")


def is_wrong(truth: Truth, lines: list[str]) -> bool:
    """True if a sentence claims a direction that is not the truth's."""
    text = " ".join(lines)
    less = BEST[-1] > truth.reward
    false_claims = {
        "At equal reward, fine-tune": truth.equal_ratio <= 1,
        "At equal reward, vbon saves nothing": truth.equal_ratio > 1,
        "Keep bon": truth.ratio > 1,
        "A trade: vbon costs": truth.ratio > 1,
        "Fine-tune (vbon) if": truth.ratio <= 1,
        "vbon: worse by": not less,
        "vbon: better by": less,
    }
    return any(claim in text for claim, false in false_claims.items() if false)


@pytest.mark.parametrize(
    ("name", "own_noise"),
    [*((name, 0.05) for name in TRUTHS), ("clear win", 0.13), ("near tie", 0.13)],
)
def test_intervals_cover_and_decisions_are_right(name: str, own_noise: float) -> None:
    """On the noisy machine, a third of the runs are extended after a look at their ranges."""
    truth, rng = TRUTHS[name], np.random.default_rng(list(TRUTHS).index(name))
    covered = dict.fromkeys(("ratio", "given up", "equal n", "equal ratio", "equal requests"), 0)
    wrong = decided = extended = 0
    for _ in range(RUNS):
        pair, lines, rounds = simulate(truth, rng, own_noise)
        extended += rounds > ROUNDS
        given, ratio, equal = pair.reward_given_up, pair.cost_ratio, pair.equal_cost_ratio
        assert given is not None
        assert pair.equal_n is not None
        low, high = open_ends(pair)
        assert ratio.low <= ratio.median <= ratio.high
        assert given.low <= given.mean <= given.high
        assert low <= pair.equal_n <= high
        covered["ratio"] += ratio.low <= truth.ratio <= ratio.high
        covered["given up"] += given.low <= BEST[-1] - truth.reward <= given.high
        covered["equal n"] += low <= truth.equal_n <= high
        if equal is None:  # the reward of this run is above the curve, and nothing is said of it
            covered["equal ratio"] += 1
            covered["equal requests"] += 1
        else:
            top = inf if pair.equal_n_high_open else equal.high
            assert equal.low <= equal.median <= equal.high
            covered["equal ratio"] += equal.low <= truth.equal_ratio <= top
            fewest = 0.0 if pair.equal_n_high_open else pair.equal_requests_low or 0.0
            most = inf if pair.equal_requests_high is None else pair.equal_requests_high
            covered["equal requests"] += fewest <= truth.equal_requests <= most
            if pair.equal_requests is not None:
                assert (pair.equal_requests_low or 0.0) <= pair.equal_requests <= most
        if pair.requests is not None:
            end = inf if pair.requests_high is None else pair.requests_high
            assert pair.requests_low is not None
            assert pair.requests_low <= pair.requests <= end
        decided += pair.state == "decided"
        wrong += pair.state == "decided" and is_wrong(truth, lines)
    assert min(covered.values()) >= 180, covered
    assert wrong < 0.05 * decided, (wrong, decided)
    # The check is not empty.
    assert decided >= (150 if own_noise == 0.05 else 75) or name == "near tie"
    assert extended >= (0 if own_noise == 0.05 else 50)


def open_ends(pair: BreakEven) -> tuple[float, float]:
    """The interval of equal n; an end that lies beyond the curve is none."""
    low, high = pair.equal_n_low, pair.equal_n_high
    assert low is not None
    assert high is not None
    return (-inf if pair.equal_n_low_open else low), (inf if pair.equal_n_high_open else high)


@pytest.mark.parametrize(
    ("count", "left_out"), [(1, 0), (2, 0), (5, 0), (8, 0), (9, 1), (11, 1), (12, 2), (15, 3)]
)
def test_more_rounds_narrow_a_range_that_misses_the_median_no_more_often(
    count: int, left_out: int
) -> None:
    """Of 9 rounds, 0 or 1 lie below the median with a probability of 10/512, on either side: 3.9%."""
    values = np.arange(count, dtype=float)
    assert median_ends(values[::-1]) == (left_out, count - 1 - left_out)


@pytest.mark.parametrize("rounds", [5, 6, 8])
def test_two_looks_cover_whatever_decides_on_the_second(rounds: int) -> None:
    """Every pattern of rounds below and above the true median; either look may be the reported one."""
    total = extended_rounds(rounds)
    missed = 0
    for below in product((False, True), repeat=total):
        signs = np.where(below, -1.0, 1.0)
        ranges = [median_ends(signs[:count]) for count in (rounds, total)]
        missed += any(low > 0 or high < 0 for low, high in ranges)
    assert least_coverage(rounds, total) == pytest.approx(1 - missed / 2**total)
    assert least_coverage(rounds, total) > 0.9


def test_a_curve_that_falls_again_is_reached_where_it_rises() -> None:
    """Gold rewards of best-of-n by another reward: 0, 2, 1. A reward of 1.5 is that of n = 1.75."""
    curve = np.array([0.0, 2.0, 1.0])
    assert crossing(curve, 1.5) == (1.75, False)
    assert crossing(curve, 2.5) == (3.0, True)
    assert crossing(curve, -0.5) == (1.0, True)
    assert crossing(np.zeros(3), 0.0) == (1.0, False)
    each = [crossing(curve, target)[0] for target in (-1.0, 0.0, 0.5, 2.0, 3.0)]
    together = crossings(np.tile(curve, (5, 1)), np.array([-1.0, 0.0, 0.5, 2.0, 3.0]))
    assert together.tolist() == each


def test_an_interval_that_ends_beyond_the_curve_says_so() -> None:
    """Half of the prompts lie above best-of-2 and half below: of many resamples, some lie beyond."""
    matrix = np.tile([0.0, 1.0], (20, 1))
    inside = equal_n(matrix, np.full(20, 0.5))
    assert (inside.low_open, inside.high_open) == (False, False)
    high = equal_n(matrix, np.array([0.0, 1.9] * 10))
    assert (high.low_open, high.high_open, high.high) == (False, True, 2.0)
    low = equal_n(matrix, np.array([-0.9, 1.0] * 10))
    assert (low.low_open, low.high_open, low.low) == (True, False, 1.0)


def test_every_truth_would_be_noticed_if_the_analysis_were_wrong() -> None:
    """The check itself: a server whose true prices are swapped makes most decisions wrong."""
    truth, rng = TRUTHS["clear win"], np.random.default_rng(7)
    swapped = replace(truth, tuned=truth.sampled / 2)
    runs = [simulate(truth, rng) for _ in range(9)]
    lines = [said for pair, said, _ in runs if pair.state == "decided"]
    assert len(lines) >= 5
    assert not any(is_wrong(truth, one) for one in lines)
    assert all(is_wrong(swapped, one) for one in lines)
