"""The extreme values of every strategy setting, and proof that the server survives them."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from service.strategies import STRATEGIES
from service.strategies.speculative_rejection import SpeculativeRejection
from service.strategies.treebon import TreeBon
from tests.unit.fakes import make_runtime, serving
from tests.unit.test_strategies import InstantScorer, ask
from vbon.engine.fake import FakeEngine
from vbon.prompts import Prompt

BODY: dict[str, Any] = {"prompt": "the film was", "n": 8, "max_tokens": 16, "seed": 3}


async def post(client: httpx.AsyncClient, mode: str, **changes: Any) -> httpx.Response:
    """Post a body through json.dumps, which allows infinities and NaN, as httpx does not."""
    body = json.dumps({**BODY, **changes})
    headers = {"content-type": "application/json"}
    return await client.post("/generate", params={"mode": mode}, content=body, headers=headers)


def numbers_of(info: FieldInfo) -> tuple[Any, Any] | None:
    """The smallest and largest value of a numeric setting; ``None`` if it is not numeric."""
    kinds = {info.annotation, *get_args(info.annotation)}
    if not kinds & {int, float}:
        return None
    least = most = None
    for bound in info.metadata:
        if isinstance(bound, Ge):
            least = bound.ge
        elif isinstance(bound, Gt):
            least = math.nextafter(bound.gt, math.inf)  # type: ignore[arg-type]
        elif isinstance(bound, Le):
            most = bound.le
        elif isinstance(bound, Lt):
            most = math.nextafter(bound.lt, -math.inf)  # type: ignore[arg-type]
    return least, most


def allowed(mode: str) -> dict[str, list[Any]]:
    """The extreme values of each numeric setting of a mode, and every value of the others."""
    found: dict[str, list[Any]] = {}
    for name, info in STRATEGIES[mode].model_fields.items():
        numbers = numbers_of(info)
        words = [word for word in get_args(info.annotation) if isinstance(word, str)]
        if info.annotation is bool:
            found[name] = [True, False]
        else:
            found[name] = list(numbers) if numbers else words or [info.default]
    return found


def combinations(mode: str) -> Iterator[dict[str, Any]]:
    """Each extreme alone, and all of them in every combination, or in 256 random ones if there are more.

    Among 256 random combinations of two-valued settings, one of 960 triples of values of ten settings is
    missing with probability below 1e-11.
    """
    extremes = allowed(mode)
    for name, values in extremes.items():
        yield from ({name: value} for value in values)
    together = list(itertools.product(*extremes.values()))
    if len(together) > 256:
        together = random.Random(0).sample(together, 256)
    for values in together:
        yield dict(zip(extremes, values, strict=True))


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} in JSON")


@pytest.mark.parametrize("mode", STRATEGIES)
def test_every_number_has_two_bounds(mode: str) -> None:
    for name, info in STRATEGIES[mode].model_fields.items():
        assert None not in (numbers_of(info) or ()), f"{mode}: {name} has no least or no most"


@pytest.mark.parametrize("mode", STRATEGIES)
async def test_no_setting_that_is_allowed_breaks_a_mode(mode: str) -> None:
    async with serving(make_runtime()) as (_, client):
        for settings in combinations(mode):
            response = await post(client, mode, **settings)
            if response.status_code == 422 and "max_n" in settings:
                continue  # over the server's own limit, or below min_n
            assert response.status_code == 200, (settings, response.text)
            answer = json.loads(response.text, parse_constant=no_constant)
            assert 0 <= answer["selected_index"] < 8 * 32, settings
            if (weights := answer["details"].get("probability")) is not None:
                assert None not in weights.values(), settings
                assert sum(weights.values()) == pytest.approx(1, abs=1e-5), settings
                assert weights[str(answer["selected_index"])] >= 0


@pytest.mark.parametrize("mode", STRATEGIES)
async def test_what_is_beyond_a_bound_is_refused_by_name(mode: str) -> None:
    async with serving(make_runtime()) as (_, client):
        for name, info in STRATEGIES[mode].model_fields.items():
            if (bounds := numbers_of(info)) is None:
                continue
            least, most = (math.nan if bound is None else bound for bound in bounds)
            beyond = [10**400, -(10**400), 1e308, -1e308, math.inf, -math.inf, math.nan]
            if isinstance(info.default, float):
                beyond += [math.nextafter(least, -math.inf), math.nextafter(most, math.inf)]
            else:
                beyond += [least - 1, most + 1]
            for value in beyond:
                response = await post(client, mode, **{name: value})
                assert response.status_code == 422, (name, value, response.text)
                assert name in response.json()["error"]["param"], (name, value)


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("adaptive-bon", {"prior_sd_candidates": 8, "prior_sd": 1e200}),
        ("adaptive-bon", {"prior_mean_candidates": 8, "prior_mean": 1e200}),
        ("adaptive-bon", {"prior_mean_candidates": 1e307}),
        ("adaptive-bon", {"prior_sd_candidates": 1e307}),
        ("bon-uniform-top", {"effective_n": 10**400}),
        ("soft-bon", {"reward_temperature": 5e-324}),
        ("srbon-kl", {"reg_strength": 5e-324}),
        ("pessimistic-bon", {"reg_strength": 1.7e308}),
    ],
)
async def test_what_arithmetic_cannot_bear_is_refused(mode: str, settings: dict[str, Any]) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await post(client, mode, **settings)
    assert response.status_code == 422, response.text


# What is decoded and scored


class Counting(FakeEngine):
    """Records how many candidates it decoded at once."""

    most_at_once = 0

    async def _decode_for(self, tokens: int) -> None:
        self.most_at_once = max(self.most_at_once, self.running)
        await super()._decode_for(tokens)


@pytest.mark.parametrize(("n", "children"), [(1, 4), (2, 400), (5, 4), (8, 3), (8, 8)])
async def test_a_tree_never_decodes_more_at_once_than_admission_counted(
    n: int, children: int
) -> None:
    engine = Counting(endless=True)
    strategy = TreeBon(children=children, layer_tokens=4)
    outcome, _ = await ask(strategy, n=n, max_tokens=16, engine=engine)
    assert engine.most_at_once == strategy.sequences(n) == n
    assert outcome.generated_tokens == engine.decoded_tokens <= 16 * n


async def test_a_tree_s_answer_says_what_was_used() -> None:
    engines = {name: FakeEngine(name, endless=True) for name in ("ref", "vbon")}
    async with serving(make_runtime(engines=engines)) as (_, client):
        settings = {"n": 2, "children": 400, "layer_tokens": 1, "max_tokens": 100}
        capped = (await post(client, "treebon", **settings)).json()
        within = (await post(client, "treebon", children=3, layer_tokens=5)).json()
    assert (capped["strategy"]["children"], capped["strategy"]["layer_tokens"]) == (2, 4)
    assert capped["details"]["layers"] == 25
    assert (within["strategy"]["children"], within["strategy"]["layer_tokens"]) == (3, 5)


@pytest.mark.parametrize("max_tokens", [1, 31, 33, 100, 200])
async def test_a_tree_has_at_most_32_layers(max_tokens: int) -> None:
    engine = FakeEngine(endless=True)
    strategy = TreeBon(children=2, layer_tokens=1)
    outcome, _ = await ask(strategy, n=4, max_tokens=max_tokens, engine=engine)
    assert outcome.details["layers"] <= 32
    assert {len(c.candidate.token_ids) for c in outcome.candidates} == {max_tokens}


async def test_checks_are_few_and_each_gives_one_up() -> None:
    """A fraction that rounds to no candidate, checked at every token, took 1,600 scores before the bound."""
    scorer = InstantScorer()
    strategy = SpeculativeRejection(check_tokens=1, reject_fraction=1e-12, keep=2)
    engine = FakeEngine(endless=True)
    outcome, _ = await ask(strategy, n=40, max_tokens=100, engine=engine, scorer=scorer)
    checks = outcome.details["checks"]
    assert [check["tokens"] for check in checks] == list(range(4, 100, 4))
    assert [check["rejected"] for check in checks] == [1] * 24
    assert len(scorer.scored) == sum(range(17, 41)) + 16
    few, _ = await ask(strategy, n=6, max_tokens=100, engine=FakeEngine(endless=True))
    assert [check["left"] for check in few.details["checks"]] == [5, 4, 3, 2]


async def test_an_answer_says_how_often_was_checked() -> None:
    engines = {"ref": FakeEngine("ref", endless=True), "vbon": FakeEngine("vbon")}
    async with serving(make_runtime(engines=engines)) as (_, client):
        asked = [(1, 100), (5, 100), (None, 100)]
        answers = [
            (
                await post(client, "speculative-rejection", check_tokens=every, max_tokens=most)
            ).json()
            for every, most in asked
        ]
    assert [answer["strategy"]["check_tokens"] for answer in answers] == [4, 5, None]
    assert [answer["details"]["checks"][0]["tokens"] for answer in answers] == [4, 5, 12]


async def test_a_failing_reward_model_still_ends_a_race() -> None:
    class Mute(InstantScorer):
        async def score(self, prompt: Prompt, completion: str) -> float | None:
            self.scored.append(completion)
            return None if len(self.scored) % 2 else 1.0

    outcome, _ = await ask(SpeculativeRejection(reject_fraction=1e-12), n=3, scorer=Mute())
    assert outcome.selected.reward == 1.0
