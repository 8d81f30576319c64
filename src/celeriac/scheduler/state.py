"""The state of one database's schedule as one beat sees it: who leads, and which runs have been published."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TypeVar
from uuid import uuid4

from sqlalchemy.engine import URL, Connection, Engine

from celeriac.errors import BrokerUnavailable
from celeriac.scheduler import rows
from celeriac.scheduler.rows import Leader, Run
from celeriac.sql import engine as sql_engine
from celeriac.sql.schema import create_tables

__all__ = ["ScheduleState"]

T = TypeVar("T")


class ScheduleState:
    """The rows of the schedule, and the lease on them.

    Opens the database when it is first used, so that a scheduler may be made in one process and run in another. All
    methods may raise BrokerUnavailable. ``lease`` is in seconds.
    """

    def __init__(self, url: URL, lease: float) -> None:
        self.url = url
        self.lease = lease
        self._engine: Engine | None = None
        self._holder = ""
        self._renewed: float | None = None  # on the monotonic clock; None while another beat leads

    @property
    def is_open(self) -> bool:
        """Whether the database has been opened."""
        return self._engine is not None

    def keep_lead(self) -> bool:
        """Renew the lease when it is time to. Whether this beat leads, as far as it knows."""
        if self._renewed is not None and time.monotonic() - self._renewed >= self.lease / 3:
            self._renew()
        return self._renewed is not None

    def _renew(self) -> None:
        asked = time.monotonic()
        self._renewed = asked if self._write(self._renew_in) else None

    def other_leader(self) -> Leader | None:
        """The other beat that leads, if one does."""
        leader = sql_engine.read(
            self._opened(), lambda connection: rows.current_leader(connection, time.time())
        )
        return None if leader is None or leader.holder == self._holder else leader

    def take_lead(self, entries: Mapping[str, Run]) -> Mapping[str, Run] | None:
        """Become the leader and :meth:`merge`, in one step. ``None`` when another beat leads."""
        asked = time.monotonic()

        def operation(connection: Connection) -> Mapping[str, Run] | None:
            # The time is that of the transaction, which may have had to wait for the other beat's renewal.
            if not rows.lead(connection, self._holder, self.lease, time.time()):
                return None
            return rows.merge(connection, entries)

        merged = self._write(operation)
        self._renewed = None if merged is None else asked
        return merged

    def merge(self, entries: Mapping[str, Run]) -> Mapping[str, Run] | None:
        """Add rows for new entries, drop those of removed ones. Returns all; ``None`` when this beat does not lead."""

        def operation(connection: Connection) -> Mapping[str, Run] | None:
            return rows.merge(connection, entries) if self._renew_in(connection) else None

        merged = self._write(operation)
        if merged is None:
            self._renewed = None
        return merged

    def claim(
        self, name: str, previous: Run, run: Run, publish: Callable[[Connection], None] | None = None
    ) -> bool:
        """Note a run and do ``publish``, in one transaction, unless the run is another beat's.

        It is ours when this beat still leads and the entry's last run is still ``previous``. Otherwise nothing happens,
        and this beat leads no more until it has taken the lead again.
        """

        def operation(connection: Connection) -> bool:
            if not (self._renew_in(connection) and rows.advance(connection, name, previous, run)):
                return False
            if publish is not None:
                publish(connection)
            return True

        claimed = self._write(operation)
        if not claimed:
            self._renewed = None
        return claimed

    def _renew_in(self, connection: Connection) -> bool:
        return rows.renew(connection, self._holder, self.lease, time.time())

    def step_down(self) -> None:
        """Lead no more until the lead has been taken again. The lease stays, for this beat to find."""
        self._renewed = None

    def close(self) -> None:
        """Hand the lease back, and close the database. Safe to call twice."""
        engine, self._engine, self._renewed = self._engine, None, None
        if engine is None:
            return
        # Nobody minds: without this the lease ends by itself.
        with contextlib.suppress(BrokerUnavailable):
            sql_engine.write(engine, lambda connection: rows.resign(connection, self._holder))
        engine.dispose()

    def _write(self, operation: Callable[[Connection], T]) -> T:
        return sql_engine.write(self._opened(), operation)

    def _opened(self) -> Engine:
        if self._engine is None:
            engine = sql_engine.create_engine(self.url)
            try:
                create_tables(engine)
            except BaseException:
                engine.dispose()
                raise
            self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
            self._engine = engine
        return self._engine
