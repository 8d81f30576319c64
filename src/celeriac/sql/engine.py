"""Engines and transactions: how one SQL database is opened, shared between processes, and waited for.

SQLite runs in WAL mode: readers never wait, one writer at a time, and every write transaction takes its lock
at the start (``BEGIN IMMEDIATE``), so that it cannot fail half-way. "database is locked" never leaves this
module: a writer waits for its turn, and says who could be in the way when that takes longer than
``BUSY_DEADLINE``.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from celeriac.errors import BrokerUnavailable, ConfigurationError

__all__ = ["BUSY_DEADLINE", "create_engine", "data_version", "is_busy", "read", "unavailable", "write"]

T = TypeVar("T")

#: Seconds that a transaction waits for other processes' transactions before it gives up.
BUSY_DEADLINE = 30.0

_MINIMUM_SQLITE = (3, 38, 0)  # json_each's ->> and RETURNING


def create_engine(url: str | URL, *, synchronous: str = "NORMAL") -> Engine:
    """An engine for ``url`` whose connections suit a queue.

    ``synchronous`` is SQLite's: ``NORMAL`` survives the death of any process, ``FULL`` also a power cut.
    Raises ConfigurationError for a URL that cannot work here.
    """
    try:
        parsed = make_url(url)
        engine = sa.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as exc:
        raise ConfigurationError(f"The database URL {str(url)!r} cannot be used: {exc}") from exc
    if engine.dialect.name == "sqlite":
        if sqlite3.sqlite_version_info < _MINIMUM_SQLITE:
            raise ConfigurationError(
                f"SQLite {sqlite3.sqlite_version} is too old: celeriac needs 3.38. "
                "Use a Python built with a newer SQLite, or a server as the broker."
            )
        _tune_sqlite(engine, synchronous)
    return engine


def _tune_sqlite(engine: Engine, synchronous: str) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 50")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA synchronous = {synchronous}")
        cursor.execute("PRAGMA journal_size_limit = 67108864")
        cursor.execute("PRAGMA temp_store = MEMORY")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("celeriac_begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")


def is_busy(exc: BaseException) -> bool:
    """Whether SQLite only asks us to wait for another transaction."""
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    code = getattr(original, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def unavailable(exc: BaseException, engine: Engine) -> BrokerUnavailable:
    """The one clear sentence for a database that does not do its work."""
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    where = engine.url.render_as_string(hide_password=True)
    code = (getattr(original, "sqlite_errorcode", None) or 0) & 0xFF
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        hint = "the file is damaged or no SQLite database. Move it away, or restore a backup."
    elif code == sqlite3.SQLITE_CANTOPEN:
        hint = "the file cannot be opened. Check that its folder exists and that this user may write there."
    elif code == sqlite3.SQLITE_READONLY:
        hint = "the file is read-only. Give this user the right to write to it and to its folder."
    elif code == sqlite3.SQLITE_FULL:
        hint = "the disk is full. Free some space."
    elif is_busy(exc):
        hint = (
            "another process has kept it locked for "
            f"{BUSY_DEADLINE:.0f} seconds. Close the program that holds it."
        )
    else:
        hint = f"{original}"
    return BrokerUnavailable(f"The database {where} cannot be used: {hint}")


def write(engine: Engine, operation: Callable[[Connection], T]) -> T:
    """Run ``operation`` in one write transaction, waiting for other writers. It may run more than once.

    Raises BrokerUnavailable when the database does not let us; what ``operation`` raises itself goes through.
    """
    return _transact(engine, operation, "IMMEDIATE")


def read(engine: Engine, operation: Callable[[Connection], T]) -> T:
    """Run ``operation`` in one read transaction, on a snapshot; never waits for writers."""
    return _transact(engine, operation, "DEFERRED")


def _transact(engine: Engine, operation: Callable[[Connection], T], mode: str) -> T:
    deadline = time.monotonic() + BUSY_DEADLINE
    while True:
        try:
            with engine.connect() as connection:
                connection = connection.execution_options(celeriac_begin=mode)
                with connection.begin():
                    return operation(connection)
        except DBAPIError as exc:
            if not is_busy(exc) or time.monotonic() > deadline:
                raise unavailable(exc, engine) from exc
            time.sleep(random.uniform(0.001, 0.01))


def data_version(connection: Connection) -> int:
    """A number that changes whenever another connection has committed to this SQLite database."""
    value: int = connection.exec_driver_sql("PRAGMA data_version").scalar_one()
    return value
