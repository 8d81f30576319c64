"""Beats in this process, on one real file, on a clock that the test turns."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from celery.schedules import crontab, schedule

from celeriac import Celery
from celeriac.scheduler.database import DatabaseScheduler
from celeriac.scheduler.rows import Run
from celeriac.sql import tables

#: Seconds: as short as a busy machine allows.
LEASE = 1.0

#: Ticks until nothing is due.
Settle = Callable[[DatabaseScheduler], None]


class Clock:
    """The time that schedules see. It stands in the past: to the database a last run in the future is a mistake."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(hour=10, minute=30, second=0, microsecond=0) - timedelta(days=20)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


class Site:
    """One database file, and any number of beats on it."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.url = f"sqlite:///{folder / 'celery.db'}"
        self._engine = sa.create_engine(self.url)
        self._schedulers: list[DatabaseScheduler] = []

    def app(self, **entries: Mapping[str, Any]) -> Celery:
        app = Celery("site", broker=self.url, set_as_current=False)
        app.conf.update(beat_schedule=entries, result_expires=None, celeriac_beat_lease=LEASE)

        @app.task(name="note")
        def note(text: str = "") -> None: ...

        return app

    def beat(self, app: Celery | None = None, /, **entries: Mapping[str, Any]) -> DatabaseScheduler:
        scheduler = DatabaseScheduler(app or self.app(**entries))
        self._schedulers.append(scheduler)
        return scheduler

    def every(self, task: str = "note", **options: Any) -> dict[str, Any]:
        """An entry that runs every ``minutes``, …"""
        every = {unit: options.pop(unit) for unit in ("seconds", "minutes", "hours") if unit in options}
        return {"task": task, "schedule": schedule(timedelta(**every), nowfun=self.clock), **options}

    def daily(self, hour: int) -> dict[str, Any]:
        return {"task": "note", "schedule": crontab(minute="0", hour=str(hour), nowfun=self.clock)}

    def runs(self) -> dict[str, Run]:
        """What is remembered."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(tables.schedule)).all()
        return {row.name: Run(row.last_run_at, row.total_run_count) for row in rows}

    def messages(self) -> list[dict[str, Any]]:
        """The envelopes of what has been sent, oldest first."""
        query = sa.select(tables.message.c.envelope).order_by(tables.message.c.id)
        with self._engine.connect() as connection:
            return [json.loads(envelope) for envelope in connection.scalars(query)]

    def execute(self, statement: Any) -> Any:
        """What another process might do."""
        with self._engine.begin() as connection:
            return connection.execute(statement)

    def close(self) -> None:
        for scheduler in self._schedulers:
            scheduler.close()
        self._engine.dispose()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture
def settle() -> Settle:

    def tick(scheduler: DatabaseScheduler) -> None:
        while scheduler.tick() <= 0:
            pass

    return tick
