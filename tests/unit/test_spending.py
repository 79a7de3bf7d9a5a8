"""What the KL buys, by hand and by enumeration: one setting, a target, and several sandboxes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from training.sweep.choices import Choice, Choices
from training.sweep.groups import CellGroup, groups_of
from training.sweep.pareto import BonCurvePoint, SeedMean
from training.sweep.records import BaselineRecord, CellRecord, CellSetting, Sweep
from training.sweep.spending import kl_spending, target_comparisons, targets_of
from vbon.maths.intervals import MeanInterval
from vbon.storage.evaluation_record import MethodRow

pytestmark = pytest.mark.train


def bound(n: float) -> float:
    return math.log(n) - (n - 1) / n


CURVE = [BonCurvePoint(n, bound(n), n / (n + 1)) for n in (1, 2, 4, 8)]


def record(
    method: str, kl: float, win: float, seed: int = 0, *, n: int | None = None, beta: float = 1.0,
    half: float = 0.01, prompts: tuple[list[float], list[float]] | None = None,
) -> CellRecord:  # fmt: skip
    """A cell with a KL and win rate; with ``prompts``, the KL and win rate of each prompt."""
    figures = {} if prompts is None else {"kl_nats": prompts[0], "win_rate": prompts[1]}
    if prompts is not None:
        kl, win = float(np.mean(prompts[0])), float(np.mean(prompts[1]))
    value = MeanInterval(win, win - half, win + half, 64)
    return CellRecord(
        cell=CellSetting(objective="vbon", variant=method, seed=seed,
                         parameter="beta" if n is None else "num_samples", value=n or beta),
        status="ok", per_prompt=figures,
        row=MethodRow(method=method, n=1, reward=value, win_rate=value, kl_kind="Rao-Blackwellised",
                      kl_nats=MeanInterval(kl, kl, kl, 64)),
    )  # fmt: skip


def sweep(*cells: CellRecord, choices: Choices | None = None) -> Sweep:
    half = MeanInterval(0.5, 0.5, 0.5, 64)
    rows = [MethodRow(method=m, n=n, reward=half, win_rate=half, kl_nats=half, kl_kind="x")
            for m, n in (("reference", 1), ("best-of-n", 2))]  # fmt: skip
    baseline = BaselineRecord(title="s", prompts=64, rows=rows)
    return Sweep(Path("s"), baseline, {str(i): c for i, c in enumerate(cells)}, (), choices)


def test_spending_by_hand() -> None:
    cells = [record("a", 2 * bound(4), 0.8, n=4), record("a", bound(4), 0.8, 1, n=4),
             record("b", 1e-6, 0.501, beta=9)]  # fmt: skip
    a, b = kl_spending(groups_of([sweep(*cells)]))
    assert (a.method, a.setting, a.seeds, a.target) == ("a", "num_samples=4", 2, 4)
    assert isinstance(a.share, SeedMean)
    assert (a.share.mean, a.share.low, a.share.high) == pytest.approx((0.75, 0.5, 1.0))
    assert a.equivalent_n.mean == pytest.approx(4)
    assert (b.method, b.setting, b.share.mean) == ("b", "beta=9", 0.0)
    assert a.share_differs is None  # nothing to resample


def test_targets_are_what_both_the_curve_and_a_cell_have() -> None:
    cells = [record("a", 1, 0.7, n=n) for n in (8, 4, 3, 16)]
    assert targets_of(groups_of([sweep(*cells, record("b", 1, 0.7))]), CURVE) == [4, 8]


def test_target_table_compares_with_best_of_n_and_puts_the_closest_first() -> None:
    cells = [
        record("far", 0.5, 0.6, n=4),
        record("near", bound(4), 0.7, n=4), record("near", bound(4) * 2, 0.8, 1, n=4),
        record("near", 9.0, 0.9, n=8), record("other", 9.0, 0.9),
        record("over", 3.0, 0.88, n=4),  # .08 above .8: further than near's .05 below
    ]  # fmt: skip
    near, over, far = target_comparisons(groups_of([sweep(*cells)]), [CURVE[2]])
    assert [row.method for row in (near, over, far)] == ["near", "over", "far"]
    assert near.seeds == 2
    assert isinstance(near.win_rate, SeedMean)
    assert isinstance(near.kl_ratio, SeedMean)
    assert (near.win_rate.mean, near.win_rate.low, near.win_rate.high) == (
        pytest.approx(0.75), 0.7, 0.8,
    )  # fmt: skip
    assert near.win_ratio.mean == pytest.approx(0.75 / 0.8)
    assert (near.kl_ratio.mean, near.kl_ratio.low, near.kl_ratio.high) == pytest.approx((1.5, 1, 2))
    assert near.kl.mean == pytest.approx(1.5 * (math.log(4) - 0.75))


def test_target_tables_have_intervals_and_not_the_range_of_seeds() -> None:
    """Two seeds with equal means: their range has no width, but 64 prompts that differ have noise.

    Weights 1/2 + d and 1/2 - d of the seeds with E[d^2] = 1/4 give the variance of one seed's mean.
    """
    rng = np.random.default_rng(0)
    wins = rng.normal(0.7, 0.1, (2, 64))
    wins += 0.7 - wins.mean(1, keepdims=True)
    cells = [
        record("a", 0, 0, seed, n=4, prompts=([0.5] * 64, list(wins[seed]))) for seed in (0, 1)
    ]
    (row,) = target_comparisons(groups_of([sweep(*cells)]), [CURVE[2]])
    assert isinstance(row.win_rate, MeanInterval)
    assert row.win_rate.mean == pytest.approx(0.7)
    assert row.win_rate.high - row.win_rate.low == pytest.approx(
        2 * 1.96 * 0.1 / math.sqrt(64), rel=0.15
    )
    for figure, scale in ((row.win_ratio, 0.8), (row.kl_ratio, bound(4))):
        of = row.win_rate if figure is row.win_ratio else row.kl
        assert isinstance(figure, MeanInterval)
        assert (figure.mean, figure.low, figure.high) == pytest.approx(
            (of.mean / scale, of.low / scale, of.high / scale)
        )


def noisy(method: str, win: float, seed: int, *, spread: float = 0.02) -> CellRecord:
    rng = np.random.default_rng([seed, len(method)])
    common = np.random.default_rng(7).normal(0, 0.1, 64)  # the same prompts for all methods
    own = rng.normal(0, spread, 64)
    wins = win + common + own - own.mean()
    return record(method, 0, 0, seed, prompts=([1.0] * 64, list(wins)))


def test_methods_within_the_noise_are_not_distinguishable() -> None:
    """Standard error of a difference of two methods with three seeds: .02 * sqrt(2 / 192) = .002."""
    cells = [noisy(m, w, s) for m, w in (("first", 0.75), ("second", 0.749), ("last", 0.72))
             for s in range(3)]  # fmt: skip
    rows = {row.method: row for row in kl_spending(groups_of([sweep(*cells)]))}
    assert {name: row.share_differs for name, row in rows.items()} == {
        "first": None, "second": False, "last": True,
    }  # fmt: skip
    assert rows["last"].n_differs is True
    # Their own intervals overlap, since the prompts differ by far more than the methods.
    first, last = rows["first"].win_rate, rows["last"].win_rate
    assert last.high > first.low


def test_a_search_groups_by_target_even_if_one_setting_serves_two() -> None:
    choices = Choices(
        validation={}, search_seed=1000, tried=[],
        chosen=[Choice(method="a", target=4, kl_budget=1, setting="beta=1", within_budget=True),
                Choice(method="a", target=16, kl_budget=2, setting="beta=1", within_budget=True),
                Choice(method="b", target=4, kl_budget=1, setting="beta=2", within_budget=True),
                Choice(method="b", target=16, kl_budget=2, setting=None, within_budget=False)],
    )  # fmt: skip
    cells = [record("a", 1.0, 0.7, beta=1), record("b", 1.0, 0.6, beta=2)]
    groups = groups_of([sweep(*cells, choices=choices)])
    assert [(g.method, g.target) for g in groups] == [("a", 4), ("a", 16), ("b", 4)]
    rows = kl_spending(groups, by_target=True)
    assert [(r.target, r.method) for r in rows] == [(4, "a"), (4, "b"), (16, "a")]


def test_sandboxes_are_resampled_too() -> None:
    """Two sandboxes .1 apart: their mean is uncertain, however many prompts each has."""
    quiet = [[0.5] * 400, [0.7] * 400]
    cells = [record("a", 0, 0, s, prompts=(quiet[0], [w + 0.001 * s] * 400))
             for s in (0, 1) for w in (0.6, 0.7)]  # fmt: skip
    low, high = (sweep(cells[i], cells[i + 2]) for i in (0, 1))
    (one,) = kl_spending(groups_of([low]))
    (both,) = kl_spending(groups_of([low, high]))
    assert (one.win_rate.mean, both.win_rate.mean) == pytest.approx((0.6005, 0.6505))
    assert one.win_rate.high - one.win_rate.low < 0.003
    assert both.win_rate.low == pytest.approx(0.58, abs=0.01)  # .65 less .05 * sqrt(2)
    assert both.win_rate.high == pytest.approx(0.72, abs=0.01)


def test_no_share_is_negative() -> None:
    """Shares of about .5 and .02 in two sandboxes: .26 less .24 * sqrt(2) would be below 0."""
    cells = [record("a", 0, 0, prompts=([bound(4) * 2] * 8, [0.8] * 8)),
             record("a", 0, 0, prompts=([1.0] * 8, [0.55] * 8))]  # fmt: skip
    (row,) = kl_spending(groups_of([sweep(cells[0]), sweep(cells[1])]))
    assert row.share.low == 0.0
    assert row.share.mean == pytest.approx((0.5 + bound(0.55 / 0.45)) / 2)


def test_only_what_every_sandbox_has_is_pooled() -> None:
    one = sweep(record("a", 1, 0.7), record("b", 1, 0.7))
    other = sweep(record("b", 1, 0.8), record("c", 1, 0.7))
    groups: list[CellGroup] = groups_of([one, other])
    assert [group.method for group in groups] == ["b"]
    assert [len(cells) for cells in groups[0].cells] == [1, 1]
