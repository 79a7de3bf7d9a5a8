"""``/decision``: the newest comparison of the models served, as measured, or what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.store import Preference, Shown, add_preference, add_run, open_store
from tests.unit.decided_runs import SAMPLED_RATES, TUNED_RATES, decided_run
from tests.unit.fakes import make_runtime, serving
from vbon.engine.fake import FakeEngine


async def ask(store: str, *, policies: tuple[str, ...] = ("ref", "vbon")) -> dict[str, Any]:
    runtime = make_runtime(engines={name: FakeEngine() for name in policies}, store=store)
    async with serving(runtime) as (_, client):
        response = await client.get("/decision")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def stored(
    where: Path,
    *runs: dict[str, Any],
    verdicts: tuple[str, ...] = (),
    revisions: tuple[str | None, str | None] = ("fake", "fake+fake"),
) -> str:
    file = str(where / "s.db")
    store = open_store(file)
    for run in runs:
        add_run(store, run)
    for winner in verdicts:
        sides = (
            Shown("vbon", 1, "a", revision=revisions[0]),
            Shown("bon", 16, "b", revision=revisions[1]),
        )
        add_preference(store, Preference("p", *sides, winner))  # type: ignore[arg-type]
    store.close()
    return file


async def test_a_comparison_comes_round_by_round(tmp_path: Path) -> None:
    found = await ask(stored(tmp_path, decided_run(), verdicts=("a", "a", "b", "tie")))
    assert found["training_price_per_hour"] is None
    (pair,) = found["pairs"]
    sides = {side["variant"]: side for side in found["sides"]}
    assert (found["currency"], found["price_per_hour"], found["missing"]) == ("EUR", 2.0, [])
    assert (pair["tuned"], pair["sampled"], pair["state"]) == ("vbon", "bon (N=16)", "decided")
    assert pair["given_up"]["reward"]["mean"] == pytest.approx(0.2)
    assert pair["given_up"]["gold"]["mean"] == pytest.approx(0.1)
    for name, rates, p95 in (("vbon", TUNED_RATES, 200), ("bon (N=16)", SAMPLED_RATES, 420)):
        level = sides[name]["levels"][-1]
        assert [one["answers_per_s"] for one in level["rounds"]] == list(rates)
        assert (level["p95_ms"], level["above"]) == (p95, 1)
    assert sides["bon (N=16)"]["tokens_per_answer"] == pytest.approx(160)
    # The pair is stored as bon against vbon; people chose vbon twice, bon once, and were undecided once.
    people = pair["people"]
    assert (people["wins"], people["losses"], people["ties"]) == (2, 1, 1)
    assert people["win_rate"]["mean"] == pytest.approx(2.5 / 4)
    assert people["win_rate"]["low"] <= people["win_rate"]["mean"] <= people["win_rate"]["high"]


@pytest.mark.parametrize(
    "revisions", [("old", "fake+fake"), ("fake", "fake+old"), ("fake", "old+fake"), (None, None)]
)
async def test_verdicts_on_other_models_do_not_count(
    revisions: tuple[str | None, str | None], tmp_path: Path
) -> None:
    """Another checkpoint, reward model or reference, and verdicts from before they were kept."""
    found = await ask(stored(tmp_path, decided_run(), verdicts=("a",), revisions=revisions))
    assert found["pairs"][0]["people"] is None


async def test_runs_of_other_models_and_runs_without_a_pair_do_not_count(tmp_path: Path) -> None:
    other = decided_run("0000000000bb", revision="sha256:old")
    alone = decided_run("0000000000cc") | {"break_even": []}
    found = await ask(stored(tmp_path, other, alone))
    assert (found["run"], found["pairs"]) == (None, [])
    assert found["missing"] == [
        "The load tests of these models compare no tuned checkpoint with a mode that samples several "
        "candidates."
    ]


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        (("ref", "vbon"), ["No load test of the models that are served now is stored."]),
        (("ref",), ["Only the reference policy is served.", "No load test of the models"]),
    ],
)
async def test_what_is_missing_is_told(
    tmp_path: Path, policies: tuple[str, ...], words: list[str]
) -> None:
    missing = (await ask(stored(tmp_path), policies=policies))["missing"]
    assert all(text.startswith(start) for text, start in zip(missing, words, strict=True))


async def test_load_tests_that_were_not_looked_at_are_not_denied(tmp_path: Path) -> None:
    """The newest ten are read; older ones may hold what the page looks for."""
    compared = decided_run("0000000000ff") | {"created": "2026-01-01T10:00:00+00:00"}
    newer = [decided_run(f"{i:012x}", revision="sha256:old") for i in range(10)]
    assert (await ask(stored(tmp_path, compared, *newer)))["missing"] == [
        "None of the newest 10 load tests is of the models that are served now."
    ]
    (tmp_path / "alone").mkdir()
    alone = [decided_run(f"{i:012x}") | {"break_even": []} for i in range(10)]
    assert (await ask(stored(tmp_path / "alone", compared, *alone)))["missing"] == [
        "The newest 10 load tests compare no tuned checkpoint of these models with a mode that samples "
        "several candidates."
    ]


async def test_a_server_without_a_store_says_how_to_have_one() -> None:
    missing = (await ask("none"))["missing"]
    assert missing == ["This server keeps no load tests; start it with --store FILE."]
