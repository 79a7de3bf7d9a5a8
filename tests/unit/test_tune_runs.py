"""Tuning runs that report to a service: what it keeps, shows, applies and refuses."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.auto.tune_runs import age_s, is_stale
from service.store import TuneRunSummary, open_store, save_tune_run
from tests.unit.fakes import make_runtime, serving
from tests.unit.measured import around, as_json, row, table
from tests.unit.rolling import ANN_KEY, ROOT_KEY, bearer, rolling
from tests.unit.tuned_runs import (
    RUN,
    interval,
    measured_table,
    recommending,
    report,
    trial,
    tuned_setting,
)

Served = tuple[FastAPI, httpx.AsyncClient]
PATH = f"/tune/runs/{RUN}"


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Served, None]:
    where = tmp_path_factory.mktemp("tune") / "runs.db"
    async with serving(make_runtime(store=str(where))) as served:
        assert (await served[1].get("/tune/runs")).json() == {"runs": []}
        assert not where.exists()  # reading makes no file
        yield served


@pytest.fixture
async def client(shared: Served) -> AsyncGenerator[httpx.AsyncClient, None]:
    """A client of the shared service, which then has no runs and no table."""
    yield shared[1]
    for one in (await shared[1].get("/tune/runs")).json()["runs"]:
        assert (await shared[1].delete(f"/tune/runs/{one['id']}")).status_code == 204
    await shared[1].delete("/auto/table")


async def put(client: httpx.AsyncClient, body: dict[str, Any], path: str = PATH) -> None:
    response = await client.put(path, json=body)
    assert response.status_code == 204, response.text


async def test_the_newest_report_of_a_run_is_shown_and_a_deleted_run_is_gone(
    client: httpx.AsyncClient,
) -> None:
    await put(client, report())
    first = (await client.get(PATH)).json()
    trials = [trial(1), trial(2, error="HTTP 503: the engine is dead")]
    await put(client, report(trials=trials))
    found = (await client.get(PATH)).json()
    assert found["report"]["trials"][1]["error"] == "HTTP 503: the engine is dead"
    assert found["report"]["trials"][1]["best"] is None
    assert found["started"] == first["started"] <= first["updated"] < found["updated"]
    assert (found["stale"], found["has_table"], found["applied"]) == (False, False, None)
    listed = (await client.get("/tune/runs")).json()["runs"]
    assert [(one["id"], one["trials"], one["status"]) for one in listed] == [(RUN, 2, "running")]
    assert "report" not in listed[0]
    assert (await client.delete(PATH)).status_code == 204
    for response in (await client.get(PATH), await client.delete(PATH)):
        assert response.status_code == 404
        assert f"no tuning run {RUN}" in response.text


@pytest.mark.parametrize("ended", ["recommended", "interrupted", "failed", "unmet"])
async def test_a_report_that_arrives_late_replaces_none_that_was_made_after_it(
    client: httpx.AsyncClient, ended: str
) -> None:
    """The network may hold a report of a running trial back until after that of the run's end."""

    def made(status: str, second: int, trials: int) -> dict[str, Any]:
        known: dict[str, Any] = {
            "status": status, "started": f"2026-11-01T10:00:{second:02}+00:00",
            "trials": [trial(number) for number in range(1, trials + 1)],
        }  # fmt: skip
        return recommending(**known) if status == "recommended" else report(**known)

    async def shown() -> tuple[str, int]:
        found = (await client.get(PATH)).json()
        return found["status"], found["trials"]

    await put(client, made("running", 1, 1))
    await put(client, made(ended, 1, 3))
    late = await client.put(PATH, json=made("running", 1, 2))
    assert (late.status_code, await shown()) == (409, (ended, 3))
    assert "has reported its end or a later start" in late.text
    # Where the clock of the earlier start was ahead, nothing but this lets the run report again.
    assert f"remove the run (DELETE {PATH})" in late.text
    await put(client, made(ended, 1, 4))  # after its table, the end is told again
    assert await shown() == (ended, 4)
    # The same run goes on: its start is later, and what its first process sent is late, also its end.
    await put(client, made("running", 9, 2))
    assert await shown() == ("running", 2)
    for status in ("running", ended):
        assert (await client.put(PATH, json=made(status, 1, 5))).status_code == 409
    assert await shown() == ("running", 2)


