"""``result_backend = "sqlite:///celery.db"``: Celery's database backend, over celeriac's records."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from celery import states
from celery.backends.database import DatabaseBackend
from sqlalchemy.engine import Connection, Engine

from celeriac.backends.base import RecordBackend
from celeriac.backends.planned import PlannedBackend
from celeriac.backends.sql_chords import SQLChords
from celeriac.errors import BrokerUnavailable, ConfigurationError, StoreUnavailable
from celeriac.sql import engine as sql_engine
from celeriac.sql import event_log, forks, gone, groups, keys, marks, records
from celeriac.sql.schema import create_tables
from celeriac.sql.transitions import apply_transitions
from celeriac.stores.entries import to_entries
from celeriac.stores.records import Transition
from celeriac.stores.rows import CANCELLED, Row, error_of

__all__ = ["SQLBackend"]

T = TypeVar("T")

#: Records that one transaction of a clean-up deletes.
_BATCH = 500

#: Seconds between two looks at a record that somebody waits for: quick at first, then at leisure.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.04


class SQLBackend(PlannedBackend, RecordBackend, DatabaseBackend):  # type: ignore[misc]
    """Celery's database backend, which also keeps events, attempts and cancel marks.

    A ``DatabaseBackend`` for those who ask, but it writes as the asyncio store does and shares its file with it.
    Opens the database when it is first used, in each process anew.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for setting in ("database_table_names", "database_table_schemas"):
            if self.app.conf.get(setting):
                raise ConfigurationError(
                    f"{setting} is set, but celeriac's tables have fixed names. Remove it."
                )
        self._location = sql_engine.absolute_url(self.url)
        self._engine: Engine | None = None
        self._chords = SQLChords(self._write, self._read)
        self._renew_lock()
        forks.run_before_fork(self._renew_lock)

    def _renew_lock(self) -> None:
        # A child would inherit it locked, by a thread that it does not have.
        self._opening = threading.Lock()

    def _create_tables(self) -> None:
        """Celery wants them when the app asks for its backend; here that must not touch the disk."""

    def _opened(self) -> Engine:
        if self._engine is None:
            with self._opening:
                if self._engine is None:
                    engine = sql_engine.create_engine(self._location)
                    create_tables(engine)
                    self._engine = engine
        return self._engine

    def _write(self, operation: Callable[[Connection], T]) -> T:
        with _store_errors():
            return sql_engine.write(self._opened(), operation)

    def _read(self, operation: Callable[[Connection], T]) -> T:
        with _store_errors():
            return sql_engine.read(self._opened(), operation)

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Never: what may pass by itself has been waited for already."""
        return False

    def record_published(self, transitions: Sequence[Transition]) -> None:
        entries = to_entries(transitions)
        self._write(lambda connection: apply_transitions(connection, entries))

    def request_cancel(self, task_ids: Sequence[str], *, running: bool = True) -> Collection[str]:
        now = time.time()
        error = error_of(states.REVOKED, CANCELLED)
        return self._write(
            lambda connection: records.request_cancel(
                connection, task_ids, now, result=CANCELLED, error=error, running=running
            )
        )

    def _row(self, task_id: str) -> Row | None:
        rows = self._read(lambda connection: records.fetch(connection, [task_id]))
        return Row(*rows[0]) if rows else None

    def _wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 1.25, _LONGEST_PAUSE)
        return True

    def _forget(self, task_id: str) -> None:
        now = time.time()
        self._write(lambda connection: records.forget(connection, [task_id], now))

    def _write_group(self, group_id: str, value: str) -> None:
        self._write(lambda connection: groups.save(connection, group_id, value, time.time()))

    def _read_group(self, group_id: str) -> str | None:
        return self._read(lambda connection: groups.restore(connection, group_id))

    def _delete_group(self, group_id: str) -> None:
        self._write(lambda connection: groups.delete(connection, group_id))

    def _cleanup(self) -> None:
        self._trim_chords()
        now = time.time()
        for trim in (gone.trim, keys.trim, marks.trim):
            while self._write(partial(trim, now=now, limit=_BATCH)) == _BATCH:
                pass
        if not self.expires:
            return
        kept = self.expires.total_seconds()
        while self._write(lambda connection: event_log.trim_records(connection, now, kept, _BATCH)) == _BATCH:
            pass
        self._write(lambda connection: groups.trim(connection, now - kept))


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except BrokerUnavailable as exc:
        raise StoreUnavailable(str(exc)) from exc
