"""The rules by which candidates are chosen, against brute force and known limits."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import linprog
from scipy.stats import norm
from scipy.stats import t as student_t

from service.strategies import STRATEGIES
from service.strategies import answer_key as answer_keys
from service.strategies.adaptive_bon import (
    AdaptiveBon,
    Prior,
    expected_excess,
    expected_gain,
    predict_next,
)
from service.strategies.answer_key import answer_key, compiled
from service.strategies.best_of_poisson import BestOfPoisson, poisson_numbers
from service.strategies.bon import Bon
from service.strategies.bon_uniform_top import BonUniformTop
from service.strategies.corrected_bon import CorrectedBon, effective_number
from service.strategies.majority_of_the_bests import MajorityOfTheBests
from service.strategies.mbr_bon import MbrBon
from service.strategies.pessimistic_bon import PessimisticBon, normalising_level
from service.strategies.protocol import ScoredCandidate
from service.strategies.rbon_kl import RbonKl
from service.strategies.rbon_length import RbonLength
from service.strategies.rerank import CandidatePool, Reranker, candidate_pool, draw, standardised
from service.strategies.self_certainty import SelfCertainty
from service.strategies.soft_bon import SoftBon
from service.strategies.speculative_rejection import SpeculativeRejection
from service.strategies.srbon_kl import SrbonKl
from service.strategies.srbon_wd import SrbonWd
from service.strategies.treebon import implicit_reward, shared_out
from vbon.embedders.cosine import cosine
from vbon.engine import Candidate
from vbon.errors import EngineError
from vbon.maths.certainty import mean_certainty

finite = st.floats(-20, 20, allow_subnormal=False)


def pools(smallest: int = 1) -> st.SearchStrategy[CandidatePool]:
    def build(count: int) -> st.SearchStrategy[CandidatePool]:
        vector = st.lists(finite, min_size=count, max_size=count).map(np.array)
        rows = st.lists(vector, min_size=count, max_size=count).map(np.array)
        lengths = st.lists(st.integers(1, 40), min_size=count, max_size=count)
        return st.builds(
            CandidatePool,
            rewards=vector,
            logprobs=vector.map(lambda v: -np.abs(v)),
            lengths=lengths.map(lambda v: np.array(v, dtype=float)),
            similarity=rows.map(cosine),
            certainties=vector.map(np.abs),
            log_ratios=vector,
            texts=st.lists(st.sampled_from("ABC"), min_size=count, max_size=count).map(tuple),
        )

    return st.integers(smallest, 9).flatmap(build)


RULES = [strategy() for strategy in STRATEGIES.values() if issubclass(strategy, Reranker)]


@given(pool=pools())
def test_every_rule_is_a_distribution(pool: CandidatePool) -> None:
    """Each pool, which takes longer to draw than to try, is tried with every rule."""
    for rule in RULES:
        weights = rule.distribution(pool)
        assert weights.shape == pool.rewards.shape, rule
        assert (weights >= 0).all(), rule
        assert weights.sum() == pytest.approx(1), rule


@given(pool=pools(2), data=st.data())
def test_no_rule_depends_on_the_order(pool: CandidatePool, data: st.DataObject) -> None:
    """The order of candidates does not matter, except for ties, which go to the lower index."""
    if len(np.unique(pool.rewards)) < len(pool.rewards) or np.ptp(pool.rewards) < 1e-6:
        return
    order = np.array(data.draw(st.permutations(range(len(pool.rewards)))))
    assert pool.similarity is not None
    assert pool.texts is not None
    assert pool.certainties is not None
    assert pool.log_ratios is not None
    moved = CandidatePool(
        pool.rewards[order],
        pool.logprobs[order],
        pool.lengths[order],
        pool.similarity[np.ix_(order, order)],
        tuple(pool.texts[i] for i in order),
        pool.certainties[order],
        log_ratios=pool.log_ratios[order],
    )
    for rule in RULES:
        first, second = rule.distribution(pool)[order], rule.distribution(moved)
        if np.abs(first - second).max() > 1e-9:
            # Only where two candidates are worth the same to rounding.
            assert rule_is_tied(rule, pool), rule


def rule_is_tied(rule: Reranker, pool: CandidatePool) -> bool:
    """True if a tiny change of the rewards, or of the likelihoods, changes the choice."""
    tiny = 1e-7 * np.arange(len(pool.rewards))
    still = 0.0 * tiny

    def chosen(rewards: np.ndarray, logprobs: np.ndarray) -> np.ndarray:
        assert pool.certainties is not None
        return rule.distribution(
            replace(
                pool,
                rewards=pool.rewards + rewards,
                logprobs=pool.logprobs + logprobs,
                certainties=pool.certainties + logprobs,
            )
        )

    of_rewards = np.abs(chosen(tiny, still) - chosen(-tiny, still)).max()
    of_logprobs = np.abs(chosen(still, tiny) - chosen(still, -tiny)).max()
    return bool(max(of_rewards, of_logprobs) > 1e-9)


def example() -> CandidatePool:
    vectors = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0]])
    return CandidatePool(
        rewards=np.array([1.0, 1.2, 0.9, 1.5]),
        logprobs=np.array([-4.0, -5.0, -3.0, -9.0]),
        lengths=np.array([4.0, 5.0, 3.0, 2.0]),
        similarity=cosine(vectors),
        certainties=np.array([0.4, 0.5, 0.7, 0.6]),
        log_ratios=np.array([-1.0, 0.0, -0.5, -2.0]),
        texts=("So: The Hague.", "it is the  hague", "Rome", "Paris"),
    )


# For each mode that reranks a pool: its settings and the probabilities of example(), by hand.
BY_HAND: dict[str, tuple[dict[str, Any], list[float]]] = {
    "bon": ({}, [0, 0, 0, 1]),
    # exp(2), exp(2.4), exp(1.8), exp(3) over their sum
    "soft-bon": ({"reward_temperature": 0.5}, [0.165870, 0.247449, 0.135802, 0.450879]),
    # the ceil(4 / 2) highest
    "bon-uniform-top": ({"effective_n": 2}, [0, 0.5, 0, 0.5]),
    # (r - 0.75) / (4 * 0.4): the level 0.75 makes them sum to 1
    "pessimistic-bon": ({"reg_strength": 0.4}, [0.15625, 0.28125, 0.09375, 0.46875]),
    # 1 - .4, 1.2 - .5, .9 - .3, 1.5 - .9
    "rbon-kl": ({"reg_strength": 0.1, "normalise_rewards": False}, [0, 1, 0, 0]),
    # 1 - .5, 1.2 - .4, .9 - .67, 1.5 - 1
    "rbon-length": ({"reg_strength": 2.0, "normalise_rewards": False}, [0, 1, 0, 0]),
    # mean similarity about .75, .77, .72, .25
    "mbr-bon": ({"reg_strength": 1.0, "normalise_rewards": False}, [0, 1, 0, 0]),
    # exp(2 - .4), exp(2.4 - .5), exp(1.8 - .3), exp(3 - .9) over their sum
    "srbon-kl": (
        {"reg_strength": 0.5, "likelihood_weight": 0.1, "normalise_rewards": False},
        [0.203939, 0.275289, 0.184532, 0.336239],
    ),
    # exp(1 - 1), exp(1.2), exp(.9 - .5), exp(1.5 - 2) over their sum
    "corrected-bon": ({}, [0.155800, 0.517275, 0.232427, 0.094498]),
    "self-certainty": ({}, [0, 0, 1, 0]),
    # one of four is best of itself alone: Rome and Paris have 1/4 each, The Hague 2/4; its better text is 1
    "majority-of-the-bests": (
        {"subset_size": 1, "answer_pattern": r"(?i)(the\s+hague|rome|paris)"},
        [0, 1, 0, 0],
    ),
    # 0, 1 and 2 are alike and vote for 1, the best of them; 3 is like no other and votes for itself
    "srbon-wd": ({"reg_strength": 1.0, "normalise_rewards": False}, [0, 0.75, 0, 0.25]),
}


@pytest.mark.parametrize("mode", BY_HAND)
def test_probabilities_by_hand(mode: str) -> None:
    settings, expected = BY_HAND[mode]
    rule = STRATEGIES[mode](**settings)
    assert isinstance(rule, Reranker)
    assert rule.distribution(example()) == pytest.approx(expected, abs=1e-6)


def chosen(rule: Reranker, pool: CandidatePool | None = None) -> int:
    weights = rule.distribution(pool or example())
    assert np.count_nonzero(weights) == 1
    return int(np.argmax(weights))


def test_bon_takes_the_first_of_the_highest() -> None:
    pool = CandidatePool(np.array([1.0, 3.0, 3.0]), np.zeros(3), np.ones(3))
    assert chosen(Bon(), pool) == 1


def test_regularised_choices_by_hand() -> None:
    # r + b log p: 1 - .4, 1.2 - .5, .9 - .3, 1.5 - .9
    assert chosen(RbonKl(reg_strength=0.1, normalise_rewards=False)) == 1
    # r - b / |y|: 1 - .5, 1.2 - .4, .9 - .67, 1.5 - 1
    assert chosen(RbonLength(reg_strength=2.0, normalise_rewards=False)) == 1
    # mean similarity about .75, .77, .72, .27
    assert chosen(MbrBon(reg_strength=1.0, normalise_rewards=False)) == 1
    for rule in (RbonKl, RbonLength, MbrBon):
        assert chosen(rule(reg_strength=0.0)) == 3
        assert chosen(rule(reg_strength=0.0, normalise_rewards=False)) == 3


@given(pool=pools(2))
def test_mbr_is_the_wasserstein_distance_to_the_others(pool: CandidatePool) -> None:
    """W1(delta_y, p^) with cost 1 - sim has one transport plan."""
    assert pool.similarity is not None
    rule = MbrBon(reg_strength=0.7, normalise_rewards=False)
    worth = [
        pool.rewards[y]
        - 0.7 * np.mean([1 - pool.similarity[y, j] for j in range(len(pool.rewards))])
        for y in range(len(pool.rewards))
    ]
    assert worth[chosen(rule, pool)] == pytest.approx(max(worth))


@given(pool=pools(), temperature=st.floats(0.05, 5))
def test_soft_bon_by_brute_force(pool: CandidatePool, temperature: float) -> None:
    weights = SoftBon(reward_temperature=temperature).distribution(pool)
    shifted = [math.exp((r - max(pool.rewards)) / temperature) for r in pool.rewards]
    assert weights == pytest.approx([w / sum(shifted) for w in shifted])


def test_soft_bon_tends_to_bon_and_to_uniform() -> None:
    assert SoftBon(reward_temperature=1e-3).distribution(example())[3] == pytest.approx(1)
    uniform = SoftBon(reward_temperature=1e6).distribution(example())
    assert uniform == pytest.approx(np.full(4, 0.25), abs=1e-5)


@given(pool=pools(), effective_n=st.integers(1, 12))
def test_uniform_top_keeps_the_best_share(pool: CandidatePool, effective_n: int) -> None:
    weights = BonUniformTop(effective_n=effective_n).distribution(pool)
    kept = np.flatnonzero(weights)
    count = math.ceil(len(pool.rewards) / effective_n)
    assert len(kept) == count
    assert weights[kept] == pytest.approx(np.full(count, 1 / count))
    assert sorted(pool.rewards[kept]) == sorted(pool.rewards)[-count:]


@pytest.mark.parametrize(
    ("count", "win_rate"), [(4, 0.8), (8, 0.8333), (16, 0.8529), (64, 0.8692), (4096, 0.875)]
)
def test_uniform_top_s_win_rate_depends_on_n(count: int, win_rate: float) -> None:
    """The j-th lowest of N beats a further sample with probability j / (N + 1)."""
    rewards = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    pool = CandidatePool(rewards, np.zeros(count), np.ones(count))
    weights = BonUniformTop(effective_n=4).distribution(pool)
    found = float(weights @ rewards) / (count + 1)
    kept = math.ceil(count / 4)
    assert found == pytest.approx((2 * count - kept + 1) / (2 * (count + 1)))
    assert found == pytest.approx(win_rate, abs=2e-4)


@given(pool=pools(), strength=st.floats(1e-3, 10))
def test_pessimism_weights_have_mean_one(pool: CandidatePool, strength: float) -> None:
    level = normalising_level(pool.rewards, strength)
    raw = np.maximum(pool.rewards - level, 0) / strength
    assert raw.mean() == pytest.approx(1, rel=1e-6, abs=1e-6)
    weights = PessimisticBon(reg_strength=strength).distribution(pool)
    assert weights == pytest.approx(raw / len(raw), abs=1e-6)


def test_pessimism_is_the_optimum_of_reward_less_chi_squared() -> None:
    """Maximises w . r - b/2 (N |w|^2 - 1) on the simplex: no random direction improves on it."""
    pool, strength = example(), 0.4
    weights = PessimisticBon(reg_strength=strength).distribution(pool)

    def value(w: np.ndarray) -> float:
        return float(w @ pool.rewards - strength / 2 * (len(w) * (w @ w) - 1))

    rng = np.random.default_rng(0)
    for _ in range(2000):
        assert value(rng.dirichlet(np.full(4, 0.5))) <= value(weights) + 1e-12


def test_pessimism_with_a_vanishing_strength_is_bon() -> None:
    assert chosen(PessimisticBon(reg_strength=1e-6)) == 3
    # Less than a request may send: lost in rounding beside any reward.
    assert chosen(PessimisticBon.model_construct(reg_strength=1e-300)) == 3


@given(pool=pools(), strength=st.floats(0.1, 5), tilt=st.floats(0, 1))
def test_srbon_kl_by_brute_force(pool: CandidatePool, strength: float, tilt: float) -> None:
    rule = SrbonKl(reg_strength=strength, likelihood_weight=tilt, normalise_rewards=False)
    logits = pool.rewards / strength + tilt * pool.logprobs
    expected = np.exp(logits - np.logaddexp.reduce(logits))
    assert rule.distribution(pool) == pytest.approx(expected, abs=1e-12)


def test_srbon_kl_without_likelihood_is_soft_bon() -> None:
    rule = SrbonKl(reg_strength=0.3, likelihood_weight=0, normalise_rewards=False)
    soft = SoftBon(reward_temperature=0.3)
    assert rule.distribution(example()) == pytest.approx(soft.distribution(example()))


@given(pool=pools(2), strength=st.floats(0, 30))
def test_srbon_wd_is_the_linear_programs_optimum(pool: CandidatePool, strength: float) -> None:
    """max over transport plans g >= 0 with row sums 1/N of sum_ij g_ij (r_j - b c_ij)."""
    assert pool.similarity is not None
    count = len(pool.rewards)
    cost = 1 - pool.similarity
    gain = pool.rewards[None, :] - strength * cost
    rows = np.kron(np.eye(count), np.ones(count))
    solved = linprog(-gain.ravel(), A_eq=rows, b_eq=np.full(count, 1 / count), method="highs")
    weights = SrbonWd(reg_strength=strength, normalise_rewards=False).distribution(pool)
    # The cheapest way to bring p^ to the distribution found, by a second linear program.
    both = np.vstack([rows, np.kron(np.ones(count), np.eye(count))])
    moved = linprog(
        cost.ravel(),
        A_eq=both,
        b_eq=np.concatenate([np.full(count, 1 / count), weights]),
        method="highs",
    )
    value = weights @ pool.rewards - strength * moved.fun
    assert value == pytest.approx(-solved.fun, rel=1e-6, abs=1e-6)


def test_majority_of_the_bests_by_all_subsets() -> None:
    """Counts the answers of the bests of all C(N, m) subsets; among equal rewards the lower index is best."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        count = int(rng.integers(1, 8))
        size = int(rng.integers(1, count + 1))
        rewards = rng.integers(0, 6, count).astype(float)
        texts = tuple(rng.choice(["A", "b", "C"], count).tolist())
        order = sorted(range(count), key=lambda i: (-rewards[i], i))
        bests = [
            min(subset, key=order.index) for subset in itertools.combinations(range(count), size)
        ]
        counts = Counter(texts[i].casefold() for i in bests)
        rule = MajorityOfTheBests(subset_size=size)
        pool = CandidatePool(rewards, rewards, rewards, texts=texts)
        shares = {answer: share for answer, share in rule.shares(pool).items() if share > 1e-12}
        assert shares == pytest.approx({a: c / len(bests) for a, c in counts.items()})
        winners = {answer for answer, c in counts.items() if c == max(counts.values())}
        expected = next(i for i in order if texts[i].casefold() in winners)
        assert chosen(rule, pool) == expected


