"""Engines and transactions: how one SQL database is opened, shared between processes, and waited for.

SQLite runs in WAL mode: readers never wait, one writer at a time, and every write transaction takes its lock
at the start (``BEGIN IMMEDIATE``), so that it cannot fail half-way. "database is locked" never leaves this
module: a writer waits for its turn, and says who could be in the way when that takes longer than
``BUSY_DEADLINE``.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import PurePath
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from celeriac.config import working_folder
from celeriac.errors import BrokerUnavailable, ConfigurationError
from celeriac.sql import forks, space

__all__ = [
    "BUSY_DEADLINE",
    "absolute_url",
    "concerns_everybody",
    "create_engine",
    "is_busy",
    "read",
    "unavailable",
    "write",
]

T = TypeVar("T")

#: Seconds that a transaction waits for other processes' transactions before it gives up.
BUSY_DEADLINE = 30.0

#: Seconds of waiting for the write lock at a stretch; in between, this process may fork.
_STRETCH = 0.5

_LOCKED = (
    f"it has been locked for {BUSY_DEADLINE:.0f} seconds. Close the program that writes to it for so long."
)

_MINIMUM_SQLITE = (3, 38, 0)  # the JSON functions are built in since then

# Result codes that say something about the whole database, not about one statement.
_DATABASE_CODES = frozenset(
    [
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    ]
)

# One writer per file and process at a time: threads queue here, where it costs nothing, before they poll the
# file.
_turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
forks.run_in_child(_turns.clear)

# The device and inode that each engine's file had when it was first used.
_files: weakref.WeakKeyDictionary[Engine, tuple[int, int]] = weakref.WeakKeyDictionary()


def absolute_url(url: str | URL) -> URL:
    """``url`` with the file's whole path, so that it means the same after a change of folder.

    Raises ConfigurationError for a URL that cannot work here.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as exc:
        raise ConfigurationError(f"The database URL {str(url)!r} cannot be read: {exc}") from exc
    if parsed.get_backend_name() != "sqlite":
        return parsed
    if parsed.database in (None, "", ":memory:"):
        raise ConfigurationError(
            f"The database URL {str(url)!r} names no file. Use memory:// for a broker in memory."
        )
    return parsed.set(database=str(PurePath(working_folder(), str(parsed.database))))


