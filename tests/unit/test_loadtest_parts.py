"""Arrivals, order, search, figures, break-even and decisions; values by hand and by enumeration."""

from __future__ import annotations

import io
import sys
from itertools import chain, combinations, islice, product
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.loadtest.analysis.break_even import (
    Capacity,
    MeasuredVariant,
    TrainingExpense,
    answers_to_break_even,
    break_even,
    cost_per_answer,
    training_of,
)
from service.loadtest.analysis.cell_results import throughput
from service.loadtest.analysis.decision import decide
from service.loadtest.analysis.equal_n import crossing, equal_n
from service.loadtest.analysis.intervals import (
    quantiles,
    sign_flip_p,
)
from service.loadtest.analysis.quality import Baseline, baseline_of, quality_of
from service.loadtest.analysis.saturation_search import SaturationSearch, hopeless
from service.loadtest.analysis.text import number
from service.loadtest.config import LoadTestSettings
from service.loadtest.load.arrivals import due_times, unit_arrivals
from service.loadtest.load.client import EventReader
from service.loadtest.load.prompts import generated_prompts, keep_prompts, load_prompts
from service.loadtest.load.server_description import choose_variants
from service.loadtest.observation import BlockRecord, Observation, ScoredAnswer
from service.loadtest.plan import Load, Variant, cells, schedule, scoring_passes
from service.loadtest.schema import ServedMode, ServedModel, ServerDescription, VariantCost
from vbon.config import load_settings
from vbon.errors import DataError, InvalidInputError
from vbon.maths.statistics import median_range
from vbon.prompts import Prompt
from vbon.storage.training_record import TrainingRecord

# Arrivals


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_spread_of_their_gamma_distribution(burstiness: float) -> None:
    """40,000 gaps of a fixed seed; the bounds are at least six standard errors wide."""
    moments = list(islice(unit_arrivals("random", burstiness, seed=7), 40_000))
    gaps = np.diff([0.0, *moments])
    assert gaps.mean() == pytest.approx(1, abs=6 / np.sqrt(40_000 * burstiness))
    assert gaps.var() == pytest.approx(1 / burstiness, rel=0.15)
    assert (gaps >= 0).all()


def test_burstiness_one_is_poisson() -> None:
    """Counts in windows have equal mean and variance; gaps above 1 have probability 1/e."""
    moments = np.array(list(islice(unit_arrivals("random", 1.0, seed=3), 50_000)))
    counts = np.histogram(moments, bins=np.arange(0, 40_000, 10))[0]
    assert counts.mean() == pytest.approx(10, rel=0.03)
    assert counts.var() == pytest.approx(10, rel=0.15)
    assert (np.diff(moments) > 1).mean() == pytest.approx(np.exp(-1), abs=0.015)


def test_a_constant_rate_is_one() -> None:
    due = list(islice(due_times(unit_arrivals("constant", 1.0, 0), rate=4), 3))
    assert due == [0.25, 0.5, 0.75]


def test_a_ramp_rises_linearly() -> None:
    """The ramp to 10/s in 4 s has 20 arrivals, a quarter of them in its first half; then 10 per second."""
    due = np.array(list(islice(due_times(unit_arrivals("constant", 1.0, 0), 10, ramp_s=4), 60)))
    assert (due <= 2).sum() == 5
    assert (due <= 4).sum() == 20
    assert np.diff(due[20:]) == pytest.approx(0.1)


# Order, prompts, settings


def test_rounds_go_there_and_back_or_are_shuffled() -> None:
    three = cells([Variant("a"), Variant("b"), Variant("c")], [Load("closed", 1)])
    line = [block.cell.variant.mode for block in schedule(three, 2, "alternating", 0)]
    assert "".join(line) == "abccba"
    orders = {
        "".join(b.cell.variant.mode for b in schedule(three, 20, "random", 1)[i : i + 3])
        for i in range(0, 60, 3)
    }
    assert len(orders) > 2
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_generated_prompts_have_lengths_of_the_range() -> None:
    made = generated_prompts("3:9", 200, seed=0)
    assert {len(prompt.split()) for prompt in made} == set(range(3, 10))
    assert made == generated_prompts("3:9", 200, seed=0)
    assert {len(p.split()) for p in generated_prompts("20", 5, seed=0)} == {20}