def test_majority_of_the_bests_between_voting_and_best_of_n() -> None:
    rewards = np.array([0.1, 0.2, 0.3, 0.9, 0.8])
    pool = CandidatePool(rewards, rewards, rewards, texts=("x", "x", "x", "y", "z"))
    assert chosen(MajorityOfTheBests(subset_size=1), pool) == 2
    assert chosen(MajorityOfTheBests(subset_size=5), pool) == 3
    assert chosen(MajorityOfTheBests(subset_size=99), pool) == 3
    # m = 3 by default: y is the best of 6 subsets in 10, z of 3, x of 1
    facts = MajorityOfTheBests().facts(pool, MajorityOfTheBests().distribution(pool))
    assert facts == {"answer": "y", "share": 0.6, "answers": 3}


@pytest.mark.parametrize(
    ("mean", "least", "most"), [(4, 1, 6), (1, 1, 3), (2.5, 3, 4), (900, 1, 5)]
)
def test_poisson_numbers_by_their_series(mean: float, least: int, most: int) -> None:
    mu = mean - 1
    expected = np.zeros(most)
    for k in range(2000):
        log_probability = (
            (k * math.log(mu) if k else 0.0) - mu - math.lgamma(k + 1) if mu else -math.inf
        )
        probability = float(k == 0) if mu == 0 else math.exp(log_probability)
        expected[min(max(k + 1, least), most) - 1] += probability
    assert poisson_numbers(mean, least, most) == pytest.approx(expected, abs=1e-9)


