"""A store that is locked, hangs, is full or cannot be written, and what goes on meanwhile."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from service.app import create_app
from service.hosted_loadtests import runs as runs_module
from service.hosted_loadtests.runs import LoadTestRuns, Run
from service.store import (
    Preference,
    Shown,
    Store,
    add_preference,
    get_run,
    human_win_rates,
    open_store,
)
from service.store import async_store as async_store_module
from service.store.async_store import AsyncStore, check_place
from tests.unit.fakes import make_runtime, serving
from vbon.errors import StoreError

RESULT: dict[str, Any] = {
    "id": "0001abcd",
    "created": "2026-01-01T10:00:00+00:00",
    "schema_version": "1.0",
    "decision": ["decision"],
    "server": {"url": "http://host"},
}
VERDICT = Preference("p", Shown("bon", 4, "x"), Shown("ref", 1, "y"), "a")


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with one verdict. Requests wait a twentieth of a second for it."""
    monkeypatch.setattr(async_store_module, "PATIENCE_S", 0.05)
    place = str(tmp_path / "runs.db")
    store = open_store(place)
    add_preference(store, VERDICT)
    store.close()
    return place


@contextmanager
def locked(where: str, kind: str) -> Iterator[None]:
    """Another process has begun a transaction, as far as SQLite can tell."""
    other = sqlite3.connect(where, isolation_level=None)
    other.execute(f"BEGIN {kind}")
    try:
        yield
    finally:
        other.rollback()
        other.close()


async def judged(client: httpx.AsyncClient) -> httpx.Response:
    """The answer to a verdict on a new pair."""
    body = {"prompt": "p", "sides": [{"mode": "bon", "n": 2}, {"mode": "ref"}], "max_tokens": 4}
    pair = (await client.post("/preferences/pairs", json=body)).json()["pair"]
    return await client.post("/preferences", json={"pair": pair, "winner": "left"})


@pytest.mark.parametrize("opened_before", [True, False])
async def test_a_locked_store_is_503_soon_and_all_else_is_served(
    where: str, opened_before: bool
) -> None:
    async with serving(make_runtime(store=where)) as (_, client):
        if opened_before:
            assert (await client.get("/preferences")).status_code == 200
        with locked(where, "EXCLUSIVE"):
            asking = [asyncio.create_task(client.get("/preferences")) for _ in range(40)]
            await asyncio.sleep(0)
            for path in ("/", "/healthz", "/modes"):
                assert (await client.get(path)).status_code == 200
            assert (await client.post("/generate", json={"prompt": "p"})).status_code == 200
            answers = await asyncio.gather(*asking, client.get("/frontier"), judged(client))
        assert {answer.status_code for answer in answers} == {503}
        for answer in answers:
            assert answer.json()["error"]["type"] == "store_unavailable"
            assert "retry-after" in answer.headers
            assert where not in answer.text
        assert (await client.get("/preferences")).status_code == 200
        assert (await judged(client)).status_code == 200


async def test_reads_need_no_lock_for_writing(where: str) -> None:
    async with serving(make_runtime(store=where)) as (_, client):
        with locked(where, "IMMEDIATE"):
            read = [await client.get(path) for path in ("/preferences", "/loadtests", "/frontier")]
            assert [answer.status_code for answer in read] == [200] * 3
            assert len(read[0].json()["standings"]) == 1
            assert (await judged(client)).status_code == 503


async def test_a_store_that_hangs_holds_its_own_threads_only(where: str) -> None:
    """More work than a default executor has threads; none of it ends before the test says so."""
    released = threading.Event()

    def hang(_: Store) -> None:
        released.wait(60)

    async with serving(make_runtime(store=where)) as (app, client):
        hanging = [asyncio.create_task(app.state.store.use(hang)) for _ in range(60)]
        try:
            done, _ = await asyncio.wait(hanging, return_when=asyncio.FIRST_COMPLETED)
            assert all(isinstance(task.exception(), StoreError) for task in done)
            assert (await client.get("/docs")).status_code == 200
            assert await asyncio.to_thread(lambda: "free") == "free"
            refused = await client.get("/preferences")
            assert (refused.status_code, "busy" in refused.text) == (503, True)
        finally:
            released.set()
            await asyncio.gather(*hanging, return_exceptions=True)
        assert (await client.get("/preferences")).status_code == 200


async def test_a_request_that_leaves_gives_its_place_back_when_its_thread_ends(where: str) -> None:
    store, released = AsyncStore(where), threading.Event()
    await store.use(human_win_rates)
    leaving = [
        asyncio.create_task(store.use(lambda _: released.wait(60)))
        for _ in range(async_store_module._THREADS)
    ]
    await asyncio.sleep(0.01)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    with pytest.raises(StoreError, match="busy"):
        await store.use(human_win_rates)
    released.set()
    async with asyncio.timeout(30):
        while True:
            try:
                assert len(await store.use(human_win_rates)) == 1
                break
            except StoreError:
                continue
    store.close()