def test_prompts_of_a_file_are_cut(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\n")
    assert load_prompts(LoadTestSettings(prompts=file, prompt_count=2)) == [
        Prompt(text="one"),
        Prompt(text="two"),
    ]


def test_prompts_of_a_pipe_are_kept_for_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    settings = LoadTestSettings(prompts=Path("-"), prompt_count=2, out=tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\nb\nc\n')))
    prompts = load_prompts(settings, said.append)
    assert prompts == [Prompt(text="a"), Prompt(text="b")]
    keep_prompts(settings, prompts)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert load_prompts(settings, said.append) == prompts
    assert said == [
        "standard input: 3 prompts from JSON lines; the first 2 are used",
        f"{tmp_path / 'prompts.jsonl'}: 2 prompts from JSON lines",
    ]


def test_prompts_of_a_file_are_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one\n")
    settings = LoadTestSettings(prompts=file, out=tmp_path / "out")
    keep_prompts(settings, load_prompts(settings))
    assert not settings.out.exists()
    with pytest.raises(DataError, match=r"gone\.txt does not exist"):
        load_prompts(LoadTestSettings(prompts=tmp_path / "gone.txt", out=tmp_path))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"slo": ["speed:3"]}, "e2e, ttft, tpot"),
        ({"slo": ["e2e:fast"]}, "not KIND:MS"),
        ({"saturate": True}, "needs an SLO"),
        ({"url": "localhost:8000"}, "http://"),
        ({"prompts": "a", "prompt_words": "3"}, "not both"),
        ({"concurrency": [0]}, "greater than or equal to 1"),
        ({"speed": 3}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        LoadTestSettings(**values)  # type: ignore[arg-type]


def test_levels_are_calibrated_only_where_nothing_else_is_asked() -> None:
    assert LoadTestSettings().chooses_levels
    assert not LoadTestSettings(rate=[2]).chooses_levels
    assert not LoadTestSettings(concurrency=[5]).chooses_levels
    assert not LoadTestSettings(saturate=True, slo=["e2e:9"]).chooses_levels


# Events and windows


def test_events_may_be_cut_anywhere() -> None:
    text = b': hello\n\nevent: token\ndata: {"a": 1}\n\ndata: [DONE]\r\n\r\n'
    for cut in range(len(text)):
        reader = EventReader()
        found = list(chain(reader.feed(text[:cut]), reader.feed(text[cut:])))
        assert found == [("token", {"a": 1}), ("", "[DONE]")]


def block(*spans: tuple[float, float], window: tuple[float, float] = (1.0, 3.0)) -> BlockRecord:
    seen = [
        Observation(prompt=0, due_s=a, sent_s=a, done_s=b, measured=a >= window[0], returned_tokens=10)
        for a, b in spans
    ]  # fmt: skip
    return BlockRecord(key="k", cell="c", round=0, started="", window_s=window, client_cpu=0,
                       observations=seen)  # fmt: skip


def test_requests_over_an_edge_count_by_their_share() -> None:
    """Half of the first request counts, all of the second, a quarter of the third, none outside."""
    found = block((0.5, 1.5), (1.5, 2.5), (2.5, 4.5), (0.0, 0.9), (3.1, 4.0))
    assert throughput(found, lambda _: 1.0) == pytest.approx((0.5 + 1 + 0.25) / 2)
    assert throughput(found, lambda one: one.returned_tokens or 0) == pytest.approx(17.5 / 2)


def test_a_queue_that_fills_is_no_throughput() -> None:
    """Twelve requests at a time take a second each, so twelve per second are answered from a cold start."""
    spans = [(max(0, batch - 3), batch, batch + 1) for batch in range(10) for _ in range(12)]
    found = block(*((float(sent), float(done)) for sent, _, done in spans), window=(0.0, 4.0))
    for seen, (sent, begun, _) in zip(found.observations, spans, strict=True):
        seen.queue_ms = 1e3 * (begun - sent)
    assert throughput(found, lambda _: 1.0) == pytest.approx(12)
    for seen in found.observations:
        seen.queue_ms = None
    assert throughput(found, lambda _: 1.0) == pytest.approx(16.5), "nothing is known of the wait"


# Figures


def test_quantiles_interpolate_and_leave_out_what_is_missing() -> None:
    found = quantiles([None, 1, 2, 3, 4, 5])
    assert found is not None
    assert (found.p50, found.p90, found.count, found.mean) == (3, 4.6, 5, 3)
    assert quantiles([None]) is None


def test_sign_flip_p_is_the_enumerated_one() -> None:
    values = [0.5, -1.0, 2.0, 3.0]
    seen = abs(np.mean(values))
    count = sum(
        abs(np.mean(np.array(signs) * values)) >= seen - 1e-12
        for signs in product((-1, 1), repeat=4)
    )
    assert sign_flip_p(values) == pytest.approx(count / 16)


def test_drawn_tests_agree_with_a_known_tail() -> None:
    """Shifted samples give the smallest possible p-value, also when arrangements are sampled."""
    rng = np.random.default_rng(1)
    same = rng.normal(size=40)
    assert sign_flip_p((same + 9).tolist()) == pytest.approx(1 / 20_001)


def test_win_rate_is_the_share_of_pairs() -> None:
    """Prompt 0 has 1 and 3 against 2 and 3: of four pairs, 1 is won and 1 tied. Prompt 1 has no score."""
    ref = [ScoredAnswer(prompt=0, sample=i, reward=r) for i, r in enumerate((2.0, 3.0))]
    mine = [ScoredAnswer(prompt=0, sample=i, reward=r) for i, r in enumerate((1.0, 3.0))]
    mine.append(ScoredAnswer(prompt=1, sample=0, reward=None, unscored=1))
    found = quality_of(Variant("vbon"), mine, baseline_of(ref))
    assert found.win_rate is not None
    assert found.win_rate.mean == pytest.approx(1.5 / 4)
    assert (found.answers, found.unscored) == (2, 1)
    assert found.prompt_rewards == {"0": 2.0}


def test_best_of_n_wins_as_often_as_its_subsets() -> None:
    """Enumeration: every pair of candidates against every reference answer."""
    candidates, ref = [0.0, 2.0, 5.0, 3.0], [1.0, 4.0, 5.0]
    row = ScoredAnswer(prompt=0, sample=0, reward=5.0, candidates=candidates)
    against = Baseline({0: np.array(ref)}, {})
    found = quality_of(Variant("bon", 2, True), [row], against)
    bests = [max(pair) for pair in combinations(candidates, 2)]
    wins = [(best > r) + 0.5 * (best == r) for best in bests for r in ref]
    assert found.win_rate is not None
    assert found.win_rate.mean == pytest.approx(np.mean(wins))
    assert found.reward is not None
    assert found.reward.mean == pytest.approx(np.mean(bests))
    assert found.rewards == [2.0, 5.0]


def test_too_few_scored_candidates_are_no_answer() -> None:
    row = ScoredAnswer(prompt=0, sample=0, reward=5.0, candidates=[5.0], unscored=3)
    found = quality_of(Variant("bon", 4, True), [row], None)
    assert (found.reward, found.answers, found.unscored) == (None, 0, 3)


def test_best_of_n_is_asked_once_for_all_n() -> None:
    found = scoring_passes([Variant("ref"), Variant("bon", 2, True), Variant("bon", 8, True),
                    Variant("soft-bon", 2, True), Variant("soft-bon", 8, True)])  # fmt: skip
    assert [(one.variant.label, len(one.stands_for)) for one in found] == [
        ("ref", 1), ("bon (N=8)", 2), ("soft-bon (N=2)", 1), ("soft-bon (N=8)", 1),
    ]  # fmt: skip


# Saturation


@pytest.mark.parametrize("capacity", [2.0, 3.0, 41.0, 1000.0])
@pytest.mark.parametrize("start", [1.0, 10.0])
def test_the_search_ends_within_its_tolerance(capacity: float, start: float) -> None:
    search = SaturationSearch(start, 0.1)
    while (rate := search.next_rate()) is not None:
        search.note(rate, rate <= capacity)
    assert search.passed is not None
    assert search.failed is not None
    assert search.passed <= capacity < search.failed <= 1.1 * search.passed
    assert search.rates[-1] == search.passed
    assert search.rates.count(search.passed) == 2
    assert len(search.rates) < 25


def test_what_passed_by_luck_is_not_reported() -> None:
    """A rate of 45 passes once, and fails when it is probed again, as everything above 40 does."""
    search, lucky = SaturationSearch(45.0, 0.1), True
    while (rate := search.next_rate()) is not None:
        search.note(rate, rate <= 40 or (rate == 45 and lucky))
        lucky = lucky and rate != 45
    assert search.passed is not None
    assert 36 < search.passed <= 40


def test_the_search_gives_up_far_below_its_start() -> None:
    search = SaturationSearch(8.0, 0.1)
    while (rate := search.next_rate()) is not None:
        search.note(rate, False)
    assert search.passed is None
    assert min(search.rates) == 8 / 2**3


def test_hopeless_is_more_than_five_percent_of_what_is_expected() -> None:
    assert not hopeless(6, 100)
    assert hopeless(7, 100)


# Break-even


def test_break_even_by_hand() -> None:
    """Prices by hand: at 3.60 per hour an answer costs 0.001 at 1/s, 0.0001 at 10/s; 9 pay after 10,000."""
    assert cost_per_answer(3.6, 1) == pytest.approx(0.001)
    assert answers_to_break_even(9.0, 0.001, 0.0001) == pytest.approx(10_000)
    assert answers_to_break_even(9.0, 0.001, 0.001) is None
    assert cost_per_answer(1, 0) == float("inf")


def test_the_curve_is_crossed_between_integers() -> None:
    curve = np.array([0.0, 1.0, 1.5, 1.75])
    assert crossing(curve, 1.25) == (2.5, False)
    assert crossing(curve, 1.0) == (2.0, False)
    assert crossing(curve, 2.0) == (4.0, True)
    assert crossing(curve, -1.0) == (1.0, True)


def test_equal_n_is_paired_over_prompts() -> None:
    """Prompts differ far more than methods; since the curve shifts with them, the interval is a point."""
    level = np.random.default_rng(2).normal(0, 50, 30)
    matrix = level[:, None] + np.array([0.0, 1.0, 1.5])
    found = equal_n(matrix, level + 1.25)
    assert (found.n, found.low, found.high, found.beyond) == pytest.approx((2.5, 2.5, 2.5, False))


def side(variant: str, rates: list[float], rewards: dict[str, float]) -> MeasuredVariant:
    rows = [ScoredAnswer(prompt=int(p), sample=0, reward=r) for p, r in rewards.items()]
    rate = median_range(rates)
    quality = quality_of(Variant(variant), rows, None)
    return MeasuredVariant(variant, Capacity("8 in flight", rate, dict(enumerate(rates))), quality)


def test_break_even_pairs_rounds_and_prompts() -> None:
    tuned = side("vbon", [8.0, 10.0, 20.0], {"0": 1.0, "1": 2.0, "3": 9.0})
    sampled = side("bon", [1.0, 1.0, 2.0], {"0": 1.5, "1": 3.5, "2": 7.0})
    training = training_of(ServedMode(name="vbon", reranks=False), LoadTestSettings(training_hours=2.5,
                           training_price_per_hour=4))  # fmt: skip
    found = break_even(tuned, sampled, training, ([], np.zeros((0, 1))), price=3.6)
    assert found.training_cost == 10.0
    assert found.requests == pytest.approx(10 / (0.001 - 0.0001))
    # Rounds: 8 against 1, 10 against 1, 20 against 2.
    assert (found.cost_ratio.low, found.cost_ratio.median, found.cost_ratio.high) == pytest.approx(
        (8, 10, 10)
    )
    assert found.requests_low == pytest.approx(10 / (0.001 - 0.0001))
    assert found.requests_high == pytest.approx(10 / (0.0005 - 0.00005))
    assert found.reward_given_up is not None
    assert found.reward_given_up.count == 2
    assert found.reward_given_up.mean == pytest.approx((0.5 + 1.5) / 2)


def test_training_comes_from_the_card() -> None:
    record = {"cost": {"training_seconds": 1800, "processes": 4}}
    mode = ServedMode(name="vbon", reranks=False, training=TrainingRecord.model_validate(record))
    found = training_of(mode, LoadTestSettings(price_per_hour=3))
    assert (found.hours, found.cost) == (2.0, 6.0)
    assert training_of(ServedMode(name="x", reranks=False), LoadTestSettings()).cost is None


def test_the_bill_has_the_cached_samples() -> None:
    """134.75 s of training and 69 s of 64 x 256 cached samples, at 3,600 an hour: 203.75."""

    def bill(cache: dict[str, float]) -> TrainingExpense:
        record = {"cost": {"training_seconds": 134.75, "processes": 1}, "cache": cache}
        read = TrainingRecord.model_validate(record)
        # The server sends the record by its own names.
        mode = ServedMode(
            name="v",
            reranks=False,
            training=TrainingRecord.model_validate_json(read.model_dump_json()),
        )
        return training_of(mode, LoadTestSettings(price_per_hour=3600))

    found = bill({"prompts": 64, "smallest_M": 256, "sampling_seconds": 69.0})
    assert found.cost == pytest.approx(203.75)
    assert found.source == (
        "training record: 134.75 s x 1 of training and 69 s of 16,384 cached samples"
    )
    unknown = bill({"prompts": 64, "smallest_M": 256})
    assert unknown.cost == pytest.approx(134.75)
    assert unknown.source.endswith("; without 16,384 cached samples, whose time it does not tell")


# Words


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234567, "1,230,000"), (12.345, "12.3"), (0.01234, "0.0123"), (0.0000123, "0.0000123"),
     (0, "0"), (999.99, "1,000"), (999.4, "999"), (-0.00001234, "-0.0000123")],
)  # fmt: skip
def test_numbers_read_without_exponents(value: float, text: str) -> None:
    assert number(value) == text


