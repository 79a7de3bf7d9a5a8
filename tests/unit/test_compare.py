"""``POST /compare`` over ASGI: fairness, figures and errors."""

from __future__ import annotations

from dataclasses import replace

import httpx
import numpy as np
import pytest

from tests.unit.fakes import ChatEngine, FakeReward, make_runtime, score_text, serving
from vbon.engine.fake import FakeEngine
from vbon.rewards import Scorable

PROMPTS = [f"prompt number {i}" for i in range(6)]


async def compare(client: httpx.AsyncClient, **changes: object) -> httpx.Response:
    body = {"prompts": PROMPTS, "n": 8, "max_tokens": 12, "seed": 5, "repeats": 3, **changes}
    return await client.post("/compare", json=body)


async def test_figures_follow_from_the_answers() -> None:
    async with serving(make_runtime(gold=FakeReward())) as (_, client):
        result = (await compare(client, repeats=1)).json()
    assert result["baseline"] == "ref"
    modes = {mode["mode"]: mode for mode in result["modes"]}
    assert set(modes) == {"ref", "bon", "vbon"}
    for name, mode in modes.items():
        answers = [row["answers"][name] for row in result["prompts"]]
        rewards = [answer["reward"] for answer in answers]
        assert rewards == [pytest.approx(score_text(answer["text"])) for answer in answers]
        assert mode["reward"]["mean"] == pytest.approx(np.mean(rewards))
        assert mode["reward"]["low"] <= mode["reward"]["mean"] <= mode["reward"]["high"]
        assert mode["gold_reward"]["mean"] == pytest.approx(mode["reward"]["mean"])
        base = [row["answers"]["ref"]["reward"] for row in result["prompts"]]
        wins = [0.5 * (1 + np.sign(a - b)) for a, b in zip(rewards, base, strict=True)]
        if name == "ref":
            assert mode["win_rate"] is None
        else:
            assert mode["win_rate"]["mean"] == pytest.approx(np.mean(wins))
    assert modes["bon"]["n"] == 8
    assert modes["bon"]["generated_tokens"] > modes["bon"]["returned_tokens"]
    assert modes["vbon"]["generated_tokens"] == modes["vbon"]["returned_tokens"]
    assert modes["ref"]["ratio_e2e"]["median"] == 1.0


async def test_chats_stand_beside_texts() -> None:
    chat = {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    }
    engines = {name: ChatEngine(f"fake-{name}") for name in ("ref", "vbon")}
    async with serving(make_runtime(gold=FakeReward(), engines=engines)) as (_, client):
        result = (await compare(client, prompts=["a text", chat])).json()
        wrong = await compare(
            client, prompts=["a text", {"messages": [{"role": "user", "text": "hi"}]}]
        )
        empty = await compare(client, prompts=[{"messages": []}])
    assert [row["prompt"] for row in result["prompts"]] == ["a text", "system: be brief\nuser: hi"]
    answers = [answer for row in result["prompts"] for answer in row["answers"].values()]
    assert [answer["reward"] for answer in answers] == [
        pytest.approx(score_text(answer["text"])) for answer in answers
    ]
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "prompts.1.messages.0.text")
    assert (empty.status_code, empty.json()["error"]["param"]) == (422, "prompts.0.messages")


async def test_head_to_head_counts_every_pair_of_answers() -> None:
    async with serving(make_runtime()) as (_, client):
        result = (await compare(client, modes=["bon", "vbon"])).json()
    (pair,) = result["head_to_head"]
    assert (pair["mode"], pair["against"]) == ("bon", "vbon")
    assert pair["wins"] + pair["losses"] + pair["ties"] == len(PROMPTS) * 3 * 3
    assert pair["wins"] > pair["losses"]
    assert result["baseline"] == "bon"


async def test_the_difference_of_two_modes_is_paired_by_prompt() -> None:
    """Each mode answers every prompt once, so a prompt's difference is that of its two rewards."""
    async with serving(make_runtime(gold=FakeReward())) as (_, client):
        result = (await compare(client, modes=["bon", "vbon"], repeats=1)).json()
    (pair,) = result["head_to_head"]
    for name, key in (("reward_difference", "reward"), ("gold_difference", "gold_reward")):
        rows = [row["answers"] for row in result["prompts"]]
        gained = [row["bon"][key] - row["vbon"][key] for row in rows]
        assert pair[name]["mean"] == pytest.approx(sum(gained) / len(gained))
        assert min(gained) <= pair[name]["low"] <= pair[name]["mean"] <= pair[name]["high"]
        assert pair[name]["count"] == len(rows)


