"""Every strategy through the real application, with the fake engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest

from service.strategies import STRATEGIES, Resources, Single, Strategy, Task
from service.strategies.adaptive_bon import AdaptiveBon, expected_gain
from service.strategies.best_of_poisson import BestOfPoisson
from service.strategies.bon import Bon
from service.strategies.corrected_bon import CorrectedBon
from service.strategies.regularised import RegularisedReranker
from service.strategies.request_fields import SETTINGS
from service.strategies.self_certainty import SelfCertainty
from service.strategies.soft_bon import SoftBon
from service.strategies.speculative_rejection import SpeculativeRejection
from service.strategies.treebon import TreeBon
from tests.unit.fakes import FakeReward, make_runtime, score_text, serving
from tests.unit.virtual_clock import virtually
from vbon.embedders import open_embedder
from vbon.embedders.ngrams import NgramEmbedder
from vbon.engine import Sampling
from vbon.engine.fake import FakeEngine, words
from vbon.errors import CheckpointError, InvalidInputError, RewardError
from vbon.prompts import Prompt

clocked = virtually("service", "vbon", "tests.unit")

REWARDED = [mode for mode, strategy in STRATEGIES.items() if strategy.needs_reward]
REWARD_FREE = [mode for mode in STRATEGIES if mode not in REWARDED]
BODY: dict[str, Any] = {"prompt": "the film was", "n": 8, "max_tokens": 16, "seed": 3}


async def post(client: httpx.AsyncClient, mode: str, policy: str = "", **changes: Any) -> Any:
    params = {"mode": mode} | ({"policy": policy} if policy else {})
    return await client.post("/generate", params=params, json={**BODY, **changes})


class InstantScorer:
    name = revision = "instant"

    def __init__(self) -> None:
        self.scored: list[str] = []

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        await asyncio.sleep(0)
        self.scored.append(completion)
        return score_text(completion)


async def ask(
    strategy: Strategy,
    *,
    n: int = 8,
    max_tokens: int = 24,
    seed: int | None = 3,
    engine: FakeEngine | None = None,
    guide: FakeEngine | None = None,
    scorer: Any = None,
    stop: tuple[str, ...] = (),
    sampling: Sampling | None = None,
) -> tuple[Any, FakeEngine]:
    """One outcome, and the engine that produced it."""
    engine, guide = engine or FakeEngine("fake-ref"), guide or FakeEngine("fake-vbon")
    for one in (engine, guide):
        await one.start()
    resources = Resources(
        engine, {"ref": engine, "vbon": guide}, scorer or InstantScorer(), NgramEmbedder()
    )
    prompt = Prompt(text="the film was")
    task = Task(
        prompt,
        await engine.encode(prompt),
        sampling or Sampling(max_tokens=max_tokens, seed=seed, stop=stop),
        n,
        "t",
    )
    return await strategy.run(task, resources), engine


@pytest.mark.parametrize("mode", STRATEGIES)
async def test_every_mode_answers_and_says_what_it_did(mode: str) -> None:
    async with serving(make_runtime()) as (_, client):
        answer = (await post(client, mode, return_candidates=True)).json()
        again = (await post(client, mode, return_candidates=True)).json()
    assert answer["mode"] == mode
    assert answer["strategy"] == STRATEGIES[mode]().model_dump(mode="json")
    by_index = {c["index"]: c for c in answer["candidates"]}
    selected = by_index[answer["selected_index"]]
    assert (answer["text"], answer["reward"]) == (selected["text"], selected["reward"])
    assert selected["finish_reason"] != "rejected"
    assert answer["reward"] == pytest.approx(score_text(answer["text"]))
    assert answer["usage"]["returned_tokens"] == selected["num_tokens"]
    # One seed, one answer; how far a rejected candidate came depends on the moment of its abort.
    for one, other in zip(answer["candidates"], again["candidates"], strict=True):
        differing = {key for key in one if one[key] != other[key]}
        if one["finish_reason"] == "rejected":
            differing -= {"num_tokens", "cumulative_logprob"}
        assert not differing
    assert answer["selected_index"] == again["selected_index"]


@pytest.mark.parametrize("mode", STRATEGIES)
async def test_every_mode_works_over_a_tuned_policy(mode: str) -> None:
    guide = {"guide": "ref"} if mode == "treebon" else {}
    async with serving(make_runtime()) as (_, client):
        response = await post(client, mode, policy="vbon", **guide)
    assert response.status_code == 200, response.text
    assert response.json()["policy"]["name"] == "vbon"


@pytest.mark.parametrize("mode", REWARDED)
async def test_every_mode_needs_a_reward_model(mode: str) -> None:
    async with serving(make_runtime(without_reward=True)) as (_, client):
        response = await post(client, mode)
    assert response.status_code == 422
    assert "needs a reward model" in response.json()["error"]["message"]


def test_only_strategies_that_rerank_need_a_reward_model() -> None:
    class Plain(Bon):
        reranks: ClassVar[bool] = False

    found = (Bon.needs_reward, SelfCertainty.needs_reward, Single.needs_reward, Plain.needs_reward)
    assert found == (True, False, False, False)


@pytest.mark.parametrize("mode", REWARD_FREE)
async def test_a_mode_without_rewards_answers_without_a_reward_model(mode: str) -> None:
    async with serving(make_runtime(without_reward=True)) as (_, client):
        answer = (await post(client, mode, return_candidates=True)).json()
        modes = {one["name"]: one for one in (await client.get("/modes")).json()["modes"]}
    assert (answer["reward"], answer["unscored_candidates"]) == (None, None)
    assert len(answer["candidates"]) == 8
    assert mode in modes
    assert (modes[mode]["reranks"], modes[mode]["reward_model"]) == (True, None)
    assert not modes.keys() & set(REWARDED)


@pytest.mark.parametrize("mode", REWARD_FREE)
async def test_a_mode_without_rewards_scores_only_the_answer_and_only_if_asked(mode: str) -> None:
    reward = FakeReward()
    async with serving(make_runtime(reward=reward)) as (_, client):
        scored = (await post(client, mode, return_candidates=True)).json()
        plain = (await post(client, mode, score=False)).json()
        metrics = (await client.get("/metrics")).text
    assert reward.batches == [1]
    assert scored["reward"] == pytest.approx(score_text(scored["text"]))
    assert sum(one["reward"] is not None for one in scored["candidates"]) == 1
    assert scored["unscored_candidates"] == 0
    assert (plain["text"], plain["reward"]) == (scored["text"], None)
    assert f'vbon:unscored_candidates_total{{mode="{mode}"}} 0.0' in metrics


async def test_self_certainty_is_the_mean_kl_of_the_likeliest_tokens() -> None:
    sampling = Sampling(max_tokens=24, seed=3, top_logprobs=6)
    outcome, _ = await ask(SelfCertainty(certainty_tokens=6), sampling=sampling)
    by_hand = [
        sum(-sum(top) / 6 - math.log(6) for top in c.candidate.top_logprobs)
        / len(c.candidate.token_ids)
        for c in outcome.candidates
    ]
    assert outcome.selected.candidate.index == by_hand.index(max(by_hand))
    assert outcome.details == {
        "certainty": pytest.approx(max(by_hand), abs=1e-6),
        "mean_certainty": pytest.approx(sum(by_hand) / 8, abs=1e-6),
        "certainty_tokens": 6,
    }
    assert SelfCertainty().independent(8) is None


async def test_self_certainty_is_that_of_the_policy_itself() -> None:
    engines = {"ref": FakeEngine("ref", sampled_logprobs=True)}
    async with serving(make_runtime(engines=engines)) as (_, client):
        plain = await post(client, "self-certainty")
        hot = (await post(client, "self-certainty", temperature=0.7)).json()["error"]
    assert plain.status_code == 200
    assert hot["param"] == "temperature"
    assert "--engine.logprobs policy" in hot["message"]


@pytest.mark.parametrize("mode", STRATEGIES)
async def test_every_mode_leaves_nothing_running_when_scoring_fails(mode: str) -> None:
    class Broken(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            raise RuntimeError("no")

    engines = {name: FakeEngine(name, seconds_per_token=0.001) for name in ("ref", "vbon")}
    async with serving(make_runtime(reward=Broken(), engines=engines)) as (_, client):
        response = await post(client, mode)
        assert (response.status_code, response.json()["error"]["type"]) == (502, "reward_error")
    assert [engine.running for engine in engines.values()] == [0, 0]


@pytest.mark.parametrize("mode", STRATEGIES)
@clocked
async def test_every_mode_stops_when_cancelled(mode: str) -> None:
    engine = FakeEngine(seconds_per_token=0.05)
    task = asyncio.create_task(ask(STRATEGIES[mode](), engine=engine))
    await asyncio.sleep(0.12)
    assert engine.running > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0


@pytest.mark.parametrize("mode", REWARDED)
async def test_candidates_without_a_score_are_passed_over(mode: str) -> None:
    class Picky(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            return [
                None if i.completion.endswith("superb") else score_text(i.completion) for i in items
            ]

    class Silent(FakeReward):
        def score(self, items: Any) -> list[float | None]:
            return [None for _ in items]

    async with serving(make_runtime(reward=Picky())) as (_, client):
        answer = (await post(client, mode, n=16, max_tokens=6)).json()
    assert not answer["text"].endswith("superb")
    async with serving(make_runtime(reward=Silent())) as (_, client):
        response = await post(client, mode)
    assert response.json()["error"]["type"] == "reward_error"


@pytest.mark.parametrize(
    ("mode", "settings", "field", "words"),
    [
        ("bon", {"reward_temperature": 1}, "reward_temperature", "modes that do: soft-bon"),
        ("vbon", {"reg_strength": 1}, "reg_strength", "mode 'vbon' does not take reg_strength"),
        ("soft-bon", {"reward_temperature": 0}, "reward_temperature", "equal to 0.000001 (got 0"),
        ("soft-bon", {"reward_temperature": "warm"}, "reward_temperature", "valid number"),
        ("srbon-kl", {"reg_strength": 0}, "reg_strength", "equal to 0.000001"),
        ("adaptive-bon", {"max_n": 3, "min_n": 5}, "body", "max_n 3 is below min_n 5"),
        ("adaptive-bon", {"max_n": 500}, "max_n", "at most 128"),
        ("treebon", {"guide": "nobody"}, "guide", "available: vbon"),
        ("treebon", {"guide": "ref"}, "guide", "other than the one that draws"),
        ("corrected-bon", {"target": "nobody"}, "target", "available: ref, vbon"),
        ("corrected-bon", {"temperature": 0.7}, "temperature", "--engine.logprobs sampled"),
        (
            "corrected-bon",
            {"response_format": {"type": "json_object"}},
            "response_format",
            "takes no",
        ),
        ("corrected-bon", {"n": 100}, "max_n", "at most 128"),
        ("majority-of-the-bests", {"answer_pattern": "(a"}, "answer_pattern", "missing )"),
        ("speculative-rejection", {"reject_fraction": 1}, "reject_fraction", "less than 1"),
    ],
)
async def test_bad_settings_name_the_field(
    mode: str, settings: dict[str, Any], field: str, words: str
) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await post(client, mode, **settings)
    assert response.status_code == 422
    error = response.json()["error"]
    assert field in (error["param"] or "")
    assert words in error["message"]


async def test_policy_must_be_one_and_single_modes_are_their_own() -> None:
    async with serving(make_runtime()) as (_, client):
        unknown = (await post(client, "bon", policy="nobody")).json()["error"]
        single = (await post(client, "vbon", policy="ref")).json()["error"]
        same = await post(client, "vbon", policy="vbon")
    assert unknown["message"] == "policy 'nobody' is not configured; this server has ref, vbon"
    assert single["message"] == "mode 'vbon' is one sample of policy 'vbon'; ask for mode 'ref'"
    assert same.status_code == 200


async def test_settings_are_in_the_schema_with_their_modes() -> None:
    async with serving(make_runtime()) as (_, client):
        spec = (await client.get("/openapi.json")).json()
    fields = spec["components"]["schemas"]["GenerateRequest"]["properties"]
    assert SETTINGS.keys() <= fields.keys()
    assert "soft-bon: temperature in units of reward" in fields["reward_temperature"]["description"]
    assert "(default 1.0)" in fields["reward_temperature"]["description"]
    regularised = [
        mode
        for mode, strategy in STRATEGIES.items()
        if issubclass(strategy, RegularisedReranker)
        and repr(strategy.model_fields["reg_strength"].default) == "0.1"
        and strategy.model_fields["reg_strength"].description
        == RegularisedReranker.model_fields["reg_strength"].description
    ]
    assert {"rbon-kl", "rbon-length", "mbr-bon", "srbon-wd"} <= set(regularised)
    assert f"{', '.join(regularised)}:" in fields["reg_strength"]["description"]


async def test_compare_takes_settings_by_mode() -> None:
    body = {
        "prompts": ["one", "two"],
        "n": 4,
        "max_tokens": 8,
        "seed": 1,
        "modes": ["ref", "soft-bon"],
    }
    async with serving(make_runtime()) as (_, client):
        settings = {"soft-bon": {"reward_temperature": 0.25}}
        found = (await client.post("/compare", json={**body, "settings": settings})).json()
        stray = await client.post("/compare", json={**body, "settings": {"bon": {}}})
    assert found["modes"][1]["strategy"] == {"reward_temperature": 0.25}
    assert stray.status_code == 422
    assert "settings has mode 'bon', which is not compared" in stray.json()["error"]["message"]


@pytest.mark.parametrize(
    ("mode", "sampling", "said"),
    [
        ("rbon-kl", {}, False),
        ("rbon-kl", {"temperature": 0.7}, True),
        ("srbon-kl", {"top_p": 0.9}, True),
        ("srbon-kl", {"top_k": 5}, True),
        ("soft-bon", {"temperature": 0.7}, False),
    ],
)
async def test_an_answer_says_where_log_p_is_not_that_of_the_candidates(
    mode: str, sampling: dict[str, float], said: bool
) -> None:
    body: dict[str, object] = {
        "prompt": "the film was",
        "n": 4,
        "max_tokens": 8,
        "seed": 1,
        **sampling,
    }
    if mode != "soft-bon":
        body["log_p"] = "policy"
    async with serving(make_runtime()) as (_, client):
        found = (await client.post(f"/generate?mode={mode}", json=body)).json()
    assert ("log_p" in found["details"]) == said


# Drawing by a distribution


async def test_soft_bon_draws_by_its_weights() -> None:
    """Checks 600 seeds: each count is within 5 standard deviations; false alarm below 1e-5 in all."""
    strategy = SoftBon(reward_temperature=0.5)
    expected, counts = np.zeros(4), Counter[int]()
    for seed in range(600):
        outcome, _ = await ask(strategy, n=4, max_tokens=4, seed=seed)
        rewards = np.array([c.reward for c in outcome.candidates])
        order = np.argsort(rewards, kind="stable")
        weights = np.exp(np.sort(rewards) / 0.5)
        expected += weights / weights.sum()
        counts[list(order).index(outcome.selected.candidate.index)] += 1
        reported = outcome.details["probability"]
        assert sum(reported.values()) == pytest.approx(1, abs=1e-5)
    for rank in range(4):
        assert abs(counts[rank] - expected[rank]) <= 5 * math.sqrt(expected[rank])


# Adaptive


async def test_adaptive_candidates_are_the_first_of_bons() -> None:
    adaptive, _ = await ask(AdaptiveBon(min_n=4, round_size=3), n=16)
    bon, _ = await ask(Bon(), n=16)
    drawn = len(adaptive.candidates)
    assert adaptive.candidates == bon.candidates[:drawn]
    assert adaptive.details["candidates"] == drawn
    assert adaptive.generated_tokens == sum(len(c.candidate.token_ids) for c in adaptive.candidates)


@pytest.mark.parametrize("unit", ["sd", "reward"])
async def test_adaptive_stops_by_its_rule(unit: Any) -> None:
    """The rule says "continue" before every round, and "stop" after the last unless n was reached."""
    for seed in range(12):
        strategy = AdaptiveBon(min_n=3, round_size=2, candidate_cost=0.15, cost_unit=unit)
        outcome, _ = await ask(strategy, n=12, seed=seed)
        rewards = np.array([c.reward for c in outcome.candidates])

        def worth_it(count: int, rewards: np.ndarray = rewards) -> bool:
            cost = 0.15 * (rewards[:count].std(ddof=1) if unit == "sd" else 1.0)
            return expected_gain(rewards[:count]) >= cost

        rounds = range(3, len(rewards), 2)
        assert all(worth_it(count) for count in rounds)
        assert len(rewards) == 12 or not worth_it(len(rewards))
        assert outcome.details["stopped_early"] == (len(rewards) < 12)
        assert outcome.selected.reward == rewards.max()


async def test_adaptive_believes_its_prior() -> None:
    """A prior that expects nothing better stops drawing after one candidate."""
    sure = {"prior_sd": 0.1, "prior_mean_candidates": 1e6, "prior_sd_candidates": 1e6}
    low = {"prior_mean": -100.0, **sure}
    outcome, _ = await ask(AdaptiveBon(min_n=1, round_size=1, cost_unit="reward", **low), n=16)
    assert len(outcome.candidates) == 1
    high = {"prior_mean": 100.0, **sure}
    outcome, _ = await ask(AdaptiveBon(min_n=1, round_size=1, cost_unit="reward", **high), n=16)
    assert len(outcome.candidates) == 16


async def test_best_of_poisson_is_best_of_the_first_of_bons_candidates() -> None:
    sizes = set()
    for seed in range(8):
        found, _ = await ask(BestOfPoisson(mean_n=4), n=12, seed=seed)
        bon, _ = await ask(Bon(), n=12, seed=seed)
        drawn = len(found.candidates)
        sizes.add(drawn)
        assert found.candidates == bon.candidates[:drawn]
        assert found.selected.reward == max(c.reward for c in found.candidates)
        assert found.details["candidates"] == drawn
        assert found.generated_tokens == sum(len(c.candidate.token_ids) for c in found.candidates)
    assert len(sizes) > 1
    async with serving(make_runtime()) as (_, client):
        body = {**BODY, "n": 4, "best_of": 8, "mean_n": 1, "model": "best-of-poisson"}
        answer = (await client.post("/v1/completions", json=body)).json()
    assert len(answer["choices"]) == 4


async def corrected(strategy: CorrectedBon, seed: int = 3) -> Any:
    """An outcome over the policy ``vbon``, corrected to ``ref``."""
    proposal, target = FakeEngine("fake-vbon"), FakeEngine("fake-ref")
    await target.start()
    return (await ask(strategy, engine=proposal, guide=target, max_tokens=6, seed=seed))[0]


async def test_corrected_bon_weighs_by_both_policies() -> None:
    strategy = CorrectedBon(target="vbon", reward_temperature=2, min_effective_share=0)
    outcome = await corrected(strategy)
    target = FakeEngine("fake-ref")
    await target.start()
    weights = []
    for one in outcome.candidates:
        told = await target.logprobs([1], list(one.candidate.token_ids), "t")
        weights.append(math.exp(one.reward / 2 + sum(told) - one.candidate.cumulative_logprob))
    expected = [weight / sum(weights) for weight in weights]
    assert list(outcome.details["probability"].values()) == pytest.approx(expected, abs=1e-6)
    effective = 1 / sum(weight**2 for weight in expected)
    assert outcome.details["effective_candidates"] == pytest.approx(effective, abs=1e-4)
    assert (outcome.details["fallback"], len(outcome.candidates)) == (None, 8)
    assert outcome.details["target_tokens"] == outcome.generated_tokens


async def test_uneven_weights_fall_back() -> None:
    uneven = {"target": "vbon", "min_effective_share": 1}
    redrawn = await corrected(CorrectedBon(**uneven))
    soft, _ = await ask(SoftBon(), engine=FakeEngine("fake-ref"), n=16, max_tokens=6)
    assert redrawn.details["fallback"] == "redraw"
    assert [c.candidate.index for c in redrawn.candidates] == list(range(16))
    # The target's candidates are its own 9th to 16th, weighed by their rewards alone.
    assert redrawn.candidates[8:] == soft.candidates[8:]
    assert redrawn.selected.candidate.index >= 8
    raised = [math.exp(c.reward) for c in soft.candidates[8:]]
    expected = [one / sum(raised) for one in raised]
    assert list(redrawn.details["probability"].values()) == pytest.approx(expected, abs=1e-6)
    assert CorrectedBon().most_candidates(8) == 16
    best = await corrected(CorrectedBon(**uneven, fallback="best"))
    assert len(best.candidates) == 8
    assert best.selected.reward == max(c.reward for c in best.candidates)
    assert best.details["fallback"] == "best"
    assert CorrectedBon(fallback="best").most_candidates(8) == 8


async def test_corrected_bon_leaves_the_target_room_to_read_the_longest_candidate() -> None:
    """An engine reads a candidate as a prompt and decodes one token more, so all must be a token shorter."""
    length = len(await FakeEngine("fake-ref").encode(Prompt(text="the film was")))
    proposal = FakeEngine("fake-vbon", max_model_len=length + 6)
    other = CorrectedBon(target="vbon")  # the name under which `ask` has the second engine
    for context, fits in ((length + 6, False), (length + 7, True)):
        target = FakeEngine("fake-ref", max_model_len=context)
        asked = ask(other, engine=proposal, guide=target, max_tokens=6)
        if fits:
            assert (await asked)[0].details["target_tokens"] > 0
            continue
        with pytest.raises(InvalidInputError, match=r"max_tokens is 6.*at most 5") as error:
            await asked
        assert error.value.field == "max_tokens"
    # The target's own candidates are not read again, and greedy ones are all alike.
    assert (await ask(CorrectedBon(), engine=proposal, max_tokens=6))[0].selected
    greedy = Sampling(max_tokens=6, temperature=0)
    target = FakeEngine("fake-ref", max_model_len=length + 6)
    assert (await ask(other, engine=proposal, guide=target, sampling=greedy))[0].selected


async def test_corrected_bon_over_its_target_is_soft_bon() -> None:
    found, _ = await ask(CorrectedBon(min_effective_share=1), n=8)
    soft, _ = await ask(SoftBon(), n=8)
    assert found.selected == soft.selected
    assert found.details["probability"] == soft.details["probability"]
    assert (found.details["target_tokens"], found.details["fallback"]) == (0, None)


class VerifierThat(InstantScorer):
    """Gives 1 to the texts from the ``first``-th one it scores on, and 0 to those before."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    async def score(self, prompt: Prompt, completion: str) -> float | None:
        await super().score(prompt, completion)
        return float(len(self.scored) >= self.first)


