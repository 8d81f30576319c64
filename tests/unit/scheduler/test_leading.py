"""Several beats on one file: one leads, and each run is sent once."""

from __future__ import annotations

import logging
import sqlite3
import time

import pytest
from tests.unit.scheduler.conftest import LEASE, Settle, Site

from celeriac.scheduler.database import DatabaseScheduler
from celeriac.sql import engine, tables


def wait_until_leading(scheduler: DatabaseScheduler, timeout: float = 5.0) -> float:
    """Tick as Celery does until it leads. Returns how many seconds that took."""
    began = time.monotonic()
    while True:
        seconds = scheduler.tick()
        if scheduler._state.keep_lead():
            return time.monotonic() - began
        assert time.monotonic() < began + timeout
        time.sleep(seconds)


def test_only_the_leader_sends(site: Site, settle: Settle, caplog: pytest.LogCaptureFixture) -> None:
    leader, other = site.beat(one=site.every(minutes=1)), site.beat(one=site.every(minutes=1))
    settle(leader)
    settle(other)
    site.clock.advance(minutes=1)

    settle(other)
    assert site.messages() == []
    settle(leader)
    settle(other)

    assert len(site.messages()) == 1
    waiting = [record for record in caplog.records if "waiting to take over" in record.message]
    assert len(waiting) == 1


def test_waiting_costs_a_few_looks_per_lease(site: Site, settle: Settle) -> None:
    leader, other = site.beat(), site.beat()
    settle(leader)

    assert LEASE / 10 < other.tick() <= LEASE / 4


def test_a_beat_that_stops_hands_over_at_once(site: Site, settle: Settle) -> None:
    leader, other = site.beat(one=site.every(minutes=1)), site.beat(one=site.every(minutes=1))
    settle(leader)
    settle(other)

    leader.close()

    assert wait_until_leading(other) < LEASE / 2


def test_a_dead_leader_is_followed_within_its_lease(site: Site, settle: Settle) -> None:
    leader, other = site.beat(one=site.every(minutes=1)), site.beat(one=site.every(minutes=1))
    settle(leader)

    assert wait_until_leading(other) <= LEASE + 0.3


def test_a_leader_that_keeps_ticking_keeps_the_lead(site: Site, settle: Settle) -> None:
    leader, other = site.beat(), site.beat()
    settle(leader)
    until = time.monotonic() + 2 * LEASE
    while time.monotonic() < until:
        assert leader.tick() <= LEASE / 3
        assert other.tick() > 0
        assert not other._state.keep_lead()
        time.sleep(0.05)


def test_a_leader_that_stood_still_sends_nothing_that_its_successor_has_sent(
    site: Site, settle: Settle
) -> None:
    leader, other = site.beat(one=site.every(minutes=1)), site.beat(one=site.every(minutes=1))
    settle(leader)
    wait_until_leading(other)
    site.clock.advance(minutes=1)
    settle(other)
    assert len(site.messages()) == 1

    settle(leader)

    assert len(site.messages()) == 1
    assert not leader._state.keep_lead()


def test_a_run_that_was_noted_by_somebody_else_is_not_sent(site: Site, settle: Settle) -> None:
    """Even if both believe that they lead: what is in the database decides."""
    scheduler = site.beat(one=site.every(minutes=1))
    settle(scheduler)
    site.clock.advance(minutes=1)
    noted = site.clock.now.timestamp() - 1
    site.execute(tables.schedule.update().values(last_run_at=noted, total_run_count=1))

    settle(scheduler)
    assert site.messages() == []
    site.clock.advance(minutes=1)
    settle(scheduler)

    assert len(site.messages()) == 1
    assert site.runs()["one"].total_run_count == 2


def test_a_run_is_forced_by_setting_back_what_is_remembered(site: Site, settle: Settle) -> None:
    scheduler = site.beat(one=site.every(hours=1))
    settle(scheduler)
    scheduler.close()
    site.execute(tables.schedule.update().values(last_run_at=tables.schedule.c.last_run_at - 3600))

    settle(scheduler)

    assert len(site.messages()) == 1


def test_who_takes_over_knows_what_was_configured_since_it_began(site: Site, settle: Settle) -> None:
    app = site.app(one=site.every(minutes=1))
    leader, other = site.beat(one=site.every(minutes=1)), site.beat(app)
    settle(leader)
    settle(other)
    app.conf.beat_schedule["two"] = site.every(minutes=1)
    site.clock.advance(hours=5)
    leader.close()

    wait_until_leading(other)
    settle(other)

    # What was never seen before begins now, and not when the process began to wait.
    assert site.runs()["two"].last_run_at == site.clock.now.timestamp()
    assert {name: run.total_run_count for name, run in site.runs().items()} == {"one": 1, "two": 0}


def test_a_lease_from_the_future_is_void(site: Site, settle: Settle) -> None:
    """The clock of this machine was set back an hour, just when its leader died."""
    leader, other = site.beat(), site.beat()
    settle(leader)
    site.execute(tables.leader.update().values(renewed_at=tables.leader.c.renewed_at + 3600))

    assert wait_until_leading(other) < LEASE / 2


def test_a_database_that_is_locked_for_long_delays_a_run_and_loses_none(
    site: Site, settle: Settle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BUSY_DEADLINE", 0.05)
    monkeypatch.setattr(engine, "_STRETCH", 0.02)
    scheduler = site.beat(one=site.every(minutes=1))
    settle(scheduler)
    site.clock.advance(minutes=1)
    blocker = sqlite3.connect(site.url.removeprefix("sqlite:///"), isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    assert scheduler.tick() > 0
    assert site.messages() == []
    [report] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "Trying again" in report.message
    assert report.exc_info is None
    blocker.execute("ROLLBACK")
    blocker.close()
    settle(scheduler)

    assert len(site.messages()) == 1
    assert site.runs()["one"].total_run_count == 1