async def test_baseline_is_not_one_of_bons_candidates() -> None:
    """Every request has a seed of its own.

    With a shared seed, ref's answer would be candidate 0 of bon, and ref could never win.
    """
    seeds: list[int | None] = []

    class Recording(FakeEngine):
        def generate(self, ids, sampling, n, request_id, first_index=0):  # type: ignore[no-untyped-def, override]
            seeds.append(sampling.seed)
            return super().generate(ids, sampling, n, request_id, first_index)

    async with serving(make_runtime(engines={"ref": Recording()})) as (_, client):
        await compare(client, modes=["ref", "bon"])
    assert len(seeds) == len(set(seeds)) == 2 * 3 * len(PROMPTS)  # modes x repeats x prompts


@pytest.mark.parametrize(("joined", "status"), [("later", 200), ("vbon", 409)])
async def test_only_a_model_that_was_replaced_meanwhile_invalidates_it(
    joined: str, status: int
) -> None:
    class Joining(FakeEngine):
        def generate(self, ids, sampling, n, request_id, first_index=0):  # type: ignore[no-untyped-def, override]
            other = FakeEngine(f"fake-{joined}")
            other.info = replace(other.info, revision="another")
            runtime.policies = {**runtime.policies, joined: other}
            return super().generate(ids, sampling, n, request_id, first_index)

    runtime = make_runtime(engines={"ref": Joining(), "vbon": FakeEngine("fake-vbon")})
    async with serving(runtime) as (_, client):
        found = await compare(client, modes=["ref"], repeats=1)
    assert found.status_code == status
    assert ("reloaded" in found.text) == (status == 409)


async def test_same_seed_same_comparison() -> None:
    async with serving(make_runtime()) as (_, client):
        first, second = [(await compare(client)).json()["prompts"] for _ in range(2)]
    assert first == second


async def test_single_sample_modes_are_not_charged_for_scoring() -> None:
    """No answer is scored before the last one has been requested."""
    reward = FakeReward()
    scored_before: list[int] = []

    class Watching(FakeEngine):
        def generate(self, ids, sampling, n, request_id, first_index=0):  # type: ignore[no-untyped-def, override]
            scored_before.append(sum(reward.batches))
            return super().generate(ids, sampling, n, request_id, first_index)

    engines: dict[str, FakeEngine] = {"ref": Watching(), "vbon": Watching()}
    async with serving(make_runtime(reward=reward, engines=engines)) as (_, client):
        result = (await compare(client, modes=["ref", "vbon"], repeats=2)).json()
    assert scored_before == [0] * (2 * 2 * len(PROMPTS))
    assert [mode["reward"]["count"] for mode in result["modes"]] == [len(PROMPTS)] * 2


async def test_unscored_answers_are_left_out_and_counted() -> None:
    class Picky(FakeReward):
        def score(self, items: list[Scorable]) -> list[float | None]:  # type: ignore[override]
            return [None if "prompt number 2" in item.prompt.key else 1.0 for item in items]

    async with serving(make_runtime(reward=Picky())) as (_, client):
        result = (await compare(client, modes=["ref", "vbon"], repeats=2)).json()
    for mode in result["modes"]:
        assert mode["unscored_answers"] == 2
        assert mode["reward"]["count"] == len(PROMPTS) - 1
        assert mode["reward"]["mean"] == 1.0
    assert result["modes"][1]["win_rate"]["mean"] == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": []}, "at least 1"),
        ({"modes": ["ref", "bond"]}, "'bond' is not configured"),
        ({"baseline": "bond"}, "'bond' is not configured"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"n": 1000}, "at most 128"),
        ({"prompts": ["x"] * 200}, "prompts is 200"),
        ({"mode": "ref"}, "this server has no such field"),
    ],
)
async def test_bad_input(changes: dict[str, object], words: str) -> None:
    async with serving(make_runtime()) as (_, client):
        response = await compare(client, **changes)
    assert response.status_code == 422
    assert words in response.json()["error"]["message"]


async def test_an_error_in_one_prompt_is_the_comparisons_error() -> None:
    engine = FakeEngine(seconds_per_token=0.01)
    async with serving(make_runtime(engines={"ref": engine})) as (_, client):
        response = await compare(client, prompts=["fine", "x" * 300], concurrency=2)
    assert response.status_code == 422
    assert response.json()["error"]["type"] == "prompt_too_long"
    assert engine.running == 0
