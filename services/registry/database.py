"""Opens the registry's database, SQLite or PostgreSQL, and brings its tables up to date.

Every transaction has the same promise on both: writers of one model take turns (a lock on the model's row; on SQLite
one writer at a time altogether), readers are not held up, and a database that is away is an Unavailable.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from penstock.errors import ResourceExhausted, Unavailable

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK_OF_MIGRATIONS = 0x70656E73  # "pens"; the number of PostgreSQL's advisory lock
LOCK_OF_BUILDS = 0x70656E62  # "penb"
LOCK_OF_TENANTS = 0x70656E74  # "pent"


class Database:
    """An engine and its transactions; methods block, call them from a thread.

    Args:
        url: SQLAlchemy URL, `sqlite:////path/file.db` or `postgresql+psycopg://...`; a file's folder is made.
    """

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            self._engine = _sqlite(parsed)
        elif parsed.get_backend_name() == "postgresql":
            self._engine = _postgresql(parsed)
        else:
            raise ValueError(f"database: {parsed.get_backend_name()} is neither sqlite nor postgresql")

    def migrate(self, revision: str = "head") -> None:
        """Brings the tables to this release's shape, or an older one's, in one transaction; two registries may start at
        once."""
        with self.write() as connection:
            take_turns(connection, _LOCK_OF_MIGRATIONS)
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, revision)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view. Raises Unavailable."""
        with _away_is_unavailable(), self._engine.connect() as connection:
            options = {"isolation_level": "REPEATABLE READ"} if connection.dialect.name == "postgresql" else {}
            with connection.execution_options(**options).begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: all of it, or nothing when the body raises. Raises Unavailable, and
        ResourceExhausted when there is no room."""
        with _away_is_unavailable(), self._engine.connect() as raw:
            connection = raw.execution_options(penstock_write=True)
            with connection.begin():
                yield connection

    def ping(self) -> None:
        """Raises Unavailable when the database does not answer."""
        with self.read() as connection:
            connection.execute(sa.select(1))

    def close(self) -> None:
        self._engine.dispose()


def take_turns(connection: Connection, lock: int) -> None:
    """Until this transaction ends no other is beyond this for the same number. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def insert_if_absent(connection: Connection, table: sa.Table, **values: Any) -> None:
    """Inserts a row unless its primary key exists."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql as dialect
    else:
        from sqlalchemy.dialects import sqlite as dialect  # type: ignore[no-redef]
    connection.execute(dialect.insert(table).values(**values).on_conflict_do_nothing())


def _is_full(error: Exception) -> bool:
    """Whether a disk is full, in the words of sqlite (https://sqlite.org/rescode.html#full) or of PostgreSQL
    (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""
    origin = getattr(error, "orig", None)
    return getattr(origin, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(origin, "sqlstate", "") == "53100"


@contextmanager
def _away_is_unavailable() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        if _is_full(error):
            raise ResourceExhausted(
                "the registry's disk is full: nothing can be changed until there is room; what is there can be read",
                detail=str(error),
                retry_after=60.0,
            ) from error
        raise Unavailable("the registry's database does not answer; try again later", detail=str(error)) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable("the registry's database went away; try again later", detail=str(error)) from error
        raise


def _sqlite(url: sa.URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ValueError("database: SQLite needs a file, such as sqlite:///data/registry.db")
    Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = sa.create_engine(url, pool_size=8, max_overflow=8, connect_args={"timeout": 15})

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        # Transactions begin where we say, not where Python's driver guesses.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA busy_timeout = 15000")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A writer asks for the lock at once: upgrading a reader later fails without waiting when another writes.
        writes = connection.get_execution_options().get("penstock_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: sa.URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return sa.create_engine(
        url,
        pool_size=8,
        max_overflow=8,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 5, "options": "-c statement_timeout=15000 -c lock_timeout=10000"},
    )