def decision_of(tuned_rate: float, sampled_rate: float, hours: float | None) -> list[str]:
    tuned = side("vbon", [tuned_rate] * 2, {"0": 1.0, "1": 2.0})
    sampled = side("bon (N=4)", [sampled_rate] * 2, {"0": 1.5, "1": 2.5})
    training = training_of(
        ServedMode(name="v", reranks=False), LoadTestSettings(training_hours=hours)
    )
    pair = break_even(tuned, sampled, training, ([], np.zeros((0, 1))), price=1)
    pair = pair.model_copy(update={"state": "decided"})
    costs = [
        VariantCost(variant=one.variant, source="", requests_per_s=one.capacity.requests_per_s,
             per_1000=1000 * cost_per_answer(1, one.capacity.requests_per_s.median), low=0, high=0)
        for one in (tuned, sampled)
    ]  # fmt: skip
    return decide([pair], costs, [], [], [], "EUR")


def test_the_decision_says_from_when_on() -> None:
    first, *rest = decision_of(10, 1, 3.0)
    # 3 hours at 1 an hour; an answer costs 1/3600 against 1/36000: 12 000 answers.
    assert first.startswith("Fine-tune (vbon) if you will serve more than 12,000 answers")
    # 1,000 answers cost 0.278 against 0.0278: 0.25 saved for 0.5 of reward.
    assert "bon (N=4) is cheaper, and better: 0.5 EUR per 1,000 answers for each unit" in first
    assert "3.33 hours of serving" in rest[0]


