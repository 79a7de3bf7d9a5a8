"""The store: runs, tags, preferences and migrations, on SQLite and on PostgreSQL if it can be started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from service.loadtest.measured_models import measured_models
from service.store import (
    Preference,
    RolloutChange,
    Shown,
    Store,
    StoredCheckpoint,
    StoredEvent,
    StoredRollout,
    add_preference,
    add_run,
    delete_auto_table,
    delete_run,
    delete_tune_run,
    find_run,
    get_run,
    human_win_rates,
    label_run,
    list_runs,
    list_tune_runs,
    open_store,
    read_auto_table,
    read_rollout,
    read_tune_run,
    save_auto_table,
    save_rollout,
    save_tune_run,
    save_tune_table,
    tag_run,
)
from service.store.database import migrate, migration_config
from service.store.tables import Base, DistilCheckpointRow, RunRow
from service.store.tune import MOST_RUNS
from vbon.errors import StoreError


def run(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{number:04d}abcd",
        "created": f"2026-01-{number:02d}T10:00:00+00:00",
        "schema_version": "1.0",
        "decision": [f"decision {number}", "more"],
        "server": {"url": "http://host"},
        "figures": {"e2e": [1.5, None, "<script>"]},
        **changes,
    }


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A temporary PostgreSQL server; skips the test if its programs or a driver are missing."""
    url = os.environ.get("VBON_TEST_POSTGRES")
    if url:
        yield url
        return
    pytest.importorskip("psycopg")
    programs = postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; install it, or set VBON_TEST_POSTGRES to a URL")
    with tempfile.TemporaryDirectory(prefix="vbon-postgres-") as folder:
        # PostgreSQL refuses to run as root, which then starts it as another user.
        user = "nobody" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(folder, user)
        data = f"{folder}/data"

        def run_program(name: str, *arguments: str) -> None:
            command = [str(programs / name), "-D", data, *arguments]
            subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, user=user, cwd=folder, timeout=60
            )

        run_program("initdb", "-U", "test", "-A", "trust", "--no-sync")
        # No data has to survive, so nothing waits for the disk.
        options = f"-c listen_addresses='' -c fsync=off -k {folder}"
        run_program("pg_ctl", "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql+psycopg://test@/postgres?host={folder}"
        finally:
            run_program("pg_ctl", "-m", "immediate", "-w", "stop")


def postgres_programs() -> Path | None:
    """The directory of initdb and pg_ctl; Debian keeps them off the path."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next(
        (one for one in found if (one / "initdb").exists() and (one / "pg_ctl").exists()), None
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store without tables."""
    where = str(tmp_path / "runs.db")
    if request.param == "postgresql":
        where = request.getfixturevalue("postgres_url")
        engine = create_engine(where)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        engine.dispose()
    return where


@pytest.fixture
def store(empty: str) -> Iterator[Store]:
    opened = open_store(empty)
    yield opened
    opened.close()


def test_what_is_put_in_comes_out(store: Store) -> None:
    add_run(store, run(1), ["before"])
    add_run(store, run(2))
    summary, result = find_run(store, "0001")
    assert result == run(1)
    assert (summary.id, summary.headline, summary.tags) == ("0001abcd", "decision 1", ("before",))
    assert summary.created.isoformat() == "2026-01-01T10:00:00+00:00"
    assert [one.id for one in list_runs(store)] == ["0002abcd", "0001abcd"]
    assert [one.id for one in list_runs(store, limit=1)] == ["0002abcd"]
    assert (get_run(store, "0001abcd"), get_run(store, "0001")) == (run(1), None)


def test_tags_find_the_newest_and_can_be_taken_off(store: Store) -> None:
    for number in (1, 2, 3):
        add_run(store, run(number))
    for number in ("0001", "0002"):
        assert tag_run(store, number, ["release", "release"]).tags == ("release",)
    assert find_run(store, "release")[0].id == "0002abcd"
    assert [one.id for one in list_runs(store, tag="release")] == ["0002abcd", "0001abcd"]
    assert tag_run(store, "0002", ["release"], remove=True).tags == ()
    assert find_run(store, "release")[0].id == "0001abcd"
    with pytest.raises(StoreError, match="1 to 64"):
        tag_run(store, "0001", [""])


def test_a_continued_run_replaces_itself_and_keeps_its_name_and_tags(store: Store) -> None:
    add_run(store, run(1), ["mine"])
    label_run(store, "0001abcd", name="<b>first</b>", tags=None)
    add_run(store, run(1, decision=["better"]), ["also"])
    (kept,) = list_runs(store)
    assert (kept.headline, kept.tags) == ("better", ("also", "mine"))
    assert kept.name == "<b>first</b>"


def test_a_label_changes_what_it_gives_and_leaves_the_rest(store: Store) -> None:
    add_run(store, run(1), ["old", "both"])
    found = label_run(store, "0001abcd", name="first", tags=["both", "new"])
    assert found is not None
    assert (found.name, found.tags) == ("first", ("both", "new"))
    found = label_run(store, "0001abcd", name=None, tags=[])
    assert found is not None
    assert (found.name, found.tags) == ("first", ())
    found = label_run(store, "0001abcd", name="", tags=None)
    assert found is not None
    assert found.name is None
    assert label_run(store, "0001", name="x", tags=None) is None
    for name, tags in (("x" * 81, None), (None, ["x" * 65])):
        with pytest.raises(StoreError, match=r"80|64"):
            label_run(store, "0001abcd", name=name, tags=tags)


def test_a_deleted_run_leaves_no_tags_and_no_others_go(store: Store) -> None:
    for number in (1, 2):
        add_run(store, run(number), ["same"])
    assert not delete_run(store, "0001")
    assert delete_run(store, "0001abcd")
    assert not delete_run(store, "0001abcd")
    assert [one.id for one in list_runs(store, tag="same")] == ["0002abcd"]
    add_run(store, run(1))  # its tags would come back if they had stayed
    assert find_run(store, "0001")[0].tags == ()


SERVER = {
    "url": "http://host",
    "modes": [
        {"name": "ref", "policy": {"name": "ref", "revision": "sha256:aa"}},
        {
            "name": "bon",
            "policy": {"name": "ref", "revision": "sha256:aa"},
            "reward_model": {"name": "r", "revision": "sha256:rr"},
        },
        {"name": "vbon", "policy": {"name": "vbon", "revision": "sha256:bb"}},
    ],
    "policies": [{"name": "vbon", "revision": "sha256:bb"}, {"name": "x", "revision": "sha256:cc"}],
    "gold_model": {"name": "g", "revision": "sha256:gg"},
}


def test_a_run_is_listed_with_the_models_that_it_measured(store: Store) -> None:
    """Also runs that were stored before the column for them existed."""
    cells = [{"mode": "bon", "variant": "bon@vbon (N=2)"}, {"mode": "ref", "variant": "ref"}]
    add_run(store, run(1, server=SERVER, cells=cells[1:]))
    add_run(store, run(2, server=SERVER, cells=cells))
    add_run(store, run(3))
    expected = [
        {},
        {"ref": "sha256:aa", "reward": "sha256:rr", "vbon": "sha256:bb", "gold": "sha256:gg"},
        {"ref": "sha256:aa", "gold": "sha256:gg"},
    ]
    assert [one.models for one in list_runs(store)] == expected
    with store._engine.begin() as connection:
        config = migration_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
    migrate(store._engine)
    assert [one.models for one in list_runs(store)] == expected


@pytest.mark.parametrize(
    ("variants", "policies"),
    [
        (["bon@vbon-2 (N=2)"], {"vbon-2"}),  # neither vbon, which its name begins with, nor ref
        (["bon@vbon (N=2)", "bon (N=2)"], {"vbon", "ref"}),
        (["bon (N=2)"], {"ref"}),
    ],
)
def test_the_measured_policies_are_those_of_the_variants(
    variants: list[str], policies: set[str]
) -> None:
    served = [{"name": name, "revision": name[::-1]} for name in ("ref", "vbon", "vbon-2")]
    modes = [{"name": "bon", "policy": served[0], "reward_model": {"revision": "r"}}]
    cells = [{"mode": "bon", "variant": variant} for variant in variants]
    found = measured_models({"server": {"modes": modes, "policies": served}, "cells": cells})
    assert found == {"reward": "r", **{name: name[::-1] for name in policies}}


@pytest.mark.parametrize(
    "part",
    [
        {"server": None},
        {"server": "http://host"},
        {"cells": {"bon": 1}},
        {"cells": ["bon"]},
        {"modes": [{"name": "bon", "policy": "ref", "reward_model": {"name": "r"}}]},
        {"modes": ["bon"], "policies": ["ref", {"name": "ref"}], "gold_model": {"name": "g"}},
    ],
)
def test_a_stored_result_without_some_part_still_opens_the_store(
    tmp_path: Path, part: dict[str, Any]
) -> None:
    """Results are kept as they came, so the migration that reads their models meets every version's."""
    cells = [{"mode": "bon", "variant": "bon@ref"}, {"mode": "bon", "variant": "bon"}]
    top = {name: value for name, value in part.items() if name in {"server", "cells"}}
    server = {"url": "x", **{name: part[name] for name in part.keys() - top.keys()}}
    store = open_store(str(tmp_path / "runs.db"))
    add_run(store, run(1))
    with store.session() as session:
        kept = session.get_one(RunRow, "0001abcd")
        kept.result = run(1) | {"cells": cells, "server": server} | top
    with store._engine.begin() as connection:
        config = migration_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0004")
    migrate(store._engine)
    assert [one.models for one in list_runs(store)] == [{}]
    store.close()


def test_names_that_fit_none_or_several_are_told(store: Store) -> None:
    add_run(store, run(1))
    add_run(store, run(2))
    for name, words in (("000", "several runs"), ("%", "no run"), ("", "no run"), ("x", "no run")):
        with pytest.raises(StoreError, match=words):
            find_run(store, name)


def test_human_win_rates_count_both_sides(store: Store) -> None:
    bon, vbon = Shown("bon", 16, "b", 2.0), Shown("vbon", 1, "v", 1.0)
    verdicts = [(bon, vbon, "a"), (vbon, bon, "b"), (vbon, bon, "a"), (bon, vbon, "tie")]
    for a, b, winner in verdicts:
        add_preference(store, Preference("prompt", a, b, winner))  # type: ignore[arg-type]
    add_preference(store, Preference("p", Shown("ref", 1, "r"), bon, "b"))
    first, second = human_win_rates(store)
    assert (first.mode, first.n, first.against, first.against_n) == ("bon", 16, "vbon", 1)
    assert (first.wins, first.losses, first.ties) == (2, 1, 1)
    assert first.win_rate.mean == pytest.approx(2.5 / 4)
    assert first.reward_win_rate is not None
    assert first.reward_win_rate.mean == 1.0
    assert (second.mode, second.against, second.wins) == ("bon", "ref", 1)
    assert second.reward_win_rate is None
    add_preference(store, Preference("p", bon, Shown("ref", 1, "r"), "bad"))
    second = human_win_rates(store)[1]
    assert (second.wins, second.ties, second.both_bad) == (1, 0, 1)
    assert second.win_rate.mean == pytest.approx(1.5 / 2)
    with pytest.raises(ValueError, match="both answers are of mode bon"):
        add_preference(store, Preference("p", bon, bon, "a"))


def test_verdicts_on_another_revision_are_another_pair(store: Store) -> None:
    old, new = (Shown("vbon", 1, "v", revision=name) for name in ("old", "new"))
    bon = Shown("bon", 16, "b", revision="r")
    for a, b, winner in ((bon, old, "a"), (old, bon, "b"), (new, bon, "a")):
        add_preference(store, Preference("p", a, b, winner))  # type: ignore[arg-type]
    found = {
        (line.revision, line.against_revision): (line.wins, line.losses)
        for line in human_win_rates(store)
    }
    assert found == {("r", "old"): (2, 0), ("r", "new"): (0, 1)}


def test_a_verdict_on_texts_with_a_nul_is_kept(store: Store) -> None:
    """PostgreSQL takes no NUL in a text, and a model may write one."""
    sides = (Shown("bon", 2, "one\0", 0.5), Shown("ref", 1, "\0", 0.1))
    add_preference(store, Preference("a\0b", *sides, "a"))
    assert [line.wins for line in human_win_rates(store)] == [1]
    assert list_runs(store, tag="a\0b") == []


def test_a_failed_transaction_leaves_nothing(store: Store) -> None:
    with pytest.raises(StoreError, match="1 to 64"):
        add_run(store, run(1), ["x" * 65])
    assert list_runs(store) == []


def submitted(number: int) -> StoredCheckpoint:
    decision = {"verdict": "promote", "reasons": ["it wins"], "figures": {"a": 1.5}, "spent": {}}
    day = datetime(2026, 1, number, tzinfo=UTC)
    return StoredCheckpoint(f"{number:04d}", day, f"/rounds/{number}", "sha256:aa", decision)


def test_a_rollout_is_read_as_it_was_written_last(store: Store) -> None:
    assert read_rollout(store, events=9) == StoredRollout(None, [], [])
    day = datetime(2026, 2, 1, tzinfo=UTC)
    event = StoredEvent("0001", "submitted", {"verdict": "promote"}, day)
    first = RolloutChange(1, {"a": [1.25]}, {"0001": "waiting"}, [event], submitted(1))
    (stored,) = save_rollout(store, first)
    assert stored == replace(event, id=stored.id)
    assert stored.id > 0
    save_rollout(store, RolloutChange(2, {"a": [2.5]}, {"0001": "rolling"}))
    later = [replace(event, checkpoint="0002", kind=kind) for kind in ("submitted", "started")]
    both = {"0001": "retired", "0002": "rolling"}
    save_rollout(store, RolloutChange(3, {"a": []}, both, later, submitted(2)))
    found = read_rollout(store, events=2)
    assert (found.state, found.number) == ({"a": []}, 3)
    assert found.checkpoints == [submitted(1), submitted(2)]
    assert [(one.checkpoint, one.kind) for one in found.events] == [
        ("0002", "submitted"), ("0002", "started"),
    ]  # fmt: skip
    with store.session(reads_only=True) as session:
        rows = session.scalars(select(DistilCheckpointRow).order_by(DistilCheckpointRow.id))
        assert [row.status for row in rows] == ["retired", "rolling"]


def test_a_change_of_a_rollout_that_comes_too_late_changes_nothing(store: Store) -> None:
    """A database may finish what its caller has given up waiting for, after a later change."""
    save_rollout(store, RolloutChange(2, {"a": 2}, {"0001": "live"}, (), submitted(1)))
    event = StoredEvent("0001", "started", {}, datetime.now(UTC))
    for number in (1, 2):
        late = RolloutChange(number, {"a": 1}, {"0001": "waiting"}, [event])
        assert save_rollout(store, late) == []
    found = read_rollout(store, events=9)
    assert (found.state, found.number, found.events) == ({"a": 2}, 2, [])


def test_a_change_of_a_rollout_that_cannot_be_written_leaves_nothing(store: Store) -> None:
    """State, checkpoint and events are written together: the event's checkpoint does not exist."""
    save_rollout(store, RolloutChange(1, {"a": 1}, {"0001": "waiting"}, (), submitted(1)))
    unknown = StoredEvent("nobody", "started", {}, datetime.now(UTC))
    statuses = {"0001": "rolling", "0002": "waiting"}
    with pytest.raises(StoreError):
        save_rollout(store, RolloutChange(2, {"a": 2}, statuses, [unknown], submitted(2)))
    found = read_rollout(store, events=9)
    assert (found.state, found.checkpoints, found.events) == ({"a": 1}, [submitted(1)], [])


def test_one_table_of_measured_settings_is_kept_until_it_is_removed(store: Store) -> None:
    made = datetime(2026, 11, 1, 12, tzinfo=UTC)
    assert read_auto_table(store) is None
    assert not delete_auto_table(store)
    for content in (
        {"rows": [{"n": 4, "gold": None}]},
        {"rows": [{"n": 0.5}], "\u00fc": "<script>"},
    ):
        save_auto_table(store, content, made)
        assert read_auto_table(store) == content
    assert delete_auto_table(store)
    assert not delete_auto_table(store)
    assert read_auto_table(store) is None


def test_tuning_runs_are_replaced_by_their_next_report_and_the_oldest_make_room(
    store: Store,
) -> None:
    begun = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def report(text: str = "which\0one", trials: int = 1) -> dict[str, Any]:
        question = {"text": text}
        return {
            "status": "running",
            "question": question,
            "trials_done": trials,
            "next_within_s": 9,
        }

    ids = [f"{number:012x}" for number in range(MOST_RUNS)]
    for place, run_id in enumerate(ids):
        save_tune_run(store, run_id, report(), begun + timedelta(minutes=place))
    assert [one.id for one in list_tune_runs(store)] == ids[::-1]
    assert save_tune_table(store, ids[0], {"rows": [1]})
    assert not save_tune_table(store, "nobody", {})
    save_tune_run(store, ids[0], report("again", 2), begun + timedelta(hours=5))
    found = read_tune_run(store, ids[0])
    assert found is not None
    assert (found.report, found.table) == (report("again", 2), {"rows": [1]})
    assert (found.summary.started, found.summary.trials) == (begun, 2)
    save_tune_run(store, "f" * 12, report(), begun + timedelta(hours=6))
    kept = {one.id for one in list_tune_runs(store)}
    assert kept == {*ids, "f" * 12} - {ids[1]}  # without news for longest
    assert delete_tune_run(store, ids[0])
    assert not delete_tune_run(store, ids[0])
    assert read_tune_run(store, ids[0]) is None


def test_migrations_make_the_tables_of_the_code(store: Store) -> None:
    """Migrations run up, down and up again, and leave the schema that the models describe."""
    engine = store._engine
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        config = migration_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    migrate(engine)
    migrate(engine)
    assert list_runs(store) == []


def test_the_tables_can_be_written_for_postgresql() -> None:
    dialect = postgresql.dialect()
    text = "".join(
        str(CreateTable(t).compile(dialect=dialect)) for t in Base.metadata.sorted_tables
    )
    assert "result JSON NOT NULL" in text
    assert "TIMESTAMP WITH TIME ZONE" in text
    assert "SERIAL" in text


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nonsense://x", "neither a SQLite file"),
        ("postgresql+nodriver://x", "neither a SQLite file"),
        ("/nowhere/at/all/runs.db", "cannot use the store"),
    ],
)
def test_a_store_that_cannot_be_opened_says_why(where: str, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        open_store(where)


def test_passwords_are_not_told() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError) as caught:
        open_store("postgresql+psycopg://me:hunter2@127.0.0.1:1/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        "postgres://vbon:s3cret@db/x",
        "postgresql+psycopg://vbon:s3cret@db:port/x",
        "postgresql+psycopg://vbon:secret@s3cret@db/x",
        "sqlite://vbon:s3cret@db/x",
        "postgresql+psycopg://db:s3cret/x",
    ],
)
def test_a_wrong_url_is_not_repeated(where: str) -> None:
    with pytest.raises(
        StoreError, match=r"neither a SQLite file.*postgresql\+psycopg://user@"
    ) as caught:
        open_store(where)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_what_a_url_asks_for_is_not_told() -> None:
    with pytest.raises(StoreError, match="cannot use the store") as caught:
        open_store("sqlite:///file:/nowhere/at/all/runs.db?password=s3cret&uri=true")
    assert "s3cret" not in str(caught.value)