def create_engine(url: str | URL, *, synchronous: str = "NORMAL") -> Engine:
    """An engine for ``url`` whose connections suit a queue.

    ``synchronous`` is SQLite's: ``NORMAL`` survives the death of any process, ``FULL`` also a power cut.
    Raises ConfigurationError for a URL that cannot work here.
    """
    parsed = absolute_url(url)
    try:
        engine = sa.create_engine(
            parsed,
            hide_parameters=True,  # what tasks are about is nobody's business who reads a log
            pool_pre_ping=parsed.get_backend_name() != "sqlite",
            max_overflow=-1,  # a thread that has to wait waits for the database, with our deadline
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as exc:
        raise ConfigurationError(f"The database URL {str(url)!r} cannot be used: {exc}") from exc
    if engine.dialect.name == "sqlite":
        if sqlite3.sqlite_version_info < _MINIMUM_SQLITE:
            raise ConfigurationError(
                f"SQLite {sqlite3.sqlite_version} is too old: celeriac needs 3.38. "
                "Use a Python built with a newer SQLite, or a server as the broker."
            )
        _tune_sqlite(engine, synchronous)
        forks.close_before_fork(engine)
    return engine


def _tune_sqlite(engine: Engine, synchronous: str) -> None:
    path = str(engine.url.database)

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        for pragma in (
            "busy_timeout = 0",  # we wait ourselves
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            "journal_size_limit = 67108864",
            "cache_size = -8192",
            "wal_autocheckpoint = 4000",  # pages: most are written thrice within that, and so copied once
            "temp_store = MEMORY",
            "secure_delete = FAST",  # some systems build SQLite to write zeros over all that is deleted
        ):
            connection.execute(f"PRAGMA {pragma}").close()
        identity = _identity(path)
        if identity is not None:
            _files.setdefault(engine, identity)

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        if connection.get_execution_options().get("celeriac_immediate"):
            _begin_immediate(connection.connection.dbapi_connection)
        else:
            connection.exec_driver_sql("BEGIN DEFERRED")


def _begin_immediate(connection: Any) -> None:
    # SQLite does not queue its writers: who asks at the right moment is next. So ask often at first, by a
    # cheap statement, and at random moments, so that waiting processes do not ask in step.
    give_up = time.monotonic() + _STRETCH
    pause = 0.0005
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE").close()
        except sqlite3.OperationalError as exc:
            if not is_busy(exc) or time.monotonic() > give_up:
                raise
            time.sleep(random.uniform(0.5, 1.0) * pause)
            pause = min(pause * 1.2, 0.008)
        else:
            return


def _code(exc: BaseException) -> int | None:
    original = exc.orig if isinstance(exc, DBAPIError) else exc
    code: int | None = getattr(original, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # extended codes carry the plain one in their low byte


def is_busy(exc: BaseException) -> bool:
    """Whether SQLite only asks us to wait for another transaction."""
    return _code(exc) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def concerns_everybody(exc: BaseException) -> bool:
    """Whether the database as a whole does not do its work, rather than one statement being wrong."""
    code = _code(exc)
    if code is None:
        return isinstance(exc, (BrokerUnavailable, OperationalError))
    return code in _DATABASE_CODES


#: What does not pass by itself: whoever waits for the database may as well end.
_PERMANENT = frozenset(
    {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
)


#: What strangers may be told of what passes.
_WHY = {
    sqlite3.SQLITE_FULL: "The disk of the database is full.",
    sqlite3.SQLITE_BUSY: "The database is locked.",
    sqlite3.SQLITE_LOCKED: "The database is locked.",
}


def unavailable(exc: BaseException, engine: Engine) -> BrokerUnavailable:
    """The one clear sentence for a database that does not do its work."""
    code = _code(exc)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and space.is_used_up(str(engine.url.database)):
        code = sqlite3.SQLITE_FULL
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        hint = "the file is damaged or no SQLite database. Move it away, or restore a backup."
    elif code == sqlite3.SQLITE_CANTOPEN:
        hint = "the file cannot be opened. Check that its folder exists and that this user may write there."
    elif code == sqlite3.SQLITE_READONLY:
        hint = "the file is read-only. Give this user the right to write to it and to its folder."
    elif code == sqlite3.SQLITE_FULL:
        hint = "the disk is full. Free some space."
    elif code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL):
        hint = "the file system does not do what it should. Use a disk of this machine, not of the network."
    elif is_busy(exc):
        hint = _LOCKED
    else:
        hint = f"{exc.orig if isinstance(exc, DBAPIError) else exc}"
    error = _unusable(engine, hint)
    error.permanent = code in _PERMANENT
    error.why = None if code is None else _WHY.get(code)
    return error


def _unusable(engine: Engine, hint: str) -> BrokerUnavailable:
    where = engine.url.render_as_string(hide_password=True)
    return BrokerUnavailable(f"The database {where} cannot be used: {hint}")


def write(engine: Engine, operation: Callable[[Connection], T]) -> T:
    """Run ``operation`` in one write transaction, waiting for other writers. It may run more than once.

    Raises BrokerUnavailable when the database does not let us; what ``operation`` raises itself goes through.
    """
    deadline = time.monotonic() + BUSY_DEADLINE
    if engine.dialect.name != "sqlite":
        return _transact(engine, operation, deadline, {})
    turn = _turns[str(engine.url.database)]
    if not turn.acquire(timeout=BUSY_DEADLINE):
        raise _unusable(engine, _LOCKED)
    try:
        return _transact(engine, operation, deadline, {"celeriac_immediate": True})
    finally:
        turn.release()


def read(engine: Engine, operation: Callable[[Connection], T]) -> T:
    """Run ``operation`` in one read transaction, on a snapshot; never waits for writers.

    Raises as :func:`write` does.
    """
    return _transact(engine, operation, time.monotonic() + BUSY_DEADLINE, {})


def _transact(
    engine: Engine, operation: Callable[[Connection], T], deadline: float, options: dict[str, Any]
) -> T:
    reused = False
    while True:
        try:
            with forks.Transaction():
                _check_file(engine)
                with engine.connect() as connection:
                    connection.execution_options(**options)
                    with connection.begin():
                        return operation(connection)
        except (DBAPIError, sqlite3.Error) as exc:
            if _code(exc) == sqlite3.SQLITE_FULL and not reused and space.reuse_log(engine):
                reused = True
                continue
            if not is_busy(exc) or time.monotonic() > deadline:
                raise unavailable(exc, engine) from exc
            time.sleep(random.uniform(0.001, 0.01))


def _check_file(engine: Engine) -> None:
    """Refuse a file that was deleted or replaced: SQLite would go on writing to one that nobody finds."""
    if engine.dialect.name != "sqlite":
        return
    known = _files.get(engine)
    if known is not None and known != _identity(str(engine.url.database)):
        raise _unusable(engine, "the file was deleted or replaced while in use. Restart all that use it.")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - in every transaction, and a Path costs thrice as much
    except OSError:
        return None
    return status.st_dev, status.st_ino