def test_the_decision_says_so_where_nothing_is_saved_or_known() -> None:
    assert decision_of(1, 1, 3.0)[0] == (
        "Keep bon (N=4): it has more reward than vbon and costs no more."
    )
    assert (
        "is unknown (the checkpoint has no training record; give --training-hours)"
        in decision_of(10, 1, None)[0]
    )


# Variants


def told(**modes: bool) -> ServerDescription:
    policies = [ServedModel(name=name, path="/m", revision="r") for name in ("ref", "vbon")]
    return ServerDescription(
        url="http://host", api="native", policies=policies,
        modes=[ServedMode(name=name, reranks=reranks) for name, reranks in modes.items()],
    )  # fmt: skip


def test_every_n_of_what_draws_several_and_single_samples_once() -> None:
    server = told(ref=False, vbon=False, bon=True)
    asked = LoadTestSettings(modes=["ref", "bon", "bon@vbon", "ref"], n=[8, 2])
    labels = [variant.label for variant in choose_variants(asked, server)]
    assert labels == ["ref", "bon (N=2)", "bon (N=8)", "bon@vbon (N=2)", "bon@vbon (N=8)"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modes": ["fast"]}, "no mode 'fast'; it has ref, bon"),
        ({"modes": ["bon@fast"]}, "no policy 'fast'; it has ref, vbon"),
        ({"baseline": "base"}, "no mode 'base' to compare with"),
    ],
)
def test_what_the_server_has_not_is_named(changes: dict[str, object], words: str) -> None:
    settings = LoadTestSettings(**{"modes": ["ref"], **changes})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=words):
        choose_variants(settings, told(ref=False, bon=True))


@pytest.mark.parametrize("flag", [["--n", "4,16"], ["-n", "4,16"], ["--n=4,16"]])
def test_a_setting_of_one_letter_is_taken_either_way(flag: list[str]) -> None:
    assert load_settings(LoadTestSettings, flag, program="test").n == [4, 16]
