"""The tables. A change here needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

# Names of constraints that do not depend on the database, so that migrations can refer to them.
_NAMES = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def storable(text: str) -> str:
    """The text with spaces for NUL, which PostgreSQL takes in no text."""
    return text.replace("\0", " ")


class Base(DeclarativeBase):
    """Base class of all tables."""

    metadata = MetaData(naming_convention=_NAMES)


class RunRow(Base):
    """One load test; ``result`` is its whole ``result.json``.

    Attributes:
        name: given by a person.
        models: revision of each model measured, by its name.
    """

    __tablename__ = "run"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    url: Mapped[str] = mapped_column(Text)
    schema_version: Mapped[str] = mapped_column(String(16))
    headline: Mapped[str] = mapped_column(Text)
    name: Mapped[str | None] = mapped_column(String(80))
    models: Mapped[dict[str, str] | None] = mapped_column(JSON)
    result: Mapped[dict[str, Any]] = mapped_column(JSON)
    tags: Mapped[list[TagRow]] = relationship(
        cascade="all, delete-orphan", lazy="selectin", order_by="TagRow.tag"
    )


class TagRow(Base):
    """A tag of a run."""

    __tablename__ = "run_tag"

    run_id: Mapped[str] = mapped_column(ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)


class PreferenceRow(Base):
    """A verdict: the answer that a person preferred without knowing which mode wrote it."""

    __tablename__ = "preference"
    __table_args__ = (Index("ix_preference_modes", "mode_a", "mode_b"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    prompt: Mapped[str] = mapped_column(Text)
    mode_a: Mapped[str] = mapped_column(String(128))
    mode_b: Mapped[str] = mapped_column(String(128))
    n_a: Mapped[int] = mapped_column(Integer)
    n_b: Mapped[int] = mapped_column(Integer)
    answer_a: Mapped[str] = mapped_column(Text)
    answer_b: Mapped[str] = mapped_column(Text)
    reward_a: Mapped[float | None] = mapped_column(Float)
    reward_b: Mapped[float | None] = mapped_column(Float)
    revision_a: Mapped[str | None] = mapped_column(Text)
    revision_b: Mapped[str | None] = mapped_column(Text)
    winner: Mapped[str] = mapped_column(String(3))


class DistilCheckpointRow(Base):
    """A checkpoint that was submitted, and the decision that came with it."""

    __tablename__ = "distil_checkpoint"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    path: Mapped[str] = mapped_column(Text)
    revision: Mapped[str] = mapped_column(String(80))
    status: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str] = mapped_column(String(16))
    reasons: Mapped[list[str]] = mapped_column(JSON)
    figures: Mapped[dict[str, Any]] = mapped_column(JSON)
    spent: Mapped[dict[str, Any]] = mapped_column(JSON)


class DistilEventRow(Base):
    """A change of a checkpoint's status or share."""

    __tablename__ = "distil_event"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("distil_checkpoint.id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


class DistilStateRow(Base):
    """The state of the rollout, in the only row; whoever writes it says what it contains."""

    __tablename__ = "distil_state"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(BigInteger)
    updated: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    state: Mapped[dict[str, Any]] = mapped_column(JSON)


class AutoTableRow(Base):
    """The table of measured settings, in the only row; ``content`` is its JSON form."""

    __tablename__ = "auto_table"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    made_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    content: Mapped[dict[str, Any]] = mapped_column(JSON)


class TuneRunRow(Base):
    """A run of ``vbon tune``: its latest report, and the table of all settings that it measured."""

    __tablename__ = "tune_run"

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    started: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    updated: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    next_within_s: Mapped[float] = mapped_column(Float)
    status: Mapped[str] = mapped_column(String(16))
    question: Mapped[str] = mapped_column(Text)
    trials: Mapped[int] = mapped_column(Integer)
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    measured: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