def test_processes_may_open_a_new_store_at_once_and_all_write_to_it(empty: str) -> None:
    """As front ends of a fleet that is deployed for the first time."""
    code = f"""
import os, sys
from service.store import (
    Preference, Shown, add_preference, list_runs, open_store, save_tune_run,
)

report = {{"status": "running", "question": {{"text": "q"}}, "trials_done": 1, "next_within_s": 1.0}}

reading, writing = os.pipe()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)  # until the parent lets all go
        store = open_store({empty!r})
        assert list_runs(store) == []
        shown = Shown("bon", 4, "x", 1.0, "r")
        for number in range(5):
            add_preference(store, Preference("p", shown, Shown("ref", 1, "y", 0.0, "r"), "a"))
            save_tune_run(store, f"{{os.getpid():010}}{{number:02}}", report)
        store.close()
        os._exit(0)
    children.append(child)
os.close(writing)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    opened = open_store(empty)
    [rate] = human_win_rates(opened)
    assert (rate.wins, rate.losses) == (20, 0)
    assert len(list_tune_runs(opened)) == 20
    opened.close()


def test_threads_may_open_stores_at_once(tmp_path: Path) -> None:
    """Threads take turns, because alembic keeps its context in a module variable."""
    with ThreadPoolExecutor(4) as together:
        stores = list(together.map(lambda i: open_store(str(tmp_path / f"{i}.db")), range(4)))
    assert [list_runs(store) for store in stores] == [[]] * 4