def test_best_of_poisson_has_the_density_of_its_docstring() -> None:
    """The answers' distribution over 400 texts of equal probability, from exact best-of-n of each n."""
    mu, texts = 3.0, 400
    up_to = np.arange(1, texts + 1) / texts
    found = sum(
        p * (up_to**n - (up_to - 1 / texts) ** n)
        for n, p in enumerate(BestOfPoisson(mean_n=1 + mu).draw_probabilities(60), start=1)
    )
    u = up_to - 0.5 / texts
    density = (1 + mu * u) * np.exp(mu * (u - 1))
    assert found * texts == pytest.approx(density, abs=1e-4)
    win_rate = 1 - (mu - 1 + math.exp(-mu)) / mu**2
    assert float(found @ u) == pytest.approx(win_rate, abs=1e-5)
    # The KL of the optimum with this win rate, and of best-of-n with it
    kl = float(np.mean(density * np.log(density)))
    tilts = np.linspace(1, 8, 70_001)
    rates = 1 / (1 - np.exp(-tilts)) - 1 / tilts  # E[U] of the density ~ exp(t U)
    tilt = float(np.interp(win_rate, rates, tilts))
    least = tilt * win_rate - math.log((math.exp(tilt) - 1) / tilt)
    n = win_rate / (1 - win_rate)
    assert kl == pytest.approx(0.4946, abs=2e-4)
    assert 0 < kl - least < 1e-3
    assert math.log(n) - (n - 1) / n - least > 0.02