@pytest.mark.parametrize("unit", ["sd", "reward"])
async def test_adaptive_goes_on_until_a_verifier_is_content(unit: Any) -> None:
    """Rewards that are all 0 say nothing of the spread, so they are no reason to stop."""
    none, _ = await ask(AdaptiveBon(cost_unit=unit), n=16, scorer=VerifierThat(99))
    assert len(none.candidates) == 16
    assert none.details["expected_gain"] is None
    known = {"prior_mean": 0.3, "prior_mean_candidates": 2.5} | {
        "prior_sd": 0.4,
        "prior_sd_candidates": 31,
    }
    with_prior, _ = await ask(AdaptiveBon(cost_unit=unit, **known), n=16, scorer=VerifierThat(99))
    assert len(with_prior.candidates) == 16
    found, _ = await ask(
        AdaptiveBon(cost_unit=unit, stop_at_reward=1), n=16, scorer=VerifierThat(7)
    )
    assert len(found.candidates) == 8  # rounds of 4, 2 and 2
    assert found.selected.reward == 1.0
    assert found.details["stopped_early"]


async def test_a_setting_that_was_replaced_names_the_new_ones() -> None:
    async with serving(make_runtime()) as (_, client):
        old = await post(client, "adaptive-bon", prior_candidates=32)
        schema = (await client.get("/openapi.json")).text
    assert old.status_code == 422
    error = old.json()["error"]
    assert error["param"] == "prior_candidates"
    assert "prior_mean_candidates" in error["message"]
    assert "prior_sd_candidates" in error["message"]
    assert '"prior_candidates"' not in schema


