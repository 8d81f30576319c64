"""A database behind asyncio: one thread that commits in groups, one that reads, one that notices changes.

A write transaction on SQLite costs about as much for one row as for a hundred. So the writing thread takes
all that has been submitted since its last commit, from every task of every loop, and commits it as one
transaction. When one operation of a group fails, the group is rolled back and each runs alone, so that nobody
pays for a neighbour.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from celeriac.errors import BrokerUnavailable
from celeriac.sql import engine as sql_engine
from celeriac.sql.schema import create_tables

__all__ = ["Database", "create_tables"]

T = TypeVar("T")

_GROUP_LIMIT = 512

#: Seconds between two looks at SQLite's change counter: half of what an idle worker may take to wake.
_WATCH_INTERVAL = 0.01


@dataclass(slots=True)
class _Operation:
    run: Callable[[Connection], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class _Lane:
    """A thread that runs operations in transactions, as many in one as have come in meanwhile."""

    def __init__(self, name: str, transact: Callable[[Callable[[Connection], None]], None]) -> None:
        self._inbox: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._transact = transact
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def submit(self, run: Callable[[Connection], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._inbox.put(_Operation(run, loop, future))
        return future

    def stop(self) -> threading.Thread:
        """Finish what was submitted, then end."""
        self._inbox.put(None)
        return self._thread

    def _main(self) -> None:
        stopping = False
        while not stopping:
            group, stopping = self._next_group()
            if group:
                self._run(group)
                _resolve(group)

    def _next_group(self) -> tuple[list[_Operation], bool]:
        first = self._inbox.get()
        group: list[_Operation] = []
        while first is not None:
            if not first.future.cancelled():
                group.append(first)
            if len(group) >= _GROUP_LIMIT:
                return group, False
            try:
                first = self._inbox.get_nowait()
            except queue.Empty:
                return group, False
        return group, True

    def _run(self, group: list[_Operation]) -> None:
        def run_all(connection: Connection) -> None:
            for operation in group:
                operation.result = operation.run(connection)

        try:
            self._transact(run_all)
        except BaseException as exc:  # noqa: BLE001 - it belongs to the waiting tasks, not to this thread
            if len(group) == 1:
                group[0].error = exc
            else:
                for operation in group:
                    self._run([operation])


def _resolve(group: list[_Operation]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Operation]] = defaultdict(list)
    for operation in group:
        by_loop[operation.loop].append(operation)
    for loop, operations in by_loop.items():
        # A loop that has closed meanwhile has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_set_results, operations)


def _set_results(operations: list[_Operation]) -> None:
    for operation in operations:
        if operation.future.done():
            continue
        if operation.error is not None:
            operation.future.set_exception(operation.error)
        else:
            operation.future.set_result(operation.result)


class Database:
    """One SQL database, shared by everything in this process that uses it.

    Get it by :meth:`shared`, then :meth:`open` it; the last :meth:`close` ends its threads.
    """

    _instances: dict[tuple[int, str], Database] = {}
    _instances_lock = threading.Lock()

    def __init__(self, url: str) -> None:
        self.url = url
        self._users = 0
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._writer: _Lane | None = None
        self._reader: _Lane | None = None
        self._watcher: _Watcher | None = None

    @classmethod
    def shared(cls, url: str) -> Database:
        """The process's database of this URL. A forked child gets its own: threads do not survive a fork."""
        with cls._instances_lock:
            return cls._instances.setdefault((os.getpid(), url), cls(url))

    async def open(self) -> None:
        """Open, and create what tables are missing. Every open wants one close."""
        await asyncio.get_running_loop().run_in_executor(None, self._open)

    def _open(self) -> None:
        with self._lock:
            if self._users == 0:
                self._start()
            self._users += 1

    def _start(self) -> None:
        engine = sql_engine.create_engine(self.url)
        try:
            create_tables(engine)
            self._watcher = _Watcher(engine)
        except DBAPIError as exc:
            engine.dispose()
            raise sql_engine.unavailable(exc, engine) from exc
        except BrokerUnavailable:
            engine.dispose()
            raise
        self._engine = engine
        self._writer = _Lane("celeriac-sql-write", lambda run: sql_engine.write(engine, run))
        self._reader = _Lane("celeriac-sql-read", lambda run: sql_engine.read(engine, run))

    async def close(self) -> None:
        """Give it back; the last one out waits for what was submitted and ends the threads."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
            self._users = 0
            writer, reader, watcher, engine = self._writer, self._reader, self._watcher, self._engine
            self._writer = self._reader = self._watcher = self._engine = None
        for part in (writer, reader, watcher):
            if part is not None:
                part.stop().join()
        if engine is not None:
            engine.dispose()

    def write(self, operation: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Submit a write. Operations take effect in the order of submission. It may run more than once."""
        if self._writer is None:
            raise BrokerUnavailable(f"The database {self.url} is not open.")
        return self._writer.submit(operation)

    def read(self, operation: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Submit a read, which sees every write whose future is done."""
        if self._reader is None:
            raise BrokerUnavailable(f"The database {self.url} is not open.")
        return self._reader.submit(operation)

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back on this loop after any process has committed. Returns what ends it."""
        if self._watcher is None:
            raise BrokerUnavailable(f"The database {self.url} is not open.")
        return self._watcher.add(asyncio.get_running_loop(), callback)


class _Watcher:
    """Looks at the database's change counter, and tells the loops.

    SQLite has no notification between processes; its change counter is a read of shared memory of a few
    microseconds.
    """

    def __init__(self, engine: Engine) -> None:
        self._listeners: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = {}
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._seen = sql_engine.data_version(self._connection)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._main, name="celeriac-sql-watch", daemon=True)
        self._thread.start()

    def add(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Callable[[], None]:
        key = object()
        self._listeners[key] = (loop, callback)
        return lambda: self._listeners.pop(key, None) and None

    def stop(self) -> threading.Thread:
        self._stopping.set()
        return self._thread

    def _main(self) -> None:
        while not self._stopping.wait(_WATCH_INTERVAL):
            try:
                version = sql_engine.data_version(self._connection)
            except DBAPIError:
                continue  # the writers say what is wrong, with a sentence
            if version != self._seen:
                self._seen = version
                self._notify()
        self._connection.close()

    def _notify(self) -> None:
        for loop, callback in list(self._listeners.values()):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(callback)
