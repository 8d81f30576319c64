"""A database behind asyncio: one thread that commits in groups, one that reads, one that notices changes.

A write transaction on SQLite costs about as much for one row as for a hundred. So the writing thread takes
all that has been submitted since its last commit, from every task of every loop, and commits it as one
transaction. When one operation of a group fails, the rest is committed without it, so that nobody pays for a
neighbour.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.engine import Connection, Engine

from celeriac.errors import BrokerUnavailable
from celeriac.sql import engine as sql_engine
from celeriac.sql import forks
from celeriac.sql.lanes import Lane
from celeriac.sql.schema import create_tables
from celeriac.sql.stalls import Stall, Stalls
from celeriac.sql.watcher import Watcher

__all__ = ["Database", "create_tables"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Parts:
    engine: Engine
    writer: Lane
    reader: Lane
    watcher: Watcher
    stalls: Stalls

    def stop(self) -> None:
        self.writer.stop()
        self.reader.stop()
        self.watcher.stop()
        self.engine.dispose()


class Database:
    """One SQL database, shared by everything in this process that uses it.

    Get it by :meth:`shared`, then :meth:`open` it; the last :meth:`close` ends its threads. It serves any
    number of event loops, in any threads.
    """

    _instances: dict[str, Database] = {}
    _instances_lock = threading.Lock()

    def __init__(self, url: str) -> None:
        self.url = url
        self._users = 0
        self._lock = threading.Lock()
        self._parts: _Parts | None = None

    @classmethod
    def shared(cls, url: str) -> Database:
        """The process's database of this URL. A forked child gets its own: threads do not survive a fork.

        Raises ConfigurationError for a URL that cannot work here.
        """
        key = sql_engine.absolute_url(url).render_as_string(hide_password=False)
        with cls._instances_lock:
            return cls._instances.setdefault(key, cls(key))

    @classmethod
    def _forget_all(cls) -> None:
        for instance in cls._instances.values():
            instance._lock = threading.Lock()
            instance._users = 0
            instance._parts = None
        cls._instances = {}
        cls._instances_lock = threading.Lock()

    async def open(self) -> None:
        """Open, and create what tables are missing. Every open wants one close.

        Raises BrokerUnavailable, with one sentence that says what to do.
        """
        executor = ThreadPoolExecutor(1, "celeriac-sql-open")
        opening = executor.submit(self._open)
        executor.shutdown(wait=False)
        try:
            await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._give_back)
            raise

    def _give_back(self, opened: Future[None]) -> None:
        """Close again what nobody waits for any more, on the thread that has opened it."""
        if not opened.cancelled() and opened.exception() is None:
            self._close()

    def _open(self) -> None:
        with self._lock:
            if self._users == 0:
                self._parts = self._start()
            self._users += 1

    def _start(self) -> _Parts:
        engine = sql_engine.create_engine(self.url)
        try:
            create_tables(engine)
        except BaseException:
            engine.dispose()
            raise
        watcher, stalls = Watcher(engine), Stalls()

        def write(run: Callable[[Connection], None]) -> None:
            stalls.timed(lambda: sql_engine.write(engine, run))

        return _Parts(
            engine,
            Lane("celeriac-sql-write", write, watcher.look),
            Lane("celeriac-sql-read", lambda run: sql_engine.read(engine, run)),
            watcher,
            stalls,
        )

    async def close(self) -> None:
        """Give it back; the last one out waits for what was submitted and ends the threads."""
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._close))

    def _close(self) -> None:
        with self._lock:
            self._users = max(self._users - 1, 0)
            if self._users:
                return
            parts, self._parts = self._parts, None
        if parts is not None:
            parts.stop()

    def write(self, operation: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Submit a write. Operations take effect in the order of submission. It may run more than once.

        Cancelling the future does not undo it: it keeps from happening what still waits, in line or for the
        database's lock, and nothing else.
        The future raises BrokerUnavailable, or what the operation itself raised.
        """
        return self._opened().writer.submit(operation)

    def read(self, operation: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Submit a read, which sees every write whose future is done. Raises as :meth:`write` does."""
        return self._opened().reader.submit(operation)

    def last_stall(self) -> Stall:
        """When this process could last not write for a while. To be asked in a write, too, which may be the one."""
        return self._opened().stalls.last()

    @property
    def failing(self) -> bool:
        """Whether the database did not let this process's last write happen."""
        return self._opened().stalls.failing

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back on this loop after any process has committed, now and then without reason. Returns what
        ends it.

        No commit is missed that happens after this returns.
        """
        return self._opened().watcher.add(callback)

    def _opened(self) -> _Parts:
        if self._parts is None:
            raise BrokerUnavailable(f"The database {self.url} is not open.")
        return self._parts


forks.run_in_child(Database._forget_all)