def test_the_number_of_candidates_follows_the_seed_and_the_distribution() -> None:
    """4,000 seeds: each count is within 5 standard deviations; false alarm below 1e-5 in all."""
    rule = BestOfPoisson(mean_n=3)
    numbers = [rule.number(6, seed, [1, 2]) for seed in range(4000)]
    assert numbers == [rule.number(6, seed, [1, 2]) for seed in range(4000)]
    for found, p in zip(
        np.bincount(numbers, minlength=7)[1:], rule.draw_probabilities(6), strict=True
    ):
        assert abs(found - 4000 * p) <= 5 * math.sqrt(4000 * p * (1 - p))
    assert len({rule.number(6, 7, [prompt]) for prompt in range(50)}) > 1
    assert BestOfPoisson().mean(16) == 8.5
    assert {BestOfPoisson(mean_n=1).number(8, s, []) for s in range(20)} == {1}
    assert {BestOfPoisson(mean_n=1).with_answers(3).number(8, s, []) for s in range(20)} == {3}


def test_certainty_is_the_kl_from_the_uniform_distribution() -> None:
    """With the whole vocabulary of four tokens it is the paper's KL(U || p), by its definition."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), size=3)
    kl = [sum(0.25 * math.log(0.25 / one) for one in row) for row in p]
    tops = [sorted(np.log(row), reverse=True) for row in p]
    assert mean_certainty(tops, 4) == pytest.approx(sum(kl) / 3)
    assert mean_certainty([[math.log(0.25)] * 4], 4) == pytest.approx(0)
    # Of the likeliest two alone: U = (1/2, 1/2) against their two probabilities
    two = [sum(0.5 * math.log(0.5 / math.exp(x)) for x in top[:2]) for top in tops]
    assert mean_certainty(tops, 2) == pytest.approx(sum(two) / 3)
    assert mean_certainty([], 4) == 0


@pytest.mark.parametrize("forbidden", [-math.inf, -9999.0])
def test_certainty_is_that_among_the_tokens_that_a_format_allows(forbidden: float) -> None:
    """Engines give forbidden tokens a log-probability of -inf, and vLLM's own server of -9,999."""
    free = [math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]
    two = [math.log(0.8), math.log(0.2), forbidden, forbidden]
    one = [0.0, forbidden, forbidden, forbidden]
    kl = -sum(free) / 4 - math.log(4), -(math.log(0.8) + math.log(0.2)) / 2 - math.log(2), 0.0
    assert mean_certainty([free, two, one], 4) == pytest.approx(sum(kl) / 3)


