"""The likelihood that rbon-kl, srbon-kl and treebon weigh: of the distribution sampled, or of the policy.

The policy has three tokens and completions of two, so everything is enumerated.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from service.settings import ServiceSettings
from service.strategies import Resources, Task
from service.strategies.rbon_kl import RbonKl
from service.strategies.srbon_kl import SrbonKl
from service.strategies.treebon import Branch, _Tree
from tests.unit.fakes import make_runtime, serving
from vbon.embedders import open_embedder
from vbon.engine import Candidate, Sampling
from vbon.engine.fake import FakeEngine
from vbon.engine.vllm.engine_args import OWNED_BY_SERVICE
from vbon.errors import InvalidInputError
from vbon.prompts import Prompt

# Probabilities of the tokens 0, 1, 2: of the first, and of the second after each first one.
FIRST = (0.5, 0.3, 0.2)
SECOND = ((0.6, 0.3, 0.1), (0.2, 0.2, 0.6), (0.34, 0.33, 0.33))
COMPLETIONS = list(product(range(3), repeat=2))
# Rewards by completion, so close that the likelihoods decide.
REWARDS = dict(zip(COMPLETIONS, (0.1, 0.5, 0.9, 0.4, 0.6, 0.2, 0.8, 0.7, 0.3), strict=True))


def shaped(
    probabilities: tuple[float, ...], temperature: float, top_p: float, top_k: int
) -> list[float]:
    """The distribution after temperature, then top-k, then top-p over what is left."""
    tempered = [p ** (1 / temperature) for p in probabilities]
    order = sorted(range(3), key=lambda token: -tempered[token])[: top_k or 3]
    total = sum(tempered[token] for token in order)
    kept, mass = [], 0.0
    for token in order:
        kept.append(token)
        mass += tempered[token] / total
        if mass >= top_p:
            break
    left = sum(tempered[token] for token in kept)
    return [tempered[token] / left if token in kept else 0.0 for token in range(3)]


def token_logs(ids: tuple[int, ...], sampling: Sampling | None) -> tuple[float, ...]:
    """``log p`` of each token, under the policy if ``sampling`` is ``None``, else under what is sampled."""
    rows = (FIRST, SECOND[ids[0]])
    if sampling is not None:
        rows = tuple(
            tuple(shaped(row, sampling.temperature, sampling.top_p, sampling.top_k)) for row in rows
        )
    return tuple(
        math.log(row[token]) if row[token] > 0 else -math.inf
        for row, token in zip(rows, ids, strict=True)
    )


class Enumerated(FakeEngine):
    """An engine whose candidates are all completions that its sampling can draw, once each."""

    asked = 0

    async def generate(
        self, prompt_token_ids: list[int], sampling: Sampling, num_samples: int, request_id: str,
        first_index: int = 0,
    ) -> AsyncGenerator[Candidate, None]:  # fmt: skip
        assert sampling.logprobs
        told = sampling if self.info.sampled_logprobs else None
        for index, ids in enumerate(drawable(sampling)[:num_samples]):
            yield Candidate(index, f"{ids}", ids, "stop", token_logs(ids, told))

    async def logprobs(
        self, prompt_token_ids: list[int], completion_token_ids: list[int], request_id: str,
        priority: int = 0,
    ) -> list[float]:  # fmt: skip
        self.asked += 1
        return list(token_logs(tuple(completion_token_ids), None))


def drawable(sampling: Sampling) -> list[tuple[int, ...]]:
    return [ids for ids in COMPLETIONS if min(token_logs(ids, sampling)) > -math.inf]


class ByText:
    name, revision = "by-text", "r"

    async def score(self, prompt: Prompt, completion: str) -> float:
        return next(reward for ids, reward in REWARDS.items() if f"{ids}" == completion)


async def run(strategy: Any, sampling: Sampling, *, engine_tells: str) -> tuple[Any, Enumerated]:
    engine = Enumerated(sampled_logprobs=engine_tells == "sampled")
    count = len(drawable(sampling))
    task = Task(Prompt(text="a"), [1], sampling, count, "request")
    resources = Resources(engine, {"ref": engine}, ByText(), open_embedder("ngrams"))
    return await strategy.run(task, resources), engine


PLAIN = Sampling(max_tokens=2, seed=1)
RESHAPED = [
    replace(PLAIN, temperature=0.5),
    replace(PLAIN, temperature=2.0),
    replace(PLAIN, top_p=0.75),
    replace(PLAIN, top_k=2),
    replace(PLAIN, temperature=0.7, top_p=0.9, top_k=2),
]


@pytest.mark.parametrize("sampling", [PLAIN, *RESHAPED])
@pytest.mark.parametrize(
    ("log_p", "engine_tells"),
    [("sampled", "sampled"), ("policy", "sampled"), ("policy", "policy"), ("sampled", "policy")],
)
async def test_rules_weigh_the_likelihood_that_is_asked_for(
    sampling: Sampling, log_p: Any, engine_tells: str
) -> None:
    kl = RbonKl(log_p=log_p, reg_strength=0.5, normalise_rewards=False)
    drawn = SrbonKl(log_p=log_p, reg_strength=0.7, normalise_rewards=False, likelihood_weight=0.8)
    if sampling is not PLAIN and (log_p, engine_tells) == ("sampled", "policy"):
        with pytest.raises(InvalidInputError, match=r"log_p: policy .*--engine\.logprobs sampled"):
            await run(kl, sampling, engine_tells=engine_tells)
        return
    under = sampling if log_p == "sampled" else None
    weights = {ids: sum(token_logs(ids, under)) for ids in drawable(sampling)}
    best = max(weights, key=lambda ids: REWARDS[ids] + 0.5 * weights[ids])
    outcome, engine = await run(kl, sampling, engine_tells=engine_tells)
    assert outcome.selected.candidate.token_ids == best
    tilted = {ids: math.exp(REWARDS[ids] / 0.7 + 0.8 * log) for ids, log in weights.items()}
    expected = [value / sum(tilted.values()) for value in tilted.values()]
    outcome, _ = await run(drawn, sampling, engine_tells=engine_tells)
    assert list(outcome.details["probability"].values()) == pytest.approx(expected, abs=1e-6)
    # Another pass over the candidates is needed only for what the engine did not tell while it drew.
    again = sampling is not PLAIN and (log_p, engine_tells) == ("policy", "sampled")
    assert engine.asked == (len(weights) if again else 0)
    said = outcome.details.get("log_p", "")
    assert said.startswith("" if sampling is PLAIN else {"sampled": "of", "policy": "the"}[log_p])
    assert (said == "") == (sampling is PLAIN)


def test_the_two_likelihoods_choose_differently() -> None:
    """So a test with the wrong one would fail."""
    changed = 0
    for sampling in RESHAPED:
        choices = set()
        for under in (sampling, None):
            logs = {ids: sum(token_logs(ids, under)) for ids in drawable(sampling)}
            choices.add(max(logs, key=lambda ids: REWARDS[ids] + 0.5 * logs[ids]))
        changed += len(choices) == 2
    assert changed >= 2


async def test_greedy_candidates_are_certain() -> None:
    """At temperature 0 the distribution sampled is one completion, whatever the engine tells."""
    greedy = replace(PLAIN, temperature=0.0)
    rule = RbonKl()
    engine = Enumerated()
    rule.check(greedy, engine)
    task = Task(Prompt(text="a"), [1], greedy, 1, "request")
    candidate = Candidate(0, "x", (0, 0), "stop", token_logs((0, 0), None))
    scored: Any = [type("S", (), {"candidate": candidate, "reward": 1.0})()]
    assert (await rule.log_likelihoods(scored, task, engine)).tolist() == [0.0]


@pytest.mark.parametrize("sampling", [PLAIN, *RESHAPED[:1]])
@pytest.mark.parametrize("tells", ["policy", "sampled"])
async def test_treebon_compares_both_policies_at_temperature_1(
    sampling: Sampling, tells: str
) -> None:
    engine, guide = Enumerated(sampled_logprobs=tells == "sampled"), Enumerated()
    task = Task(Prompt(text="a"), [1], sampling, 1, "request")
    told = token_logs((1, 2), sampling if tells == "sampled" else None)
    tree = _Tree(task, engine, guide)
    tree.branches = [Branch((1, 2), told, None, place=0)]
    [branch] = await tree.with_worth(tree.branches)
    assert branch.worth == pytest.approx(0.0, abs=1e-12)  # the guide is the same policy


async def test_a_request_is_refused_with_both_remedies_and_may_ask_for_the_policys() -> None:
    body = {"prompt": "a", "n": 2, "max_tokens": 4, "temperature": 0.7}
    async with serving(make_runtime()) as (_, client):
        refused = await client.post("/generate?mode=rbon-kl", json=body)
        allowed = await client.post("/generate?mode=rbon-kl", json={**body, "log_p": "policy"})
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "log_p"
    assert allowed.json()["details"]["log_p"].startswith("the policy's own")


def test_the_operator_chooses_by_a_setting_and_not_by_vllms_argument() -> None:
    assert ServiceSettings().engine.logprobs == "policy"
    assert OWNED_BY_SERVICE["logprobs_mode"] == "use --engine.logprobs"