async def test_adaptive_limits() -> None:
    free, _ = await ask(AdaptiveBon(candidate_cost=0), n=10)
    dear, _ = await ask(AdaptiveBon(candidate_cost=100), n=10)
    capped, _ = await ask(AdaptiveBon(candidate_cost=0, max_n=5), n=10)
    small, _ = await ask(AdaptiveBon(candidate_cost=0), n=2)
    counts = [len(outcome.candidates) for outcome in (free, dear, capped, small)]
    assert counts == [10, 4, 5, 2]
    assert free.details["rounds"] == 4  # 4 + 2 + 2 + 2
    assert AdaptiveBon(max_n=40).most_candidates(16) == 40
    assert AdaptiveBon(min_n=4, round_size=6).sequences(16) == 6


# Speculative rejection


async def test_rejected_candidates_are_aborted_and_cost_only_what_they_decoded() -> None:
    engine = FakeEngine(seconds_per_token=0.002)
    outcome, _ = await ask(SpeculativeRejection(check_tokens=4), n=16, max_tokens=40, engine=engine)
    rejected = [c for c in outcome.candidates if c.candidate.finish_reason == "rejected"]
    assert rejected
    assert engine.running == 0
    assert engine.aborted == len(rejected)
    # What was decoded in the moment of the abort may have gone unseen: at most a token each.
    assert 0 <= engine.decoded_tokens - outcome.generated_tokens <= len(rejected)
    whole, _ = await ask(Bon(), n=16, max_tokens=40)
    assert outcome.generated_tokens < 0.8 * whole.generated_tokens
    assert sum(check["rejected"] for check in outcome.details["checks"]) == len(rejected)