async def test_a_full_store_is_503_and_still_read(where: str) -> None:
    async with serving(make_runtime(store=where)) as (app, client):
        await client.get("/preferences")

        @event.listens_for(app.state.store._store._engine, "begin")
        def full(connection: Any) -> None:
            connection.exec_driver_sql("PRAGMA max_page_count=1")

        long = Preference("p" * 100_000, VERDICT.a, VERDICT.b, "a")
        with pytest.raises(StoreError, match="full"):
            await app.state.store.use(lambda store: add_preference(store, long))
        assert (await client.get("/preferences")).status_code == 200


def test_a_store_that_cannot_be_written_is_read(where: str) -> None:
    """Opening an up-to-date store writes nothing."""
    store = open_store(f"sqlite:///file:{where}?mode=ro&uri=true")
    assert len(human_win_rates(store)) == 1
    with pytest.raises(StoreError, match="readonly"):
        add_preference(store, VERDICT)
    store.close()


async def test_two_services_on_one_store_take_turns(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_store_module, "PATIENCE_S", 30.0)
    stores = [AsyncStore(where) for _ in range(2)]
    await asyncio.gather(
        *(stores[i % 2].use(lambda store: add_preference(store, VERDICT)) for i in range(6))
    )
    for store in stores:
        [line] = await store.use(human_win_rates)
        assert line.wins + line.losses == 7
        store.close()


def replace(file: Path, how: str, aside: Path) -> None:
    """Do to a file what its owner may do while services use it; a backup has three verdicts."""
    if how == "deleted":
        file.unlink()
    elif how == "moved away":
        file.rename(aside)
    else:
        backup = open_store(str(aside))
        for _ in range(3):
            add_preference(backup, VERDICT)
        backup.close()
        aside.replace(file)


@pytest.mark.parametrize("how", ["deleted", "replaced", "moved away"])
async def test_a_file_that_was_replaced_is_opened_anew(
    where: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections keep the old file, and SQLite would not write to it until the service is restarted."""
    monkeypatch.setattr(async_store_module, "PATIENCE_S", 30.0)  # three writers take turns
    file, aside = Path(where), tmp_path / "aside.db"
    async with serving(make_runtime(store=where)) as (_, client):
        assert (await judged(client)).status_code == 200
        before = await verdicts(client)
        replace(file, how, aside)
        told = await asyncio.gather(*(judged(client) for _ in range(3)))
        assert [one.status_code for one in told] == [200] * 3
        assert (before, await verdicts(client)) == (2, 6 if how == "replaced" else 3)
        if how == "moved away":  # and back
            shutil.move(aside, file)
            assert await verdicts(client) == 2
            assert (await judged(client)).status_code == 200


async def test_a_file_whose_directory_is_away_is_503_until_it_is_back(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_store_module, "PATIENCE_S", 30.0)
    folder = Path(where).parent
    async with serving(make_runtime(store=where)) as (_, client):
        assert await verdicts(client) == 1
        shutil.move(folder, f"{folder}-away")
        assert (await client.get("/preferences")).status_code == 503
        assert (await judged(client)).status_code == 503
        shutil.move(f"{folder}-away", folder)
        assert (await judged(client)).status_code == 200
        assert await verdicts(client) == 2


async def verdicts(client: httpx.AsyncClient) -> int:
    """The number of verdicts that the store has."""
    found = (await client.get("/preferences")).json()["standings"]
    return sum(one["wins"] + one["losses"] for one in found)


@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_a_store_without_a_directory_is_refused_at_the_start(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(StoreError, match=r"missing/runs\.db does not exist; create it"):
        create_app(make_runtime(store=f"{prefix}{tmp_path}/missing/runs.db"))
    with pytest.raises(StoreError, match="is a directory"):
        create_app(make_runtime(store=f"{prefix}{tmp_path}"))


def test_other_places_are_not_judged_by_their_names(tmp_path: Path) -> None:
    for place in (None, "postgresql+psycopg://me@host/db", "sqlite:///:memory:", "runs.db"):
        check_place(place)
    check_place(f"sqlite:///{tmp_path}/new.db?timeout=1")


async def test_a_result_is_kept_once_the_store_is_free(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "_STORE_AGAIN_S", 0.01)
    store = AsyncStore(where)
    runs, run = LoadTestRuns(store), Run("0001abcd", "", tmp_path, (), None)
    with locked(where, "EXCLUSIVE"):
        keeping = asyncio.create_task(runs._keep(run, json.dumps(RESULT)))
        await asyncio.sleep(0.2)
        assert not keeping.done()
    await keeping
    assert run.message is None
    assert await store.use(lambda opened: get_run(opened, "0001abcd")) == RESULT
    with locked(where, "EXCLUSIVE"):
        await runs.close()  # nothing waits for a store while the server ends
        await runs._keep(run, json.dumps(RESULT))
    assert "could not be stored" in (run.message or "")
    store.close()
