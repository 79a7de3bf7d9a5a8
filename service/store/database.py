"""Opens a store and migrates its tables."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from vbon.errors import StoreError

_MIGRATIONS = Path(__file__).with_name("migrations")
_LOCK = 4_207_120_570_064_057  # of PostgreSQL; an arbitrary number that no other program uses
PATIENCE_S = 30.0
_READS_ONLY = "reads_only"
_WRONG_URL = (
    "the store is neither a SQLite file nor a database URL; give a file's path or a URL like "
    "postgresql+psycopg://user@host:5432/db, with @, / and : in a password percent-encoded"
)
_MIGRATING = threading.Lock()  # alembic keeps its context in a module variable


class Store:
    """An open store. Threads may share it; each uses sessions of its own.

    Args:
        file: the file of SQLite; ``None`` for other databases.
    """

    def __init__(self, engine: Engine, file: Path | None = None) -> None:
        self._engine = engine
        self._file, self._identity = file, _identity(file)

    @property
    def was_replaced(self) -> bool:
        """True if its file is not the one that was opened: it was deleted, moved or replaced since.

        Connections keep the file that they have opened. They would go on reading it, and SQLite refuses to
        write to it.
        """
        return _identity(self._file) != self._identity

    @contextmanager
    def session(self, *, reads_only: bool = False) -> Iterator[Session]:
        """A transaction, committed at the end of the block and rolled back if the block raises.

        Args:
            reads_only: the block writes nothing, so it need not wait for a transaction that writes.

        Raises:
            StoreError: the database reported an error.
        """
        engine = _reading(self._engine) if reads_only else self._engine
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except SQLAlchemyError as error:
            raise StoreError(f"the store failed: {_said(error)}") from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def open_store(where: str, *, patience_s: float = PATIENCE_S) -> Store:
    """Open a SQLite file, which is created if it does not exist, or a database URL, and migrate it.

    Args:
        patience_s: seconds to wait for a lock of SQLite, or for a connection to PostgreSQL.

    Raises:
        StoreError: the URL is wrong, its driver is not installed, or the database cannot be used.
    """
    url = where if "://" in where else f"sqlite:///{where}"
    try:
        parsed = make_url(url)
        if "@" in (parsed.host or ""):
            raise ValueError  # part of a password that is not percent-encoded
        options: dict[str, float] = {}
        if parsed.get_backend_name() == "sqlite":
            options["timeout"] = patience_s
        elif parsed.get_backend_name() == "postgresql":
            options["connect_timeout"] = math.ceil(patience_s)
        engine = create_engine(parsed, connect_args=options, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ValueError):
        # The URL and the error about it may contain the password, so neither is repeated.
        raise StoreError(_WRONG_URL) from None
    except ImportError as error:
        raise StoreError(
            f"the driver of {parsed.drivername} is not installed ({error}); for PostgreSQL: "
            'pip install -e ".[postgres]" and a URL that begins with postgresql+psycopg://'
        ) from error
    if parsed.get_backend_name() == "sqlite":
        _prepare_sqlite(engine)
    try:
        migrate(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        raise StoreError(
            f"cannot use the store {parsed.set(query={}).render_as_string()}: {_said(error)}"
        ) from error
    return Store(engine, _file_of(parsed))


def _file_of(url: URL) -> Path | None:
    """The file of SQLite; ``None`` for other databases, and for one in memory."""
    name = url.database
    if url.get_backend_name() != "sqlite" or not name or name.startswith((":memory:", "file:")):
        return None
    return Path(name)


def _identity(file: Path | None) -> tuple[int, int] | None:
    try:
        found = None if file is None else file.stat()
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def _prepare_sqlite(engine: Engine) -> None:
    """Make SQLite behave like other databases: transactions cover table changes, foreign keys hold."""

    @event.listens_for(engine, "connect")
    def _connected(connection: object, _: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # SQLAlchemy begins transactions
        connection.execute("PRAGMA foreign_keys=ON")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        # Lock for writing at once: if two processes both read first, one of them could not write afterwards.
        reads_only = connection.get_execution_options().get(_READS_ONLY, False)
        connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")


def _reading(engine: Engine) -> Engine:
    """The same engine, whose transactions take no lock for writing."""
    return engine.execution_options(**{_READS_ONLY: True})


def migrate(engine: Engine) -> None:
    """Migrate the tables to this version; processes and threads take turns."""
    config = migration_config()
    head = ScriptDirectory.from_config(config).get_current_head()
    with _MIGRATING, _reading(engine).begin() as connection:
        if MigrationContext.configure(connection).get_current_revision() == head:
            return  # without a lock, which a read-only or busy store would not grant
    with _MIGRATING, engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if MigrationContext.configure(connection).get_current_revision() == head:
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def migration_config() -> Config:
    """Alembic's configuration with this package's migrations."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _said(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip()