async def test_survivors_are_bons_candidates_and_the_best_of_them_wins() -> None:
    slow = FakeEngine(seconds_per_token=0.002)
    outcome, _ = await ask(SpeculativeRejection(check_tokens=4), n=16, max_tokens=40, engine=slow)
    whole, _ = await ask(Bon(), n=16, max_tokens=40)
    survivors = [c for c in outcome.candidates if c.candidate.finish_reason != "rejected"]
    for survivor in survivors:
        assert survivor == whole.candidates[survivor.candidate.index]
    for given_up in outcome.candidates:
        ids = whole.candidates[given_up.candidate.index].candidate.token_ids
        assert ids[: len(given_up.candidate.token_ids)] == given_up.candidate.token_ids
    assert outcome.selected.reward == max(c.reward for c in survivors)


async def test_who_is_rejected_follows_from_the_scores_at_the_check() -> None:
    outcome, _ = await ask(
        SpeculativeRejection(check_tokens=6, keep=4),
        n=8,
        max_tokens=12,
        engine=FakeEngine(seconds_per_token=0.01),
    )
    whole, _ = await ask(Bon(), n=8, max_tokens=12)
    at_check = [score_text(words(c.candidate.token_ids[:6])) for c in whole.candidates]
    ended = [len(c.candidate.token_ids) <= 6 for c in whole.candidates]
    expected = SpeculativeRejection(keep=4).rejected(at_check, ended)
    found = [
        c.candidate.index for c in outcome.candidates if c.candidate.finish_reason == "rejected"
    ]
    assert sorted(found) == sorted(expected)