def test_candidates_are_compared_by_equally_many_likeliest_tokens() -> None:
    def scored(index: int, tops: tuple[tuple[float, ...], ...] | None) -> ScoredCandidate:
        ids = tuple(range(len(tops or ())))
        return ScoredCandidate(Candidate(index, "x", ids, "stop", top_logprobs=tops), None)

    full, short = scored(0, ((-0.1, -3.0, -4.0),)), scored(1, ((-0.2, -2.0),))
    pool = candidate_pool([full, short])
    assert pool.certainties == pytest.approx([1.55 - math.log(2), 1.1 - math.log(2)])
    assert pool.certainty_tokens == 2
    empty = candidate_pool([full, scored(1, ())])
    assert empty.certainties == pytest.approx([7.1 / 3 - math.log(3), 0])
    none = candidate_pool([full, scored(1, None)])
    assert none.certainties is None
    with pytest.raises(EngineError, match="no log-probabilities"):
        SelfCertainty().distribution(none)


def test_corrected_weights_are_the_target_s_tilted_policy() -> None:
    """Eight candidates, each text as often as s draws it: weights by text are p exp(r / t) / Z exactly."""
    s, p = np.array([0.5, 0.25, 0.125, 0.125]), np.array([0.1, 0.2, 0.3, 0.4])
    rewards = np.array([2.0, 1.0, 0.0, -1.0])
    text = np.repeat(np.arange(4), (8 * s).astype(int))
    ratios = np.log(p / s)[text]
    pool = CandidatePool(rewards[text], ratios, ratios, log_ratios=ratios)
    weights = CorrectedBon(reward_temperature=0.7).distribution(pool)
    tilted = p * np.exp(rewards / 0.7)
    assert np.bincount(text, weights) == pytest.approx(tilted / tilted.sum())
    alike = CorrectedBon(reward_temperature=0.7).distribution(replace(pool, log_ratios=None))
    assert alike == pytest.approx(SoftBon(reward_temperature=0.7).distribution(pool))


