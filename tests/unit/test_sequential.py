"""Sequential tests of means: values by hand and enumeration, error rates by simulation with fixed seeds."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from vbon.maths.sequential import FRACTIONS, FallDetector, MeanEvidence, Side

THRESHOLD = 16 / 17 - 0.05
UNITS = st.floats(0, 1, allow_subnormal=False)
INSIDE = st.floats(0.02, 0.98)
SIDES: tuple[Side, ...] = ("above", "below")

# Finite distributions as (value, probability) with the mean that is given.
TWO_POINT = [(0.0, 0.25), (1.0, 0.75)]
THREE_POINT = [(0.0, 0.1), (0.5, 0.2), (1.0, 0.7)]
NARROW = [(0.7, 0.5), (0.9, 0.5)]
Distribution = list[tuple[float, float]]


def mean_of(distribution: Distribution) -> float:
    return sum(value * probability for value, probability in distribution)


def paths(distribution: Distribution, length: int) -> Iterator[tuple[tuple[float, ...], float]]:
    """Every sequence of so many observations with its probability."""
    for path in itertools.product(distribution, repeat=length):
        yield tuple(v for v, _ in path), math.prod(p for _, p in path)


def taken(evidence: MeanEvidence, values: tuple[float, ...] | list[float]) -> MeanEvidence:
    for value in values:
        evidence = evidence.observe(value)
    return evidence


def first_alarm(
    state: MeanEvidence | FallDetector, draw: Callable[[], float], needed: float, most: int
) -> int:
    """Number of observations until the e-value is at least ``needed``; ``most + 1`` if it never is."""
    for count in range(1, most + 1):
        state = state.observe(draw())
        if state.log_e >= math.log(needed):
            return count
    return most + 1


# -- values by hand


def test_one_observation_by_hand() -> None:
    """At m = 1/2 an observation of 1 multiplies the wealth of bet f by 1 + f, and one of 0 by 1 - f."""
    mean_fraction = sum(FRACTIONS) / len(FRACTIONS)
    above = MeanEvidence(0.5, "above")
    assert above.log_e == 0.0
    assert math.exp(above.observe(1.0).log_e) == pytest.approx(1 + mean_fraction)
    assert math.exp(above.observe(0.0).log_e) == pytest.approx(1 - mean_fraction)
    assert above.observe(0.5).log_e == pytest.approx(0.0)
    pair = sum((1 + f) * (1 - f) for f in FRACTIONS) / len(FRACTIONS)
    assert math.exp(above.observe(1.0).observe(0.0).log_e) == pytest.approx(pair)


def test_the_bets_depend_on_the_threshold() -> None:
    """At m = 0.8 an observation of 1 gains f / 4 above; below, it takes the share f, and 0 gains 4 f."""
    share = sum(FRACTIONS) / len(FRACTIONS)
    assert math.exp(MeanEvidence(0.8, "above").observe(1.0).log_e) == pytest.approx(1 + share / 4)
    assert math.exp(MeanEvidence(0.8, "below").observe(1.0).log_e) == pytest.approx(1 - share)
    assert math.exp(MeanEvidence(0.8, "below").observe(0.0).log_e) == pytest.approx(1 + 4 * share)


def test_a_test_rejects_at_exactly_one_over_alpha() -> None:
    """Of ones at m = 1/2, the wealth after k is the mean of (1 + f)^k; a detector adds all that began."""
    wealths = [sum((1 + f) ** k for f in FRACTIONS) / len(FRACTIONS) for k in range(30)]
    for count in range(1, 30):
        evidence = taken(MeanEvidence(0.5, "above"), [1.0] * count)
        assert evidence.rejects(0.05) == (wealths[count] >= 20)
        detector = FallDetector(0.5)
        for _ in range(count):
            detector = detector.observe(0.0)
        assert detector.alarms(500) == (sum(wealths[1 : count + 1]) >= 500)


def test_the_detector_is_the_sum_of_tests_that_begin_at_each_time() -> None:
    values = [0.2, 0.9, 0.0, 1.0, 0.6, 0.1]
    detector = FallDetector(0.7)
    assert detector.log_e == -math.inf
    for count in range(1, len(values) + 1):
        detector = detector.observe(values[count - 1])
        begun = [taken(MeanEvidence(0.7, "below"), values[j:count]).log_e for j in range(count)]
        assert math.exp(detector.log_e) == pytest.approx(sum(map(math.exp, begun)))


def test_a_larger_range_makes_the_bets_on_a_low_mean_smaller() -> None:
    """In [0, 1.5] at m = 0.9, below: 0 gains f * 0.9 / 0.6, 1.5 loses f; above: as in [0, 1]."""
    share = sum(FRACTIONS) / len(FRACTIONS)
    below, above = MeanEvidence(0.9, "below", most=1.5), MeanEvidence(0.9, "above", most=1.5)
    assert math.exp(below.observe(0.0).log_e) == pytest.approx(1 + share * 1.5)
    assert math.exp(below.observe(1.5).log_e) == pytest.approx(1 - share)
    assert math.exp(above.observe(1.5).log_e) == pytest.approx(1 + share * 0.6 / 0.9)
    assert above.observe(0.4).log_e == MeanEvidence(0.9, "above").observe(0.4).log_e
    fall = FallDetector(0.9, most=1.5).observe(0.0)
    assert fall.log_e == pytest.approx(below.observe(0.0).log_e)


@given(st.lists(UNITS, min_size=1, max_size=12), INSIDE, st.floats(0.5, 4))
def test_the_unit_of_the_observations_does_not_matter(
    values: list[float], threshold: float, unit: float
) -> None:
    for side in SIDES:
        one = taken(MeanEvidence(threshold, side), values)
        other = MeanEvidence(threshold * unit, side, most=unit)
        other = taken(other, [min(value * unit, unit) for value in values])
        assert one.log_e == pytest.approx(other.log_e, abs=1e-6)


# -- invariants


@given(st.lists(UNITS, min_size=1, max_size=12), INSIDE, st.randoms(use_true_random=False))
def test_the_order_of_the_observations_does_not_matter(
    values: list[float], threshold: float, rng: random.Random
) -> None:
    shuffled = rng.sample(values, len(values))
    for side in SIDES:
        one = taken(MeanEvidence(threshold, side), values)
        other = taken(MeanEvidence(threshold, side), shuffled)
        assert one.log_e == pytest.approx(other.log_e, abs=1e-9)


@given(st.lists(UNITS, min_size=1, max_size=12), INSIDE)
def test_both_sides_play_the_same_game(values: list[float], threshold: float) -> None:
    above = taken(MeanEvidence(threshold, "above"), values)
    below = taken(MeanEvidence(1 - threshold, "below"), [1 - value for value in values])
    assert above.log_e == pytest.approx(below.log_e, abs=1e-6)


@given(st.lists(UNITS, min_size=1, max_size=12), INSIDE, UNITS)
def test_larger_observations_speak_for_a_larger_mean(
    values: list[float], threshold: float, raised: float
) -> None:
    larger = [*values[:-1], max(values[-1], raised)]
    above, below = (MeanEvidence(threshold, side) for side in SIDES)
    assert taken(above, larger).log_e >= taken(above, values).log_e - 1e-9
    assert taken(below, larger).log_e <= taken(below, values).log_e + 1e-9


@given(st.lists(UNITS, max_size=12), INSIDE)
def test_the_state_survives_json_to_the_last_bit(values: list[float], threshold: float) -> None:
    evidence, detector = MeanEvidence(threshold, "below"), FallDetector(threshold)
    for value in values:
        evidence, detector = evidence.observe(value), detector.observe(value)
    for state in (evidence, detector):
        adapter = TypeAdapter(type(state))
        assert adapter.validate_json(adapter.dump_json(state)) == state


def test_long_streams_stay_finite() -> None:
    for value in (0.0, 1.0):
        above, fall = MeanEvidence(THRESHOLD, "above"), FallDetector(THRESHOLD)
        for _ in range(3000):
            above, fall = above.observe(value), fall.observe(value)
        assert all(math.isfinite(log) for log in (*above.log_wealths, *fall.log_sums))
        assert above.rejects(1e-9) == (value == 1.0)
        assert fall.alarms(1e9) == (value == 0.0)


def test_evidence_that_was_enough_once_stays_so() -> None:
    """Ville's inequality bounds the probability that it is *ever* reached."""
    evidence = taken(MeanEvidence(0.5, "above"), [1.0] * 12)
    assert evidence.rejects(0.05)
    after = taken(evidence, [0.0] * 50)
    assert after.log_e < 0
    assert after.rejects(0.05)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan])