async def test_the_recommended_setting_alone_is_applied_or_all_measured_ones(
    client: httpx.AsyncClient,
) -> None:
    """All of them have a setting of a higher reward, which mode auto takes where nothing has a price."""
    await put(client, recommending())
    early = await client.post(f"{PATH}/apply", json={})
    assert (early.status_code, "has not sent" in early.text) == (422, True)
    await put(client, measured_table(), f"{PATH}/table")
    assert (await client.get(PATH)).json()["has_table"]
    for settings, n in (("recommended", 4), ("measured", 16)):
        applied = await client.post(f"{PATH}/apply", json={"settings": settings})
        assert applied.status_code == 200, applied.text
        assert applied.json()["applied"] == settings
        asked = await client.post("/generate?mode=auto", json={"prompt": "a", "max_tokens": 2})
        assert asked.json()["routing"]["n"] == n
        in_use = (await client.get("/auto/table")).json()
        assert (in_use["source"], in_use["stored"], in_use["made_by"]) == (
            "request",
            True,
            "vbon tune",
        )
    await client.put("/auto/table", json=as_json(table(row(n=8))))
    assert (await client.get(PATH)).json()["applied"] is None
    await client.post(f"{PATH}/apply", json={})
    assert (await client.delete(PATH)).status_code == 204
    assert len((await client.get("/auto/table")).json()["rows"]) == 1  # what was applied stays


async def test_a_run_without_a_recommendation_and_one_of_other_models_apply_nothing(
    client: httpx.AsyncClient,
) -> None:
    await put(client, report(status="unmet", phase="ended"))
    await put(client, measured_table(), f"{PATH}/table")
    unmet = await client.post(f"{PATH}/apply", json={"settings": "recommended"})
    assert (unmet.status_code, unmet.json()["error"]["param"]) == (422, "settings")
    assert "recommends no setting" in unmet.text
    stale = as_json(table(row(), policies={"ref": "older"}))
    await put(client, stale, f"{PATH}/table")
    refused = await client.post(f"{PATH}/apply", json={"settings": "measured"})
    assert refused.status_code == 422
    assert "measured at revision older" in refused.text
    assert (await client.get("/auto/table")).status_code == 404
    wrong = await client.post(f"{PATH}/apply", json={"settings": "best"})
    assert wrong.status_code == 422
    unknown = "/tune/runs/ffffffffffff"
    for response in (
        await client.put(f"{unknown}/table", json=measured_table()),
        await client.post(f"{unknown}/apply", json={}),
    ):
        assert response.status_code == 404


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version"),
        ({"status": "well"}, "status"),
        ({"status": "recommended"}, "needs recommended and recommended_setting"),
        ({"surprise": 1}, "surprise"),
        ({"policies": {}}, "policies"),
        ({"trials": [trial(1)], "trials_done": 0}, "trials_done is 0, and 1 trials are listed"),
        ({"trials": [trial(1) | {"error": "and failed"}]}, "either its best setting or the reason"),
        ({"trials": [{"number": 1, "tried": "x"}]}, "either its best setting or the reason"),
        ({"trials": [trial(n + 1) for n in range(501)]}, "trials"),
        ({"best": tuned_setting(gains={})}, "gains"),
        ({"best": tuned_setting(price=interval(-1.0))}, "begin at 0"),
        ({"best": tuned_setting(gains={"reward": interval(1.0) | {"low": 2.0}})}, "excludes"),
        ({"recommended_setting": row(policy="x").model_dump(mode="json")}, "missing in policies"),
        ({"next_within_s": 0}, "next_within_s"),
        ({"trials_done": 2**31}, "trials_done"),
        ({"trials_done": True}, "trials_done"),
        ({"next_within_s": True}, "next_within_s"),
        ({"best": tuned_setting(price=interval(1.0) | {"count": False})}, "count"),
        ({"search": report()["search"] | {"prompts": {"tune": True}}}, "prompts.tune"),
        ({"recommended_setting": row().model_dump(mode="json") | {"unscored": False}}, "unscored"),
        ({"out": "x" * 601}, "out"),
        ({"out": False}, "out"),
        ({"error": True}, "error"),
        ({"recommended_setting": row().model_dump(mode="json") | {"mode": False}}, "mode"),
        ({"policies": True}, "policies"),
        ({"started": 0}, "started"),
        ({"started": "2026-01-31T12:00:00"}, "started"),
        ({"best": tuned_setting() | {"reaches": 0}}, "reaches"),
    ],
)
async def test_reports_that_cannot_be_are_refused(
    client: httpx.AsyncClient, changes: dict[str, Any], words: str
) -> None:
    response = await client.put(PATH, json=report() | changes)
    assert response.status_code == 422
    assert words in response.json()["error"]["message"]
    assert (await client.get("/tune/runs")).json() == {"runs": []}


