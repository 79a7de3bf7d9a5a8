"""Replay of settings from kept candidates, against enumeration and against the live service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from service.strategies import STRATEGIES
from service.tune.drawing import (
    Drawing,
    Drawn,
    PromptCandidates,
    candidates_of,
    read_drawn,
    write_drawn,
)
from service.tune.replay import (
    Run,
    can_replay,
    choice_weights,
    opponents_of,
    replay_bon,
    replay_rule,
    replayed_answer,
    rule_of,
    with_prior,
)
from tests.unit.fakes import FakeReward, make_runtime, score_text, serving
from vbon.errors import DataError
from vbon.maths.curves import selection_matrix, selection_weights
from vbon.maths.statistics import bootstrap_mean, bootstrap_means

DRAWING = Drawing("ref", 1.0, 1.0, 8)
REPLAYED = [mode for mode in STRATEGIES.built_in if can_replay(mode)]


def candidates(
    rewards: Sequence[float], *, seed: int = 1, gold: Sequence[float] | None = None
) -> PromptCandidates:
    count = len(rewards)
    return PromptCandidates(
        seed,
        np.array(rewards, dtype=float),
        np.array(gold if gold is not None else [math.nan] * count, dtype=float),
        np.arange(1.0, count + 1),
        -np.arange(1.0, count + 1),
        tuple(f"{'good ' * (i % 3)}bad {i}" for i in range(count)),
    )


def drawn(*prompts: PromptCandidates | None) -> Drawn:
    known = [one for one in prompts if one is not None]
    return Drawn(DRAWING, known[0].count, tuple(prompts), {}, 1.0)


def test_the_selection_matrix_has_the_weights_of_every_n() -> None:
    rewards = np.array([0.3, 0.1, 0.1, 0.9, -1.0])
    order = np.lexsort((-np.arange(5), rewards))
    for n in range(1, 6):
        assert selection_matrix(5)[n - 1] == pytest.approx(selection_weights(rewards, n)[order])


def test_intervals_of_many_rows_are_those_of_each_row_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 12))
    rows[1, 4] = math.nan
    alone = [bootstrap_mean(row[~np.isnan(row)]) for row in rows]
    for found, expected in zip(bootstrap_means(rows), alone, strict=True):
        assert found.count == expected.count
        for name in ("mean", "low", "high"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name))


def test_best_of_n_equals_the_mean_over_all_subsets() -> None:
    """By enumeration, with ties, a candidate without a reward and one without a gold reward."""
    rewards, gold = [0.5, 2.0, math.nan, 2.0, -1.0], [1.0, 0.0, 9.0, 3.0, math.nan]
    found = replay_bon(drawn(candidates(rewards, gold=gold), None))
    assert [one.setting.n for one in found] == [1, 2, 3, 4, 5]
    assert [one.setting.mode for one in found] == ["ref", *["bon"] * 4]
    for n, one in enumerate(found, 1):
        best = []
        for subset in combinations(range(5), n):
            scored = [i for i in subset if not math.isnan(rewards[i])]
            if scored:
                best.append(max(scored, key=lambda i: (rewards[i], -i)))
        known = [gold[i] for i in best if not math.isnan(gold[i])]
        assert one.gains["reward"][0] == pytest.approx(np.mean([rewards[i] for i in best]))
        assert one.gains["gold"][0] == pytest.approx(np.mean(known))
        assert math.isnan(one.gains["reward"][1])
        assert one.tokens[0] == pytest.approx(3.0 * n)
        assert (one.failed, one.unscored) == (1, 1)


def test_the_win_rate_is_the_share_of_opponents_beaten() -> None:
    opponents = opponents_of(drawn(candidates([0.0, 1.0, 2.0, 3.0])))
    found = replay_bon(drawn(candidates([1.0, 2.5])), opponents)
    assert found[0].gains["win-rate"][0] == pytest.approx((1.5 / 4 + 3 / 4) / 2)
    assert found[1].gains["win-rate"][0] == pytest.approx(3 / 4)


@pytest.mark.parametrize("mode", REPLAYED)
def test_rules_are_replayed_without_bias(mode: str) -> None:
    """The mean over 120 seeds lies within 5 standard errors of that of all subsets: false alarm 1e-5."""
    rule = rule_of(mode, {}, reshaped=False, tells="policy")
    rewards, n = [0.2, 1.0, 0.9, math.nan, 2.0, -0.5], 4
    one = candidates(rewards)
    rng = np.random.default_rng(0)
    seen = [
        replay_rule(rule, drawn(candidates(rewards, seed=seed)), [n])[0].gains["reward"][0]
        for seed in range(120)
    ]
    if mode == "adaptive-bon":
        expected = []
        for _ in range(1000):
            order = rng.permutation(6)
            size = sum(rule.strategy.replay(one.rewards[order], n))  # type: ignore[union-attr]
            expected.append(np.nanmax(one.rewards[order[:size]]))
        spread = np.std(expected) / math.sqrt(1000)
    else:
        from service.tune.replay import _similarity

        similarity = _similarity(rule, one)
        subsets = [np.array(subset) for subset in combinations(range(6), n)]
        weighed = [choice_weights(rule, one, subset, similarity) for subset in subsets]
        pairs = zip(weighed, subsets, strict=True)
        expected = [float(np.nansum(w * one.rewards[s])) for w, s in pairs if w is not None]
        spread = 0.0
    error = math.hypot(np.std(seen) / math.sqrt(120), spread)
    assert abs(np.mean(seen) - np.mean(expected)) <= 5 * error + 1e-9


async def test_replay_gives_the_live_answer_of_the_same_seed() -> None:
    """Choices and tokens of all modes that are replayed, at two n, with three seeds each."""
    runtime = make_runtime()
    async with serving(runtime) as (_, client):
        for seed in range(3):
            body = {
                "prompt": "the film was",
                "max_tokens": 8,
                "seed": seed,
                "return_candidates": True,
            }
            whole = (await client.post("/generate?mode=bon", json={**body, "n": 8})).json()
            one = candidates_of(whole, seed)
            for mode in REPLAYED:
                rule = rule_of(mode, {}, reshaped=False, tells="policy")
                for n in (4, 8):
                    live = (
                        await client.post(f"/generate?mode={mode}", json={**body, "n": n})
                    ).json()
                    index, tokens = replayed_answer(rule, one, n)
                    assert live["selected_index"] == index, mode
                    assert live["usage"]["generated_tokens"] == tokens, mode


async def test_a_rule_that_stops_drawing_stops_where_the_service_does() -> None:
    """At a cost where some prompts stop early, with the prior of the prompts' rewards."""
    runtime = make_runtime()
    prompts = [f"the film number {i} was" for i in range(6)]
    async with serving(runtime) as (_, client):
        kept = []
        for seed, prompt in enumerate(prompts):
            body = {"prompt": prompt, "max_tokens": 8, "seed": seed, "n": 12}
            answer = await client.post(
                "/generate?mode=bon", json={**body, "return_candidates": True}
            )
            kept.append(candidates_of(answer.json(), seed))
        settings = {"candidate_cost": 0.12, "min_n": 2, "round_size": 1}
        plain = rule_of("adaptive-bon", settings, reshaped=False, tells="policy")
        rule = with_prior(plain, drawn(*kept))
        assert rule.settings["prior_sd_candidates"] > 0
        counts = set()
        for seed, (prompt, one) in enumerate(zip(prompts, kept, strict=True)):
            body = {"prompt": prompt, "max_tokens": 8, "seed": seed, "n": 12, **rule.settings}
            live = (await client.post("/generate?mode=adaptive-bon", json=body)).json()
            assert replayed_answer(rule, one, 12) == (
                live["selected_index"], live["usage"]["generated_tokens"],
            )  # fmt: skip
            counts.add(live["details"]["candidates"])
    assert min(counts) < 12
    assert len(counts) > 1


