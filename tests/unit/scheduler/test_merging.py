"""What a beat remembers of its entries when the configuration changes, or it starts again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery.schedules import crontab
from tests.unit.scheduler.conftest import Settle, Site

from celeriac.scheduler.database import DatabaseScheduler
from celeriac.scheduler.rows import Run
from celeriac.sql import tables


def test_a_new_entry_begins_when_it_is_first_seen(site: Site) -> None:
    site.beat(one=site.every(hours=1)).tick()

    assert site.runs() == {"one": Run(site.clock.now.timestamp(), 0)}


def test_a_restart_remembers_adds_and_forgets(site: Site) -> None:
    first = site.beat(stays=site.every(hours=1), goes=site.every(hours=1))
    first.tick()
    began = site.clock.now.timestamp()
    first.close()
    site.clock.advance(minutes=10)

    site.beat(stays=site.every(hours=1), comes=site.every(hours=1)).tick()

    assert site.runs() == {"stays": Run(began, 0), "comes": Run(began + 600, 0)}


def test_a_changed_entry_keeps_its_last_run_and_its_count(site: Site, settle: Settle) -> None:
    first = site.beat(one=site.every(hours=1))
    settle(first)
    site.clock.advance(hours=1)
    settle(first)
    first.close()
    before = site.runs()
    assert before["one"].total_run_count == 1
    site.clock.advance(minutes=10)

    second = site.beat(one=site.every(minutes=20))
    settle(second)
    assert site.runs() == before
    assert len(site.messages()) == 1
    site.clock.advance(minutes=10)
    settle(second)

    assert second.schedule["one"].total_run_count == 2
    assert len(site.messages()) == 2


def test_another_time_zone_forgets_nothing(site: Site, settle: Settle) -> None:
    first = site.beat(one=site.every(hours=1), two={"task": "note", "schedule": crontab()})
    settle(first)
    first.close()
    before = site.runs()
    for timezone, enable_utc in (("Asia/Tokyo", True), ("America/New_York", False), (None, False)):
        app = site.app(one=site.every(hours=1), two={"task": "note", "schedule": crontab()})
        app.conf.update(timezone=timezone, enable_utc=enable_utc)
        scheduler = site.beat(app)

        scheduler.tick()

        assert site.runs() == before
        assert scheduler.schedule["one"].last_run_at.timestamp() == before["one"].last_run_at
        scheduler.close()


def test_a_last_run_in_the_future_does_not_stop_an_entry_until_then(site: Site) -> None:
    entry = {"task": "note", "schedule": 3600.0}
    scheduler = site.beat(one=entry)
    scheduler.tick()
    real_now = site.runs()["one"].last_run_at
    scheduler.close()
    site.execute(tables.schedule.update().values(last_run_at=real_now + 1_000_000))

    scheduler = site.beat(one=entry)
    scheduler.tick()

    _due, seconds = scheduler.schedule["one"].is_due()
    assert seconds <= 3600


def test_celerys_own_clean_up_is_in_the_schedule_when_results_expire(site: Site) -> None:
    app = site.app(one=site.every(hours=1))
    app.conf.result_expires = 3600

    site.beat(app).tick()

    assert set(site.runs()) == {"one", "celery.backend_cleanup"}


def test_periodic_tasks_of_signal_handlers_are_entries(site: Site) -> None:
    app = site.app()

    def add(sender: Any, **_options: Any) -> None:
        sender.add_periodic_task(60.0, app.tasks["note"].s("hello"), name="added")

    app.on_after_finalize.connect(add)
    app.finalize()
    site.beat(app).tick()

    assert set(site.runs()) == {"added"}


def test_an_entry_that_is_added_while_beat_runs_is_remembered_and_runs(site: Site, settle: Settle) -> None:
    scheduler = site.beat()
    scheduler.tick()

    scheduler.add(name="late", **site.every(minutes=1))
    settle(scheduler)
    site.clock.advance(minutes=1)
    settle(scheduler)

    assert site.runs()["late"].total_run_count == 1
    assert len(site.messages()) == 1


def test_what_is_only_looked_at_touches_no_file(site: Site, tmp_path: Path) -> None:
    scheduler = DatabaseScheduler(site.app(one=site.every(hours=1)), lazy=True)

    assert scheduler.info.endswith(f"db -> {site.url}")
    scheduler.close()
    assert list(tmp_path.iterdir()) == []