def test_other_values_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        MeanEvidence(0.5, "above").observe(value)
    with pytest.raises(ValueError, match="between 0 and 1"):
        FallDetector(0.5).observe(value)
    with pytest.raises(ValueError, match=r"between 0 and 1\.5"):
        MeanEvidence(0.5, "above", most=1.5).observe(value + 0.5 if value > 0 else value)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, math.nan])
def test_a_threshold_lies_inside(threshold: float) -> None:
    for kind in (MeanEvidence, FallDetector):
        given = {"side": "above"} if kind is MeanEvidence else {}
        with pytest.raises(ValueError, match="threshold"):
            kind(threshold, **given)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"between 0 and 1\.5"):
            kind(1.5 * threshold, most=1.5, **given)  # type: ignore[arg-type]


# -- errors, exactly


@pytest.mark.parametrize("distribution", [TWO_POINT, THREE_POINT, NARROW])
@pytest.mark.parametrize("side", SIDES)
def test_at_the_threshold_the_e_value_is_fair_at_every_stopping_time(
    distribution: Distribution, side: Side
) -> None:
    """Optional stopping, by enumeration: at the first e-value of at least 1.5, or after 6 observations."""
    fair = stopped = 0.0
    for values, probability in paths(distribution, 6):
        evidence = MeanEvidence(mean_of(distribution), side)
        at_stop = None
        for value in values:
            evidence = evidence.observe(value)
            if at_stop is None and evidence.log_e >= math.log(1.5):
                at_stop = evidence.log_e
        fair += probability * math.exp(evidence.log_e)
        stopped += probability * math.exp(evidence.log_e if at_stop is None else at_stop)
    assert fair == pytest.approx(1)
    assert stopped == pytest.approx(1)