@pytest.mark.parametrize("min_n", [1, 3])
def test_one_run_of_a_stopping_rule_serves_every_n(min_n: int) -> None:
    """The candidates and rounds at each n are those of a run with that limit."""
    settings = {"candidate_cost": 0.1, "min_n": min_n, "round_size": 2}
    rule = rule_of("adaptive-bon", settings, reshaped=False, tells="policy")
    rng = np.random.default_rng(3)
    for _ in range(20):
        rewards = rng.normal(size=9)
        whole = Run(np.arange(9), tuple(rule.strategy.replay(rewards, 9)))  # type: ignore[union-attr]
        for n in range(1, 10):
            alone = rule.strategy.replay(rewards, n)  # type: ignore[union-attr]
            subset, rounds = whole.up_to(n)
            assert (len(subset), rounds) == (sum(alone), len(alone))


async def test_gold_rewards_and_unscored_candidates_are_kept(tmp_path: object) -> None:
    gold = FakeReward()
    runtime = make_runtime(gold=gold)
    async with serving(runtime) as (_, client):
        body = {"prompt": "the film was", "n": 3, "seed": 1, "max_tokens": 4}
        answer = (
            await client.post(
                "/generate?mode=bon", json={**body, "return_candidates": True, "gold": True}
            )
        ).json()
    answer["candidates"][1]["reward"] = None
    one = candidates_of(answer, 1)
    assert np.isnan(one.rewards).tolist() == [False, True, False]
    assert one.gold.tolist() == [score_text(text) for text in one.texts]


def test_a_kept_drawing_is_read_again_and_one_of_other_models_is_not(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path, identity = tmp_path / "drawn.json", {"policies": {"ref": "a"}}
    kept = drawn(candidates([0.5, math.nan]), None)
    write_drawn(path, kept, identity)
    found = read_drawn(path, identity)
    assert found is not None
    assert found.drawing == DRAWING
    assert found.prompts[1] is None
    assert np.isnan(found.prompts[0].rewards).tolist() == [False, True]  # type: ignore[union-attr]
    assert read_drawn(path, {"policies": {"ref": "b"}}) is None
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match="damaged"):
        read_drawn(path, identity)
