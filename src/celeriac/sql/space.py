"""SQLite without space on its disk: how that is told from other trouble, and what can be made of the log."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from pathlib import PurePath

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from celeriac.sql import forks

__all__ = ["is_used_up", "reuse_log"]

#: Bytes that SQLite needs at once, for the index of its log; below that it fails in ways that do not say why.
_LEAST = 1 << 16

#: Seconds after an attempt in vain before another one, which may copy all of the log.
_PAUSE = 1.0

#: Seconds that another process gets that is about it.
_PATIENCE = 0.05

#: Until when nobody need try, by ``time.monotonic()``.
_in_vain: weakref.WeakKeyDictionary[Engine, float] = weakref.WeakKeyDictionary()


def is_used_up(path: str) -> bool:
    """Whether nothing can be written beside the file."""
    try:
        status = os.statvfs(PurePath(path).parent)
    except (OSError, AttributeError):  # no such folder, or Windows
        return False
    return status.f_bavail * status.f_frsize < _LEAST


def reuse_log(engine: Engine) -> bool:
    """Bring what is in the log into the database, so that the log is written again from its beginning.

    It may have many megabytes by then, as it is emptied only now and then. Returns whether to try once more to write.
    """
    if time.monotonic() < _in_vain.get(engine, 0.0):
        return False
    try:
        busy, pages, moved = _checkpoint(engine)
    except (DBAPIError, sqlite3.Error):  # the database would have to grow for it
        busy, pages, moved = 0, 0, 0
    if busy:
        time.sleep(_PATIENCE)
        return True
    if 0 < pages == moved:
        return True
    _in_vain[engine] = time.monotonic() + _PAUSE
    return False


def _checkpoint(engine: Engine) -> tuple[int, int, int]:
    """Whether somebody else was at it, the pages in the log, and how many of them are in the database."""
    with forks.Transaction():
        connection = engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
            [(busy, pages, moved)] = cursor.fetchall()
            cursor.close()
            return busy, pages, moved
        finally:
            connection.close()