async def test_what_a_leader_decoded_meanwhile_is_not_looked_at() -> None:
    """Yields every other candidate in one step, beyond the check, as a late reader sees it."""

    class Uneven(FakeEngine):
        async def stream(self, ids: Any, sampling: Any, index: int, request_id: str) -> Any:  # type: ignore[override]
            async for partial in super().stream(ids, sampling, index, request_id):
                if index % 2 or partial.finish_reason is not None:
                    yield partial

    strategy = SpeculativeRejection(check_tokens=6, keep=1)
    outcome, _ = await ask(strategy, n=8, max_tokens=12, engine=Uneven(endless=True))
    whole, _ = await ask(Bon(), n=8, max_tokens=12, engine=FakeEngine(endless=True))
    at_check = [score_text(words(c.candidate.token_ids[:6])) for c in whole.candidates]
    found = [c for c in outcome.candidates if c.candidate.finish_reason == "rejected"]
    assert sorted(c.candidate.index for c in found) == sorted(
        strategy.rejected(at_check, [False] * 8)
    )
    for rejected in found:
        index = rejected.candidate.index
        assert rejected.candidate.text == words(whole.candidates[index].candidate.token_ids[:6])
        assert rejected.reward == at_check[index]


@clocked
async def test_a_dead_engine_ends_the_race() -> None:
    engine = FakeEngine(seconds_per_token=0.01)
    task = asyncio.create_task(ask(SpeculativeRejection(), engine=engine))
    await asyncio.sleep(0.05)
    await engine.stop()
    with pytest.raises(Exception, match="stopped"):
        await task
    assert engine.running == 0