@pytest.mark.parametrize("content", ["[]", "{", '{"status": NaN}'])
async def test_bodies_and_ids_that_are_none_are_refused(
    client: httpx.AsyncClient, content: str
) -> None:
    headers = {"content-type": "application/json"}
    assert (await client.put(PATH, content=content, headers=headers)).status_code == 422
    for name in ("x", "0123456789AB", "0123456789abc", "..%2f0123456789"):
        assert (await client.put(f"/tune/runs/{name}", json=report())).status_code in (404, 422)


def test_a_run_is_stale_once_it_is_silent_for_longer_than_it_said_unless_it_has_ended() -> None:
    now = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def run(seconds: float, status: str) -> TuneRunSummary:
        updated = now - timedelta(seconds=seconds)
        return TuneRunSummary(RUN, updated, updated, 120.0, status, "question", 3)

    cases = [(119, "running", False), (121, "running", True), (10_000, "interrupted", False)]
    for seconds, status, stale in cases:
        assert is_stale(run(seconds, status), now) is stale
        assert age_s(run(seconds, status), now) == seconds


async def test_only_admins_change_runs_where_there_are_keys(tmp_path: Path) -> None:
    async with rolling(tmp_path) as service:
        ann, root = bearer(ANN_KEY), bearer(ROOT_KEY)
        for response in (
            await service.client.put(PATH, json=report(), headers=ann),
            await service.client.put(f"{PATH}/table", json=measured_table(), headers=ann),
            await service.client.post(f"{PATH}/apply", json={}, headers=ann),
            await service.client.delete(PATH, headers=ann),
        ):
            assert (response.status_code, response.json()["error"]["type"]) == (403, "forbidden")
        kept = await service.client.put(PATH, json=report(), headers=root)
        assert kept.status_code == 204, kept.text
        shown = (await service.client.get(PATH, headers=ann)).json()
        assert shown["rolls_out"] is True
        service.client.headers.pop("authorization")
        assert (await service.client.get("/tune/runs")).status_code == 401


async def test_another_site_s_page_changes_nothing(client: httpx.AsyncClient) -> None:
    headers = {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}
    for response in (
        await client.put(PATH, json=report(), headers=headers),
        await client.put(f"{PATH}/table", json=measured_table(), headers=headers),
        await client.post(f"{PATH}/apply", json={}, headers=headers),
        await client.delete(PATH, headers=headers),
    ):
        assert response.status_code == 403


async def test_without_a_store_nothing_is_kept_and_it_says_so() -> None:
    async with serving(make_runtime(store="none")) as (_, client):
        for response in (await client.get("/tune/runs"), await client.put(PATH, json=report())):
            assert response.status_code == 404
            assert "start it with --store" in response.text


async def test_a_run_that_another_version_kept_is_listed_and_has_no_report(tmp_path: Path) -> None:
    where = str(tmp_path / "runs.db")
    store = open_store(where)
    save_tune_run(store, RUN, report(version=9, next_within_s=60))
    store.close()
    async with serving(make_runtime(store=where)) as (_, client):
        found = (await client.get(PATH)).json()
        assert found["report"] is None
        assert found["question"] == "reward >= best-of-4 at the lowest tokens"


async def test_the_measured_settings_of_a_setting_that_uses_other_policies_can_be_applied(
    client: httpx.AsyncClient,
) -> None:
    """A live mode names no other policies that it uses, so the table of one setting keeps all revisions."""
    live = row(mode="speculative-rejection", n=4, reward=around(1.5))
    chosen = live.model_dump(mode="json")
    await put(client, recommending(recommended_setting=chosen))
    await put(client, as_json(table(live, row())), f"{PATH}/table")
    applied = await client.post(f"{PATH}/apply", json={})
    assert applied.json()["applied"] == "recommended"
    in_use = (await client.get("/auto/table")).json()
    assert in_use["policies"] == {"ref": "fake", "vbon": "fake"}
    assert [one["usable"] for one in in_use["rows"]] == [True]
