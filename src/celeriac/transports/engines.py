"""One database in one process: the engine that all its transports share, and a look at whether it has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from celeriac.errors import ConfigurationError
from celeriac.sql import engine as sql_engine
from celeriac.sql import forks
from celeriac.sql.schema import create_tables

__all__ = ["SharedEngine", "acquire"]

T = TypeVar("T")


class SharedEngine:
    """A database as this process's transports use it, from any thread."""

    def __init__(self, url: sa.URL) -> None:
        self.users = 0
        self._engine = sql_engine.create_engine(url)
        self._lock = threading.Lock()
        self._connection: Any = None
        self._cursor: Any = None
        self._opened = 0
        forks.run_before_fork(self._disconnect)

    def create_tables(self) -> None:
        """Create what is missing. Raises BrokerUnavailable."""
        create_tables(self._engine)

    def write(self, operation: Callable[[Connection], T]) -> T:
        """Run ``operation`` in a write transaction. It may run more than once. Raises BrokerUnavailable."""
        return sql_engine.write(self._engine, operation)

    def read(self, operation: Callable[[Connection], T]) -> T:
        """Run ``operation`` in a read transaction. Raises BrokerUnavailable."""
        return sql_engine.read(self._engine, operation)

    def version(self) -> Hashable:
        """What is different after any connection, of this process or another, has committed."""
        # In this order: while a fork is under way nobody holds the lock, so the child does not inherit it held.
        with forks.Transaction(), self._lock:
            try:
                if self._cursor is None:
                    self._connection = self._engine.raw_connection()
                    self._connection.detach()
                    self._cursor = self._connection.cursor()
                    self._opened += 1
                [number] = self._cursor.execute("PRAGMA data_version").fetchone()
            except (DBAPIError, self._engine.dialect.loaded_dbapi.Error) as exc:
                self._disconnect()
                if sql_engine.is_busy(exc):
                    return object()
                raise sql_engine.unavailable(exc, self._engine) from exc
            # The numbers of two connections do not compare: a new connection counts as a change.
            return self._opened, number

    def _disconnect(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close all connections."""
        with forks.Transaction(), self._lock:
            self._disconnect()
        self._engine.dispose()


_engines: dict[str, SharedEngine] = {}
_lock = threading.Lock()


def acquire(url: str) -> tuple[SharedEngine, Callable[[], None]]:
    """This process's engine for a SQLite URL, with its tables, and what gives it back; the last one closes it.

    Raises ConfigurationError for a URL that cannot work here, and BrokerUnavailable.
    """
    location = sql_engine.absolute_url(url)
    if location.get_backend_name() != "sqlite":
        raise ConfigurationError(f"The broker URL {url!r} is not one of SQLite.")
    key = location.render_as_string(hide_password=False)
    with _lock:
        engine = _engines.get(key)
        if engine is None:
            engine = SharedEngine(location)
            engine.create_tables()
            _engines[key] = engine
        engine.users += 1
    return engine, lambda: _release(key, engine)


def _release(key: str, engine: SharedEngine) -> None:
    with _lock:
        engine.users -= 1
        if engine.users > 0:
            return
        if _engines.get(key) is engine:
            del _engines[key]
    engine.close()


def _start_over_in_child() -> None:
    # What the parent's transports hold is not the child's to give back.
    global _lock
    _lock = threading.Lock()
    _engines.clear()


forks.run_in_child(_start_over_in_child)
