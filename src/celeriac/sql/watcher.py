"""Tells event loops that a database has changed, whoever changed it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from celeriac.sql import forks

__all__ = ["Watcher"]

#: Seconds between two looks: a good half of the 20 ms that an idle worker may take to wake.
_INTERVAL = 0.012

#: Seconds for which the time of a file's last change may stand still although it is written to, and some more.
_COARSE = 0.1

#: Looks that may trust the file's times in a row, for file systems whose times cannot be trusted.
_TRUSTING = 10


class Watcher:
    """Looks at the database's change counter while somebody listens, and tells the listeners' loops.

    SQLite has no notification between processes. Its change counter (``PRAGMA data_version``) changes when another
    connection, of any process, has committed. Asking it a hundred times a second costs an idle process more than
    sleeping does, so that a file that has not been written to since the last look is not asked.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Any = None
        self._cursor: sqlite3.Cursor | None = None
        self._seen: int | None = None
        self._log = f"{engine.url.database}-wal"
        self._written: float | None = None
        self._trusted = 0
        self._listeners: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = {}
        self._looking = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        forks.run_before_fork(self._disconnect)
        self._thread = threading.Thread(target=self._main, name="celeriac-sql-watch", daemon=True)
        self._thread.start()

    def add(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back on the running loop after any commit from now on, at times without one. Returns what ends it."""
        key = object()
        self._listeners[key] = (asyncio.get_running_loop(), callback)
        self._wake.set()

        def remove() -> None:
            self._listeners.pop(key, None)

        return remove

    def look(self) -> None:
        """Look now, on this thread, and tell the listeners if something has changed."""
        if self._listeners:
            with self._looking:
                if self._changed():
                    self._tell()

    def stop(self) -> None:
        """End, and return when the thread has ended."""
        self._stopped = True
        self._wake.set()
        self._thread.join()

    def _main(self) -> None:
        while not self._stopped:
            if self._listeners:
                time.sleep(_INTERVAL)  # which costs less than a wait with a timeout
            else:
                self._wake.wait()
                self._wake.clear()
            # What was seen last stays while nobody listens: whatever is committed between a listener's coming and
            # the next look differs from that, and is told.
            if not self._untouched():
                self.look()
        with forks.Transaction():
            self._disconnect()

    def _untouched(self) -> bool:
        """Whether nobody has written to the log, into which every commit goes, since the last look."""
        last, self._written = self._written, None
        try:
            self._written = os.stat(self._log).st_mtime  # noqa: PTH116 - costs less than a Path
        except OSError:
            return False
        # A change just before the last look may hide another one just after it: the clock of files ticks slowly.
        if self._written != last or last > time.time() - _COARSE or self._trusted >= _TRUSTING:
            self._trusted = 0
            return False
        self._trusted += 1
        return True

    def _changed(self) -> bool:
        with forks.Transaction():
            try:
                version = self._data_version()
            except (sqlite3.Error, SQLAlchemyError):
                # The readers and writers say what is wrong, with a sentence; here it is enough that they try.
                self._disconnect()
                return True
            changed = version != self._seen
            self._seen = version
            return changed

    def _data_version(self) -> int:
        if self._cursor is None:
            self._connection = self._engine.raw_connection()
            self._connection.detach()  # not the pool's to count, nor to close
            self._cursor = self._connection.cursor()
        version: int = self._cursor.execute("PRAGMA data_version").fetchone()[0]
        return version

    def _disconnect(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        self._seen = None  # the counters of two connections have nothing to do with each other
        if connection is not None:
            connection.close()

    def _tell(self) -> None:
        for key, (loop, callback) in self._listeners.copy().items():
            try:
                loop.call_soon_threadsafe(callback)
            except RuntimeError:  # the loop was closed by somebody who did not clean up
                self._listeners.pop(key, None)