@pytest.mark.parametrize("distribution", [TWO_POINT, THREE_POINT, NARROW])
def test_the_detector_gains_one_per_observation_at_most(distribution: Distribution) -> None:
    """E[M_T] = E[T] at the threshold, by enumeration, for T = the first alarm or 6."""
    gained = length = 0.0
    for values, probability in paths(distribution, 6):
        detector, count = FallDetector(mean_of(distribution)), 0
        for value in values:
            detector, count = detector.observe(value), count + 1
            if detector.alarms(8):
                break
        gained += probability * math.exp(detector.log_e)
        length += probability * count
    assert gained == pytest.approx(length)


# -- errors and power, by simulation

Draw = Callable[[random.Random], float]


def of_16(mean: float) -> Draw:
    """Share of 16 reference candidates that an answer beats whose quantile is Beta(a, 1) with this mean."""
    a = mean / (1 - mean)

    def draw(rng: random.Random) -> float:
        quantile = rng.betavariate(a, 1)
        return sum(rng.random() < quantile for _ in range(16)) / 16

    return draw


def rare_successes(success: float, answered: float) -> Draw:
    """Win rates of answers with rewards of 0 and 1 over 16 candidates, with what best-of-16 gives up to ties.

    Args:
        success: of a candidate, and ``answered``: of the answer.
    """

    def draw(rng: random.Random) -> float:
        ones = sum(rng.random() < success for _ in range(16))
        won = ((16 - ones) + ones / 2) / 16 if rng.random() < answered else (16 - ones) / 32
        tied = ones or 16
        return won + (0.0 if tied < 2 else (tied / 2 - 1) / 16 + 1 / (16 * 17))

    return draw


