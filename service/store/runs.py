"""Load tests in the store: add, list, find and tag them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, defer

from service.loadtest.measured_models import measured_models
from service.store.database import Store
from service.store.tables import RunRow, TagRow, storable
from vbon.errors import StoreError

MAX_TAG = 64
MAX_NAME = 80


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run without its result.

    Attributes:
        headline: the first sentence of its decision.
        name: given by a person; ``None`` if nobody has.
        models: the revision of each model measured, by its name.
    """

    id: str
    created: datetime
    url: str
    headline: str
    tags: tuple[str, ...]
    name: str | None = None
    models: dict[str, str] = field(default_factory=dict)


def add_run(store: Store, result: dict[str, Any], tags: Sequence[str] = ()) -> None:
    """Store a result, in the JSON form of :class:`service.loadtest.schema.LoadTestResult`.

    A stored run of the same id, which was continued, is replaced and keeps its name and tags.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session() as session:
        row = session.get(RunRow, result["id"])
        if row is None:
            row = RunRow(id=result["id"])
            session.add(row)
        row.created = datetime.fromisoformat(result["created"])
        row.url = result["server"]["url"]
        row.schema_version = result["schema_version"]
        row.headline = result["decision"][0] if result["decision"] else ""
        row.models = measured_models(result)
        row.result = result
        _add_tags(row, tags)


def list_runs(
    store: Store, *, tag: str | None = None, limit: int | None = None
) -> list[RunSummary]:
    """The newest runs first; only those with ``tag``, if given."""
    query = select(RunRow).options(defer(RunRow.result)).order_by(RunRow.created.desc(), RunRow.id)
    if tag is not None:
        query = query.where(RunRow.tags.any(TagRow.tag == storable(tag)))
    with store.session(reads_only=True) as session:
        return [_summary(row) for row in session.scalars(query.limit(limit))]


def find_run(store: Store, run: str) -> tuple[RunSummary, dict[str, Any]]:
    """A run and its result by its id, the start of its id, or a tag (then the newest run with the tag).

    Raises:
        StoreError: no run matches, or several ids start this way.
    """
    with store.session(reads_only=True) as session:
        row = _find(session, run)
        return _summary(row), row.result


def get_run(store: Store, run_id: str) -> dict[str, Any] | None:
    """The result of the run with exactly this id, or ``None``.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session(reads_only=True) as session:
        row = session.get(RunRow, run_id)
        return None if row is None else row.result


def newest_results(store: Store, limit: int) -> list[dict[str, Any]]:
    """The results of the newest runs, newest first.

    Raises:
        StoreError: the database reported an error.
    """
    query = select(RunRow.result).order_by(RunRow.created.desc(), RunRow.id).limit(limit)
    with store.session(reads_only=True) as session:
        return list(session.scalars(query))


def tag_run(store: Store, run: str, tags: Sequence[str], *, remove: bool = False) -> RunSummary:
    """Add tags to a run, or remove them.

    Raises:
        StoreError: no run matches, or a tag is empty or too long.
    """
    with store.session() as session:
        row = _find(session, run)
        if remove:
            row.tags = [one for one in row.tags if one.tag not in tags]
        else:
            _add_tags(row, tags)
        return _summary(row)


def label_run(
    store: Store, run_id: str, *, name: str | None, tags: Sequence[str] | None
) -> RunSummary | None:
    """Give the run with exactly this id a name and tags; return ``None`` if the store does not have it.

    Args:
        name: ``None`` leaves the name as it is, an empty one removes it.
        tags: in the place of those that the run has; ``None`` leaves them.

    Raises:
        StoreError: a tag or the name is too long.
    """
    if name is not None and len(name) > MAX_NAME:
        raise StoreError(f"the name {name!r} must have at most {MAX_NAME} characters")
    with store.session() as session:
        row = session.get(RunRow, run_id)
        if row is None:
            return None
        if name is not None:
            row.name = name or None
        if tags is not None:
            row.tags = [one for one in row.tags if one.tag in tags]
            _add_tags(row, tags)
        return _summary(row)


def delete_run(store: Store, run_id: str) -> bool:
    """Delete the run with exactly this id; return whether the store had it.

    Raises:
        StoreError: the database reported an error.
    """
    with store.session() as session:
        row = session.get(RunRow, run_id)
        if row is not None:
            session.delete(row)
        return row is not None


def _find(session: Session, run: str) -> RunRow:
    begin = select(RunRow).where(RunRow.id.startswith(run, autoescape=True)).limit(2)
    found = list(session.scalars(begin)) if run else []
    if len(found) > 1:
        raise StoreError(f"several runs have an id that starts with {run!r}; give more of the id")
    if found:
        return found[0]
    tagged = select(RunRow).where(RunRow.tags.any(TagRow.tag == run))
    newest = session.scalars(tagged.order_by(RunRow.created.desc()).limit(1)).first()
    if newest is None:
        raise StoreError(f"the store has no run with id or tag {run!r}")
    return newest


def _add_tags(row: RunRow, tags: Sequence[str]) -> None:
    for tag in tags:
        if not 1 <= len(tag) <= MAX_TAG:
            raise StoreError(f"tag {tag!r} must have 1 to {MAX_TAG} characters")
        if all(one.tag != tag for one in row.tags):
            row.tags.append(TagRow(tag=tag))


def _summary(row: RunRow) -> RunSummary:
    # SQLite stores no time zone. All times are written in UTC.
    created = row.created if row.created.tzinfo else row.created.replace(tzinfo=UTC)
    tags = tuple(sorted(one.tag for one in row.tags))
    return RunSummary(row.id, created, row.url, row.headline, tags, row.name, row.models or {})
