"""The throughput that prices an answer, and the modes that count as fine-tunes; values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from service.loadtest.analysis.break_even import (
    Capacity,
    MeasuredVariant,
    TrainingExpense,
    break_even,
    capacity_of,
    cost_of,
)
from service.loadtest.analysis.cell_results import throughput
from service.loadtest.analysis.decision import decide
from service.loadtest.analysis.result import _fine_tuned
from service.loadtest.analysis.verdict import Side, assess
from service.loadtest.analysis.warnings import rising_warning, search_warnings
from service.loadtest.observation import BlockRecord, Observation
from service.loadtest.plan import Variant
from service.loadtest.schema import (
    CellResult,
    RoundResult,
    Saturation,
    ServedMode,
    ServedModel,
    ServerDescription,
)
from vbon.maths.intervals import MeanInterval
from vbon.maths.statistics import median_range
from vbon.storage.database_urls import without_password

NO_CURVE: tuple[list[int], np.ndarray] = ([], np.zeros((0, 1)))


def cell(
    variant: str, load: float, rates: list[float], goodput: list[float] | None = None
) -> CellResult:
    rounds = [
        RoundResult(
            round=i,
            requests=9,
            requests_per_s=rate,
            returned_tokens_per_s=rate,
            p50_e2e_ms=1,
            p95_e2e_ms=2,
            goodput_per_s=None if goodput is None else goodput[i],
        )
        for i, rate in enumerate(rates)
    ]
    known = {
        "variant": variant,
        "mode": variant,
        "n": 1,
        "load_kind": "closed",
        "load": load,
        "requests": 9,
        "errors": {},
        "streamed": False,
        "requests_per_s": median_range(rates),
        "rounds": rounds,
        "generated_tokens_per_s": median_range(rates),
        "returned_tokens_per_s": median_range(rates),
        "goodput_per_s": None if goodput is None else median_range(goodput),
        "client_cpu": 0.0,
    }
    return CellResult(**dict.fromkeys(set(CellResult.model_fields) - set(known)), **known)


def capacity(cells: list[CellResult], found: tuple[Saturation, ...] = ()) -> Capacity:
    capacity = capacity_of(cells[0].variant, cells, found)
    assert capacity is not None
    return capacity


def test_rounds_are_of_goodput_and_one_without_any_never_pays() -> None:
    tuned = capacity([cell("vbon", 8, [100] * 5, [90, 90, 90, 10, 0])])
    assert tuned.by_round == {0: 90, 1: 90, 2: 90, 3: 10, 4: 0}
    sampled = capacity([cell("bon", 8, [10] * 5, [9] * 5)])
    found = break_even(
        MeasuredVariant("vbon", tuned, None),
        MeasuredVariant("bon", sampled, None),
        TrainingExpense(1.0, 1.0, "by hand"),
        NO_CURVE,
        price=3.6,
    )
    assert (found.cost_ratio.low, found.cost_ratio.median, found.cost_ratio.high) == (0, 10, 10)
    assert found.requests == pytest.approx(1 / (0.001 / 9 - 0.001 / 90))
    assert found.requests_low == pytest.approx(1 / (0.001 / 9 - 0.001 / 90))
    assert found.requests_high is None  # in the last round it never pays
    # The dearest round is the worst that answered at all.
    assert cost_of("vbon", tuned, 3.6).high == pytest.approx(1000 * 0.001 / 10)


@pytest.mark.parametrize(
    ("levels", "rising"),
    [
        ({8: 50.0, 32: 100.0}, True),
        ({8: 95.0, 32: 100.0}, False),
        ({8: 100.0, 32: 50.0}, False),
        ({1: 10.0, 8: 99.0, 32: 100.0}, False),
        ({32: 100.0}, True),
    ],
)
def test_throughput_that_still_rises_is_told(levels: dict[float, float], rising: bool) -> None:
    found = capacity([cell("vbon", load, [rate] * 2) for load, rate in levels.items()])
    assert found.rising == rising
    cost = cost_of("vbon", found, 1.0)
    assert cost.rising == rising
    warning = rising_warning(cost, len(levels), "give higher ones")
    assert warning.endswith("so its true cost is lower. Give higher ones.")
    assert ("still rose" in warning) == (len(levels) > 1)


@pytest.mark.parametrize(
    ("n", "full", "rising"), [(1, 512, True), (16, 512, False), (16, 513, True), (16, None, True)]
)
def test_a_server_that_is_full_at_a_lower_level_is_saturated(
    n: int, full: int | None, rising: bool
) -> None:
    """At 32 in flight best-of-16 has 512 candidates: if the server runs no more, 20% above are noise."""
    cells = [
        cell("bon", load, [rate] * 5).model_copy(update={"n": n})
        for load, rate in ((1, 8.0), (32, 25.0), (64, 30.0))
    ]
    found = capacity_of("bon", cells, [], full)
    assert found is not None
    assert found.rising == rising
    assert found.requests_per_s.median == 30


def test_one_that_is_still_rising_decides_nothing() -> None:
    tuned, sampled = (
        capacity([cell("vbon", load, [rate] * 2) for load, rate in ((8, 40.0), (32, 80.0))]),
        capacity([cell("bon", load, [rate] * 2) for load, rate in ((8, 10.0), (32, 10.0))]),
    )
    pair = break_even(
        MeasuredVariant("vbon", tuned, None),
        MeasuredVariant("bon", sampled, None),
        TrainingExpense(1.0, 1.0, "by hand"),
        NO_CURVE,
        price=1.0,
    )
    assert pair.cost_ratio.median == 8
    # The ratio is only a lower bound, so no number is told.
    side = [
        Side(MeasuredVariant(name, one, None), [])
        for name, one in (("vbon", tuned), ("bon", sampled))
    ]
    scored = pair.model_copy(update={"reward_given_up": MeanInterval(0.1, 0.1, 0.1, 9)})
    state, reasons = assess(scored, side[0], side[1], complete=True)
    assert state == "preliminary"
    assert any(
        "vbon was not fully loaded, because its throughput still rose at 32 in flight" in reason
        for reason in reasons
    )


def test_prices_said_have_the_ratio_said() -> None:
    """Medians of 150 and 20 have the ratio 7.5; by round the ratios are 10, 5 and 10."""
    tuned = capacity([cell("vbon", 8, [100, 150, 200])])
    sampled = capacity([cell("bon", 8, [10, 30, 20])])
    pair = break_even(
        MeasuredVariant("vbon", tuned, None),
        MeasuredVariant("bon", sampled, None),
        TrainingExpense(1.0, 1.0, "by hand"),
        NO_CURVE,
        price=1.0,
    )
    pair = pair.model_copy(update={"state": "decided"})
    costs = [cost_of("vbon", tuned, 1.0), cost_of("bon", sampled, 1.0)]
    assert "7.5 times less (5 to 10 by round)" in decide([pair], costs, [], [], [], "EUR")[1]


def test_an_unfinished_search_is_said_and_prices_nothing() -> None:
    def searched(confirmed: bool) -> Saturation:
        return Saturation(
            variant="vbon",
            slo_ms=500,
            rate=59.2,
            above=None,
            p95_ms=400,
            probes=[],
            confirmed=confirmed,
        )

    cells = [cell("vbon", 8, [100.0])]
    assert capacity(cells, (searched(True),)).requests_per_s.median == 59.2
    assert capacity(cells, (searched(False),)).requests_per_s.median == 100
    assert capacity_of("vbon", [], [searched(False)]) is None
    assert search_warnings([searched(True)]) == []
    assert "was not finished" in search_warnings([searched(False)])[0]
    assert "was not finished" in decide([], [], [], [], [searched(False)], "EUR")[-1]


def test_a_fine_tune_is_another_policy_whatever_the_baseline() -> None:
    ref, vbon = (ServedModel(name=name, path=f"/{name}", revision=name) for name in ("ref", "vbon"))
    modes = [
        ServedMode(name="ref", reranks=False, policy=ref),
        ServedMode(name="vbon", reranks=False, policy=vbon),
        ServedMode(name="bon", reranks=True, policy=ref),
        ServedMode(name="other", reranks=False),
    ]
    server = ServerDescription(url="", api="native", modes=modes, policies=[ref, vbon])
    bon = Variant("bon", 16, True)
    for baseline in ("ref", "vbon"):
        assert not _fine_tuned(Variant("ref"), bon, server, baseline)
        assert _fine_tuned(Variant("vbon"), bon, server, baseline)
        assert _fine_tuned(Variant("ref", policy="vbon"), bon, server, baseline)
    assert _fine_tuned(Variant("other"), bon, server, "ref"), "not told which: the baseline is none"
    assert not _fine_tuned(Variant("other"), bon, server, "other")


def test_a_streamed_answer_is_in_service_from_its_first_text_where_no_wait_is_told() -> None:
    seen = [
        Observation(prompt=0, due_s=0, sent_s=0, first_s=6, done_s=8, measured=True),
        Observation(prompt=0, due_s=0, sent_s=0, done_s=8, measured=True),
        Observation(prompt=0, due_s=0, sent_s=0, first_s=3, done_s=5, queue_ms=1000, measured=True),
    ]
    shares = [
        throughput(
            BlockRecord(
                key="k",
                cell="c",
                round=0,
                started="",
                window_s=(0, 4),
                client_cpu=0,
                observations=[one],
            ),
            lambda _: 4.0,
        )
        for one in seen
    ]
    assert shares == [0, 0.5, 0.75]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:s3c@ret@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql+psycopg://host/db?password=s3cret", "postgresql+psycopg://host/db?***"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg://me@host/db"),
        ("/a/file.db", "/a/file.db"),
    ],
)
def test_results_hold_no_password_of_the_store(url: str, shown: str) -> None:
    assert without_password(url) == shown