# TreeBoN


async def test_tree_counts_shared_tokens_once() -> None:
    outcome, engine = await ask(
        TreeBon(children=2, layer_tokens=5), n=8, max_tokens=20, engine=FakeEngine(endless=True)
    )
    assert outcome.generated_tokens == engine.decoded_tokens == 4 * 8 * 5
    assert outcome.details["layers"] == 4
    assert outcome.selected.reward == max(c.reward for c in outcome.candidates)
    for scored in outcome.candidates:
        candidate = scored.candidate
        assert candidate.text == words(candidate.token_ids)
        assert len(candidate.token_ids) == len(candidate.token_logprobs) <= 20
        assert candidate.cumulative_logprob == pytest.approx(sum(candidate.token_logprobs))


async def test_no_two_branches_of_a_tree_are_drawn_with_one_seed() -> None:
    drawn: list[int] = []

    class Recording(FakeEngine):
        def generate(self, ids, sampling, n, request_id, first_index=0):  # type: ignore[no-untyped-def, override]
            drawn.extend(range(first_index, first_index + n))
            return super().generate(ids, sampling, n, request_id, first_index)

    await ask(
        TreeBon(children=2, layer_tokens=5), n=8, max_tokens=20, engine=Recording(endless=True)
    )
    assert len(drawn) == len(set(drawn)) == 4 * 8


