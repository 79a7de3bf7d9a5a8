"""Blind preferences over ASGI, with a real store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.evaluation import preference_pairs as blind
from service.runtime.runtime import Runtime
from service.store import Shown
from tests.unit.fakes import make_runtime, serving
from vbon.engine.fake import FakeEngine
from vbon.errors import NotFoundError

PAIR = {"prompt": "<b>the film</b>", "sides": [{"mode": "ref"}, {"mode": "bon", "n": 4}]}


async def test_a_verdict_is_kept_once_and_only_then_says_whose_answers_they_were(
    tmp_path: Path,
) -> None:
    async with serving(make_runtime(store=str(tmp_path / "s.db"))) as (_, client):
        shown = (await client.post("/preferences/pairs", json=PAIR)).json()
        verdict = {"pair": shown["pair"], "winner": "left"}
        kept = (await client.post("/preferences", json=verdict)).json()
        again = await client.post("/preferences", json=verdict)
        (line,) = (await client.get("/preferences")).json()["standings"]
    assert shown.keys() == {"pair", "prompt", "left", "right"}
    assert {kept["left"]["mode"], kept["right"]["mode"]} == {"ref", "bon"}
    assert again.status_code == 404
    assert (line["mode"], line["n"], line["against"], line["against_n"]) == ("bon", 4, "ref", 1)
    assert line["human_win_rate"]["mean"] == float(kept["left"]["mode"] == "bon")
    assert line["current"] is True


async def test_verdicts_on_an_earlier_checkpoint_are_counted_apart(tmp_path: Path) -> None:
    pair = {**PAIR, "sides": [{"mode": "vbon"}, {"mode": "bon", "n": 4}]}
    store = str(tmp_path / "s.db")

    async def judge(runtime: Runtime) -> list[dict[str, Any]]:
        async with serving(runtime) as (_, client):
            shown = (await client.post("/preferences/pairs", json=pair)).json()
            verdict = {"pair": shown["pair"], "winner": "bad"}
            assert (await client.post("/preferences", json=verdict)).status_code == 200
            found: list[dict[str, Any]] = (await client.get("/preferences")).json()["standings"]
            return found

    (first,) = await judge(make_runtime(store=store))
    engine = FakeEngine("vbon")
    engine.info = replace(engine.info, revision="newer")
    current, earlier = await judge(
        make_runtime(store=store, engines={"ref": FakeEngine("ref"), "vbon": engine})
    )
    assert (first["current"], first["both_bad"], first["ties"]) == (True, 1, 0)
    assert first["human_win_rate"]["mean"] == 0.5
    assert (current["current"], earlier["current"]) == (True, False)
    assert earlier == {**first, "current": False}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sides": [{"mode": "ref"}, {"mode": "ref"}]}, "sides"),
        ({"sides": [{"mode": "ref"}]}, "sides"),
        ({"sides": [{"mode": "ref"}, {"mode": "no"}]}, "mode"),
        ({"prompt": ""}, "prompt"),
    ],
)
async def test_wrong_pairs_are_refused(changes: dict[str, object], field: str) -> None:
    async with serving(make_runtime(store="none")) as (_, client):
        response = await client.post("/preferences/pairs", json={**PAIR, **changes})
    assert (response.status_code, response.json()["error"]["param"]) == (422, field)


async def test_other_sites_are_refused() -> None:
    async with serving(make_runtime(store="none")) as (_, client):
        for headers in (
            {"sec-fetch-site": "cross-site"},
            {"origin": "http://evil.example"},
            {"origin": "http://["},
        ):
            assert (
                await client.post("/preferences/pairs", json=PAIR, headers=headers)
            ).status_code == 403


async def test_a_verdict_that_cannot_be_kept_leaves_the_pair_open() -> None:
    async with serving(make_runtime(store="none")) as (_, client):
        shown = (await client.post("/preferences/pairs", json=PAIR)).json()
        verdict = {"pair": shown["pair"], "winner": "tie"}
        said = [(await client.post("/preferences", json=verdict)).json() for _ in range(2)]
    assert all("--store" in one["error"]["message"] for one in said)


async def test_of_a_pair_only_what_is_shown_and_whose_it_is_is_kept() -> None:
    async with serving(make_runtime(store="none")) as (app, client):
        asked = {**PAIR, "sides": [{"mode": "bon", "n": 2}, {"mode": "bon", "n": 4}]}
        shown = (await client.post("/preferences/pairs", json=asked)).json()
        with app.state.pending_pairs.judged(shown["pair"]) as pair:
            assert {type(pair.left), type(pair.right)} == {Shown}
            assert (pair.left.text, pair.right.text) == (shown["left"], shown["right"])
            assert {pair.left.n, pair.right.n} == {2, 4}


def test_nobody_pushes_out_the_pairs_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blind, "_MOST_PENDING", 4)
    pairs = blind.PendingPairs()
    pair = blind.Pair("p", Shown("ref", 1, "a"), Shown("bon", 4, "b"))
    ann = [pairs.add(pair, "ann") for _ in range(2)]
    bob = [pairs.add(pair, "bob") for _ in range(20)]
    for key in (*ann, *bob[-2:]):
        with pairs.judged(key):
            pass
    for key in bob[:-2]:
        with pytest.raises(NotFoundError), pairs.judged(key):
            pass


def test_a_pair_whose_verdict_fails_is_kept_within_the_same_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blind, "_MOST_PENDING", 2)
    pairs = blind.PendingPairs()
    pair = blind.Pair("p", Shown("ref", 1, "a"), Shown("bon", 4, "b"))
    first = pairs.add(pair, "ann")
    judging = pairs.judged(first)
    judging.__enter__()
    others = [pairs.add(pair, "bob") for _ in range(2)]
    full = OSError("full")
    assert not judging.__exit__(OSError, full, None)
    assert len(pairs._pairs) == 2
    with pairs.judged(first), pairs.judged(others[-1]):
        pass