def mean_of_rare_successes(success: float, answered: float) -> float:
    """Mean of :func:`rare_successes`, by enumeration of the number of candidates with 1."""
    total = 0.0
    for ones in range(17):
        weight = math.comb(16, ones) * success**ones * (1 - success) ** (16 - ones)
        tied = ones or 16
        lost = 0.0 if tied < 2 else (tied / 2 - 1) / 16 + 1 / (16 * 17)
        total += weight * ((16 - ones) / 32 + answered / 2 + lost)
    return total


MOST = 1.5  # of win rates with what ties cost
NULLS: dict[str, tuple[float, Draw]] = {
    "two-point": (0.9, lambda rng: float(rng.random() < 0.9)),
    "uniform": (0.5, random.Random.random),
    "heavy mass at 1": (0.95, lambda rng: 1.0 if rng.random() < 0.9 else rng.random()),
    "of 16 candidates": (0.9, of_16(0.9)),
    "rare successes": (mean_of_rare_successes(0.05, 0.44), rare_successes(0.05, 0.44)),
}


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("side", SIDES)
def test_false_alarms_are_as_rare_as_promised(name: str, side: Side) -> None:
    """At most alpha = 0.2 of 120 streams of 100 observations, looked at after each.

    41 or more of 120 at a true rate of 0.2 have a probability of 2e-4.
    """
    mean, draw = NULLS[name]
    rng = random.Random(5)
    alarms = sum(
        first_alarm(MeanEvidence(mean, side, most=MOST), lambda: draw(rng), 5, 100) <= 100
        for _ in range(120)
    )
    assert alarms <= 40


@pytest.mark.parametrize(
    ("mean", "side"), [(0.94, "above"), (0.84, "below"), (0.6, "below"), (0.97, "above")]
)
def test_win_rates_on_either_side_are_told_apart(mean: float, side: Side) -> None:
    """All of 12 streams are decided, at alpha = 0.05, within 400 observations, and on the right side."""
    other: Side = "below" if side == "above" else "above"
    rng, draw = random.Random(6), of_16(mean)
    for _ in range(12):
        right, wrong = MeanEvidence(THRESHOLD, side), MeanEvidence(THRESHOLD, other)
        while not right.rejects(0.05):
            value = draw(rng)
            right, wrong = right.observe(value), wrong.observe(value)
            assert not wrong.rejects(0.05)
            assert right.count < 400


@pytest.mark.parametrize("name", NULLS)
def test_false_alarms_of_the_detector_are_far_apart(name: str) -> None:
    """At the threshold, the mean run length of 40 runs, cut off at 300, is at least 60.

    The run lengths are roughly exponential: if their mean were 60, 40 of them would have one below 40 with
    a probability of 0.01. Cut off, they only become shorter.
    """
    mean, draw = NULLS[name]
    rng = random.Random(7)
    detector = FallDetector(mean, most=MOST)
    runs = [first_alarm(detector, lambda: draw(rng), 60, 300) for _ in range(40)]
    assert sum(runs) / len(runs) >= 60


def test_a_fall_after_a_long_good_time_is_noticed_as_soon_as_one_at_the_start() -> None:
    """From 0.94 to 0.8: in each of 8 streams within 250 observations, and never before the fall."""
    rng, good, bad = random.Random(8), of_16(0.94), of_16(0.8)
    for good_time in (0, 600) * 4:
        detector = FallDetector(THRESHOLD)
        for _ in range(good_time):
            detector = detector.observe(good(rng))
            assert not detector.alarms(100_000)
        assert first_alarm(detector, lambda: bad(rng), 100_000, 250) <= 250