@pytest.mark.parametrize(("n", "children"), [(16, 4), (16, 2), (5, 4), (7, 3), (1, 4)])
async def test_a_finished_branch_is_a_leaf_whenever_it_finished(n: int, children: int) -> None:
    """The leaves are N, and contain every branch that ended by itself, in the first layer or the last."""
    stopped: list[tuple[int, ...]] = []
    most = 0

    class Recording(FakeEngine):
        async def generate(self, ids, sampling, count, request_id, first_index=0):  # type: ignore[no-untyped-def, override]
            nonlocal most
            async for candidate in super().generate(ids, sampling, count, request_id, first_index):
                most = max(most, self.running)
                if candidate.finish_reason == "stop":
                    stopped.append(tuple(ids[len("the film was") :]) + candidate.token_ids)
                yield candidate

    layers = set()
    for seed in range(8):
        stopped.clear()
        outcome, _ = await ask(
            TreeBon(children=children, layer_tokens=3),
            n=n,
            max_tokens=24,
            seed=seed,
            engine=Recording(),
        )
        leaves = [c.candidate for c in outcome.candidates]
        assert len(leaves) == n
        assert Counter(
            leaf.token_ids for leaf in leaves if leaf.finish_reason == "stop"
        ) == Counter(stopped)
        assert outcome.selected.reward == max(c.reward for c in outcome.candidates)
        layers |= {math.ceil(len(ids) / 3) for ids in stopped}
    assert most <= n
    assert len(layers) > 1