def test_effective_number_by_hand() -> None:
    assert effective_number(np.full(8, 1 / 8)) == pytest.approx(8)
    assert effective_number(np.array([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert effective_number(np.array([0.5, 0.25, 0.25])) == pytest.approx(1 / 0.375)


def test_candidates_without_an_answer_have_no_vote() -> None:
    rewards = np.array([0.1, 0.2, 0.9, 0.8])
    pool = CandidatePool(rewards, rewards, rewards, texts=("#### 7", "####7.", "eight", "eight"))
    rule = MajorityOfTheBests(answer_pattern=r"####\s*(.+)", subset_size=2)
    assert chosen(rule, pool) == 1
    nobody = replace(pool, texts=("a", "b", "c", " . "))
    assert chosen(rule, nobody) == 2
    assert rule.facts(nobody, rule.distribution(nobody)) == {
        "answer": None,
        "share": None,
        "answers": 0,
    }


@pytest.mark.parametrize(
    ("text", "pattern", "key"),
    [
        (" The  ANSWER is\n４２. ", None, "the answer is 42"),
        ("first 3, then 4", r"\d", "4"),
        ("x = 3; x = 4;", r"x = (\d)", "4"),
        ("x = y", r"x = (\d)?", None),  # the group takes no part in the match
        ("none", r"\d", None),
        ("...", None, None),
    ],
)
def test_answer_keys(text: str, pattern: str | None, key: str | None) -> None:
    assert answer_key(text, pattern) == key


def test_no_pattern_takes_exponential_time() -> None:
    """With ``re`` this would take 2^10,000 steps; a pattern that RE2 cannot bound is refused."""
    assert answer_key("a" * 10_000 + "!", "(a+)+$") is None
    for pattern in ("(?=a)b", r"(a)\1", "(", "(a{1,1000}){1,1000}", "a" * 501):
        with pytest.raises(ValidationError, match="answer_pattern"):
            MajorityOfTheBests(answer_pattern=pattern)


@pytest.mark.parametrize("pattern", ["a", "a.*b|", "a.*b|a"])
def test_a_pattern_that_matches_everywhere_does_not_read_the_text_once_a_character(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = 0

    class Counted:
        def finditer(self, text: str) -> Iterator[Any]:
            nonlocal searches
            for match in compiled(pattern).finditer(text):
                searches += 1
                yield match

    monkeypatch.setattr(answer_keys, "compiled", lambda pattern: Counted())
    assert answer_key("a" * 5000, pattern) is None
    assert searches <= 1001


def test_a_thousand_matches_are_read_to_the_last() -> None:
    assert answer_key("1 " * 999 + "2", r"\d") == "2"
    assert answer_key("1 " * 1000 + "2", r"\d") is None


@settings(max_examples=25)
@given(rewards=st.lists(finite, min_size=3, max_size=12).map(np.array))
def test_expected_gain_is_the_integral(rewards: np.ndarray) -> None:
    scale = rewards.std(ddof=1) * math.sqrt(1 + 1 / len(rewards))
    if scale < 1e-3:
        return
    predicted = student_t(len(rewards) - 1, loc=rewards.mean(), scale=scale)
    # E[(r - b)+] is the integral of P[r > x] above b; by quantiles, as its tail is heavy.
    above = 1 - np.geomspace(1e-12, predicted.sf(rewards.max()), 20_001)[::-1]
    x = predicted.ppf(above)
    integral = float(np.trapezoid(predicted.sf(x), x))
    assert expected_gain(rewards) == pytest.approx(integral, rel=1e-2, abs=1e-6 * scale)


@settings(max_examples=25)
@given(
    earlier=st.lists(finite, min_size=2, max_size=9).map(np.array),
    rewards=st.lists(finite, min_size=2, max_size=9).map(np.array),
)
def test_a_prior_is_what_earlier_candidates_would_have_told(
    earlier: np.ndarray, rewards: np.ndarray
) -> None:
    rewards[0] = max(rewards.max(), earlier.max())  # what was seen before cannot be returned
    if np.ptp(np.concatenate([earlier, rewards])) < 1e-9:
        return  # nothing is known of the spread
    mean, deviation, count = float(earlier.mean()), float(earlier.std(ddof=1)), len(earlier)
    prior = Prior(mean, deviation, mean_candidates=count, sd_candidates=count - 1)
    together = expected_gain(np.concatenate([earlier, rewards]))
    assert expected_gain(rewards, prior) == pytest.approx(together, rel=1e-6, abs=1e-9)


def test_expected_gain_at_the_edges() -> None:
    assert expected_gain(np.array([1.0, 2.0])) == math.inf
    # Nothing is known of the spread until two rewards differ, also where their mean is rounded.
    assert expected_gain(np.array([1.0, 1.0, 1.0])) == math.inf
    assert expected_gain(np.array([0.1, 0.1, 0.1])) == math.inf
    assert expected_gain(np.array([0.0, 1.0, 9.0])) < expected_gain(np.array([0.0, 8.0, 9.0]))


def test_a_prior_spread_by_hand() -> None:
    """Two rewards 0 and 2, prior mean 4 worth 2 candidates, prior deviation 3 worth 6 degrees of freedom.

    Location (2 x 1 + 2 x 4) / 4; squares 6 x 9 + 2 + (2 x 2 / 4) (1 - 4)^2 = 65 over 8 degrees of freedom.
    """
    known = predict_next(np.array([0.0, 2.0]), Prior(4.0, 3.0, 2.0, 6.0))
    assert (known.freedom, known.location) == (8.0, 2.5)
    assert known.deviation == pytest.approx(math.sqrt(65 / 8))
    assert known.scale == pytest.approx(math.sqrt(65 / 8 * 5 / 4))
    # Without a prior mean, a degree of freedom goes into the rewards' own: 6 x 9 + 2 over 7.
    spread_only = predict_next(np.array([0.0, 2.0]), Prior(4.0, 3.0, 0.0, 6.0))
    assert (spread_only.freedom, spread_only.location) == (7.0, 1.0)
    assert spread_only.deviation == pytest.approx(math.sqrt(56 / 7))
    assert spread_only.scale == pytest.approx(math.sqrt(56 / 7 * 3 / 2))


def test_the_gain_of_a_candidate_as_the_setting_tells_it() -> None:
    """E[max of n] - E[max of n - 1] of normal rewards, by integration: .0388 at n = 13, .0301 at 16."""
    x = np.linspace(-10, 10, 200_001)

    def expected_maximum(n: int) -> float:
        return float(np.trapezoid(x * n * norm.cdf(x) ** (n - 1) * norm.pdf(x), x))

    gains = {n: expected_maximum(n) - expected_maximum(n - 1) for n in (13, 16)}
    assert gains == pytest.approx({13: 0.0388, 16: 0.0301}, abs=5e-5)
    text = AdaptiveBon.model_fields["candidate_cost"].description or ""
    assert "13th candidate gains 0.039" in text
    assert "16th 0.030" in text


def share_of_draws(spread: float, prior: Prior, min_n: int, *, by_deviation: bool) -> float:
    """Mean draws for best-of-16's mean reward, over 16; 4,000 prompts of normal rewards within and between.

    Each cost gives a point of mean draws and mean reward above that of the same prompt's first 16. The
    standard error of a share is about .01.
    """
    rng = np.random.default_rng(0)
    rewards = spread * rng.standard_normal((4000, 1)) + rng.standard_normal((4000, 64))
    best = np.maximum.accumulate(rewards, axis=1)
    counts = np.arange(min_n, 65, 2)
    known = [predict_next(rewards[:, :m], prior) for m in counts]
    gains = np.array(
        [expected_excess(best[:, m - 1], k) for m, k in zip(counts, known, strict=True)]
    )
    unit = np.array([k.deviation for k in known]) if by_deviation else 1.0
    draws, reward = [], []
    for cost in (0.2, 0.15, 0.12, 0.1, 0.08, 0.065, 0.05, 0.04, 0.03, 0.02, 0.01, 0.005):
        stops = gains < cost * unit
        stops[-1] = True
        drawn = counts[stops.argmax(axis=0)]
        draws.append(drawn.mean())
        reward.append((best[np.arange(4000), drawn - 1] - best[:, 15]).mean())
    return float(np.interp(0.0, reward, draws)) / 16


@pytest.mark.parametrize(
    ("spread", "one_number", "two_numbers"),
    [(0.18, 0.70, 0.70), (0.5, 0.83, 0.75), (1.0, 1.09, 0.77), (2.0, 1.5, 0.78)],
)
def test_what_a_prior_saves(spread: float, one_number: float, two_numbers: float) -> None:
    """Draws for best-of-16's reward, at several deviations of prompts' means over that within prompts.

    With one certainty for mean and spread, as the setting ``prior_candidates`` had, means that differ cost
    more than best-of-16. With two, a prior always saves more than none (.89).
    """
    none = share_of_draws(spread, Prior(), 4, by_deviation=True)
    total = math.hypot(1, spread)
    one = share_of_draws(spread, Prior(0.0, total, 32, 31), 2, by_deviation=False)
    two = share_of_draws(spread, Prior(0.0, 1.0, 1 / spread**2, 31), 2, by_deviation=False)
    assert none == pytest.approx(0.89, abs=0.03)
    assert one == pytest.approx(one_number, abs=0.15 if spread == 2 else 0.04)
    assert two == pytest.approx(two_numbers, abs=0.03)


@pytest.mark.parametrize(
    ("scores", "ended", "gone"),
    [
        ([4.0, 3.0, 2.0, 1.0], [False] * 4, [2, 3]),
        ([4.0, 3.0, 2.0, 1.0], [False, False, False, True], [2]),  # finished: nothing to save
        ([1.0, 1.0, 1.0, 1.0], [False] * 4, [2, 3]),  # ties: the lower indices stay
        ([None, 3.0, 2.0, None], [False] * 4, [2]),  # no score, no verdict
        ([1.0], [False], []),
        ([1.0, 2.0, 3.0], [False] * 3, [0]),
    ],
)
def test_what_is_rejected(scores: list[float | None], ended: list[bool], gone: list[int]) -> None:
    assert sorted(SpeculativeRejection().rejected(scores, ended)) == gone


def test_never_fewer_than_keep_are_left() -> None:
    rule = SpeculativeRejection(reject_fraction=0.9, keep=3)
    assert rule.rejected([5.0, 4.0, 3.0, 2.0, 1.0], [False] * 5) == [3, 4]


def test_implicit_reward_by_hand() -> None:
    # [(-1 + 2) / 1 + (-3 + 1) / 2 + (-.5 + .5) / 3] / (1 + 1/2 + 1/3)
    assert implicit_reward([-1, -3, -0.5], [-2, -1, -0.5]) == pytest.approx(0.0)
    assert implicit_reward([], []) == 0.0
    # (2 / 1 + 5 / 2) / (1 + 1/2)
    assert implicit_reward([1, 3], [-1, -2]) == pytest.approx(3.0)


def test_a_short_answer_has_no_advantage() -> None:
    """Tokens drawn from the policy lose .1 nats each, so the sum of 20 tokens' falls below that of 2."""
    worths = {n: implicit_reward([-1.1] * n, [-1.0] * n) for n in (1, 2, 20)}
    assert worths == pytest.approx({1: -0.1, 2: -0.1, 20: -0.1})


@pytest.mark.parametrize(
    ("total", "parts", "shares"), [(8, 2, [4, 4]), (5, 2, [3, 2]), (3, 1, [3]), (7, 3, [3, 2, 2])]
)
def test_continuations_are_shared_out_evenly(total: int, parts: int, shares: list[int]) -> None:
    assert shared_out(total, parts) == shares


def test_draw_follows_the_weights_and_the_seed() -> None:
    """Draws 4,000 times: each count is within 5 standard deviations; false alarm below 2e-6."""
    weights = np.array([0.1, 0.0, 0.6, 0.3])
    counts = np.bincount([draw(weights, seed) for seed in range(4000)], minlength=4)
    for weight, count in zip(weights, counts, strict=True):
        assert abs(count - 4000 * weight) <= 5 * math.sqrt(4000 * weight * (1 - weight))
    assert [draw(weights, 7) for _ in range(5)] == [draw(weights, 7)] * 5


def test_standardised() -> None:
    values = standardised(np.array([1.0, 2.0, 6.0]))
    assert (values.mean(), values.std()) == pytest.approx((0, 1))
    assert standardised(np.array([2.0, 2.0])).tolist() == [0, 0]


def test_cosine_of_empty_texts_is_zero() -> None:
    similarity = cosine(np.array([[3.0, 0.0], [0.0, 0.0], [1.0, 1.0]]))
    assert similarity[0] == pytest.approx([1, 0, math.sqrt(0.5)])
    assert similarity[1].tolist() == [0, 1, 0]


# For each mode that is more than a rule over a pool: a test of its own against values known otherwise.
OWN_TESTS: dict[str, Callable[..., None]] = {
    "best-of-poisson": test_poisson_numbers_by_their_series,
    "treebon": test_implicit_reward_by_hand,
    "speculative-rejection": test_what_is_rejected,
    "adaptive-bon": test_expected_gain_is_the_integral,
}


def test_every_mode_has_a_case() -> None:
    missing = [mode for mode in STRATEGIES.built_in if mode not in BY_HAND.keys() | OWN_TESTS]
    assert not missing, (
        f"no test case for {', '.join(missing)}: add settings and probabilities by hand to BY_HAND, or "
        "a test to OWN_TESTS, in tests/unit/test_selection_rules.py"
    )