async def test_a_tree_tells_which_of_its_branches_were_kept() -> None:
    outcome, _ = await ask(
        TreeBon(children=2, layer_tokens=5), n=8, max_tokens=20, engine=FakeEngine()
    )
    told = outcome.details["branches"]
    assert outcome.details["branches_left_out"] == 0
    layers = [[one for one in told if one["layer"] == layer] for layer in range(1, 5)]
    assert [one for layer in layers for one in layer] == told
    assert {one["state"] for one in told} == {"kept", "dropped", "ended"}
    for layer, later in zip(layers, [*layers[1:], []], strict=True):
        growing = [one for one in layer if one["state"] != "ended"]
        kept = sorted(growing, key=lambda one: -one["log_ratio"])[: math.ceil(len(growing) / 2)]
        assert [one for one in growing if one["state"] == "kept"] == [
            one for one in growing if one in kept
        ]
        assert [told[place] for place in sorted({one["parent"] for one in later})] == [
            one for one in layer if one["state"] == "kept"
        ]
        assert len(later) == len(growing)
    leaves = [one for one in told if one["state"] == "ended"]
    assert [one["candidate"] for one in leaves] == list(range(8))
    for leaf, scored in zip(leaves, outcome.candidates, strict=True):
        path = [leaf]
        while path[0]["parent"] is not None:
            path.insert(0, told[path[0]["parent"]])
        assert "".join(one["text"] for one in path) == scored.candidate.text
        assert leaf["tokens"] == len(scored.candidate.token_ids)
        assert leaf["log_ratio"] is None


async def test_the_tree_told_is_bounded_and_always_json() -> None:
    class Excluding(FakeEngine):
        """Gives every second answer a token of probability 0."""

        async def logprobs(
            self, prompt_token_ids: Any, ids: Any, request_id: str, priority: int = 0
        ) -> list[float]:
            return [-math.inf if ids[0] % 2 else -1.0] * len(ids)

    outcome, _ = await ask(
        TreeBon(children=2, layer_tokens=20),
        n=40,
        max_tokens=100,
        engine=FakeEngine(endless=True),
        guide=Excluding("excluding"),
    )
    told = outcome.details["branches"]
    assert (len(told), outcome.details["branches_left_out"]) == (128, 5 * 40 - 128)
    assert max(len(one["text"]) for one in told) == 60
    assert None in [one["log_ratio"] for one in told if one["state"] == "dropped"]
    json.dumps(told, allow_nan=False)


async def test_tree_keeps_the_branches_that_the_guide_prefers() -> None:
    class Sweet(FakeEngine):
        """Gives texts with few different words a high reward."""

        async def logprobs(
            self, prompt_token_ids: Any, ids: Any, request_id: str, priority: int = 0
        ) -> list[float]:
            return [-float(len(set(ids[: k + 1]))) for k in range(len(ids))]

    sweet, _ = await ask(
        TreeBon(children=4, layer_tokens=4),
        n=16,
        max_tokens=16,
        engine=FakeEngine(endless=True),
        guide=Sweet("sweet"),
    )
    plain, _ = await ask(Bon(), n=16, max_tokens=16, engine=FakeEngine(endless=True))

    def variety(outcome: Any) -> float:
        return float(np.mean([len(set(c.candidate.token_ids)) for c in outcome.candidates]))

    assert variety(sweet) < variety(plain)


async def test_tree_stops_at_a_stop_string_that_spans_layers() -> None:
    for seed in range(30):
        whole, _ = await ask(TreeBon(layer_tokens=1, children=2), n=4, max_tokens=6, seed=seed)
        text = whole.selected.candidate.text
        if len(text.split()) >= 3:
            break
    stop = " ".join(text.split()[:2])
    cut, _ = await ask(
        TreeBon(layer_tokens=1, children=2), n=4, max_tokens=6, seed=seed, stop=(stop,)
    )
    assert all(stop not in c.candidate.text for c in cut.candidates)
    assert any(c.candidate.finish_reason == "stop" for c in cut.candidates)


# Embedders


async def test_ngrams() -> None:
    vectors = await NgramEmbedder().embed(["The film", "the film", "a dull story", ""])
    assert np.array_equal(vectors[0], vectors[1])
    assert vectors[0] @ vectors[2] == 0
    assert not vectors[3].any()


async def test_embedders_that_are_not_there() -> None:
    with pytest.raises(InvalidInputError, match="'words' is unknown; use ngrams"):
        open_embedder("words")
    with pytest.raises(CheckpointError):
        open_embedder("hidden:/nowhere")


async def test_reward_error_when_nothing_was_scored_by_a_strategy() -> None:
    class Nothing(InstantScorer):
        async def score(self, prompt: Prompt, completion: str) -> float | None:
            return None

    with pytest.raises(RewardError, match="none of the"):
        await ask(SpeculativeRejection(), scorer=Nothing())
