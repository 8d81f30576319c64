"""What is sent when an entry is due, and what happens to runs that were missed or cannot be sent."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery as StockCelery
from celery import signals
from celery.beat import BeatLazyFunc
from tests.unit.scheduler.conftest import Settle, Site

from celeriac import Celery, Task
from celeriac.errors import ConfigurationError
from celeriac.scheduler.database import DatabaseScheduler
from celeriac.sql import tables
from celeriac.transports import register


def test_a_due_entry_is_a_message_and_a_record(site: Site, settle: Settle) -> None:
    scheduler = site.beat(
        one=site.every(minutes=1, args=["hello"], options={"queue": "slow", "priority": 3, "expires": 60})
    )
    settle(scheduler)
    site.clock.advance(minutes=1)

    settle(scheduler)

    [message] = site.messages()
    headers, properties = message["headers"], message["properties"]
    assert headers["task"] == "note"
    assert headers["celery_beat_task"] is True
    assert headers["expires"] is not None
    assert json.loads(base64.b64decode(message["body"]))[:2] == [["hello"], {}]
    assert properties["delivery_info"]["routing_key"] == "slow"
    assert properties["priority"] == 3
    [record] = site.execute(tables.task_record.select()).all()
    assert (record.task_id, record.status, record.queue) == (headers["id"], "PENDING", "slow")
    # The entry itself is not changed by being sent.
    assert "headers" not in scheduler.app.conf.beat_schedule["one"]["options"]


def test_runs_that_were_missed_are_made_up_for_once(site: Site, settle: Settle) -> None:
    entries = {"interval": site.every(minutes=1), "nightly": site.daily(4), "later": site.daily(23)}
    first = site.beat(**entries)
    settle(first)
    first.close()
    site.clock.advance(days=3)

    second = site.beat(**entries)
    settle(second)
    settle(second)
    assert {name: run.total_run_count for name, run in site.runs().items()} == {
        "interval": 1,
        "nightly": 1,
        "later": 1,
    }
    second.close()
    site.clock.advance(seconds=30)
    settle(site.beat(**entries))

    assert len(site.messages()) == 3


def test_missed_runs_are_left_when_the_starting_deadline_has_passed(site: Site, settle: Settle) -> None:
    first = site.beat(nightly=site.daily(4))
    settle(first)
    first.close()
    site.clock.advance(days=1)
    app = site.app(nightly=site.daily(4))
    app.conf.beat_cron_starting_deadline = 60

    settle(site.beat(app))

    assert site.messages() == []


def test_arguments_may_be_worked_out_when_they_are_due(site: Site, settle: Settle) -> None:
    scheduler = site.beat(one=site.every(minutes=1, kwargs={"text": BeatLazyFunc(site.clock.now.isoformat)}))
    settle(scheduler)
    site.clock.advance(minutes=1)
    settle(scheduler)

    [message] = site.messages()
    assert json.loads(base64.b64decode(message["body"]))[1]["text"].startswith("20")


def test_an_entry_that_cannot_be_sent_is_passed_over_until_its_next_time(
    site: Site, settle: Settle, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = site.beat(
        wrong=site.every(minutes=1, args=[1, 2, 3]),
        unsendable=site.every(minutes=1, options={"priority": 10**30}),
        right=site.every(minutes=1),
    )
    settle(scheduler)
    site.clock.advance(minutes=1)
    settle(scheduler)

    assert len(site.messages()) == 1
    assert [run.total_run_count for run in site.runs().values()] == [1, 1, 1]
    for name in ("wrong", "unsendable"):
        assert f"Couldn't send scheduled task {name} (note)." in caplog.text


def test_celerys_signals_are_sent(site: Site, settle: Settle) -> None:
    seen: list[str] = []

    def before(sender: str, headers: dict[str, Any], **_options: Any) -> None:
        headers["stamp"] = "mine"
        seen.append("before")

    def after(sender: str, headers: dict[str, Any], **_options: Any) -> None:
        seen.append(f"after with {len(site.messages())}")

    scheduler = site.beat(one=site.every(minutes=1))
    settle(scheduler)
    site.clock.advance(minutes=1)
    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        settle(scheduler)
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)

    assert seen == ["before", "after with 1"]
    assert site.messages()[0]["headers"]["stamp"] == "mine"


def test_what_only_celery_can_publish_is_published_by_celery(site: Site, settle: Settle) -> None:
    app = site.app(
        exchange=site.every(minutes=1, options={"exchange": "celery", "routing_key": "celery"}),
        own=site.every("own", minutes=1),
    )
    called = []

    class Own(Task[Any, Any]):
        def apply_async(self, *args: Any, **options: Any) -> Any:
            called.append(options["headers"])
            return super().apply_async(*args, **options)

    @app.task(name="own", base=Own)
    def own() -> None: ...

    scheduler = site.beat(app)
    settle(scheduler)
    site.clock.advance(minutes=1)
    settle(scheduler)

    assert called == [{"celery_beat_task": True}]
    assert sorted(message["headers"]["task"] for message in site.messages()) == ["note", "own"]
    assert [run.total_run_count for run in site.runs().values()] == [1, 1]


def test_an_app_of_stock_celery_may_use_it(site: Site, settle: Settle) -> None:
    register()
    app = StockCelery("stock", broker=site.url, set_as_current=False)
    app.conf.beat_schedule = {"one": site.every("elsewhere", minutes=1)}
    scheduler = site.beat(app)
    settle(scheduler)
    site.clock.advance(minutes=1)
    settle(scheduler)

    assert [message["headers"]["task"] for message in site.messages()] == ["elsewhere"]


def test_it_is_the_default_where_the_broker_is_a_file() -> None:
    name = "celeriac.scheduler.database:DatabaseScheduler"
    assert Celery("a", set_as_current=False).conf.beat_scheduler == name
    assert Celery("b", broker="redis://", set_as_current=False).conf.beat_scheduler != name
    assert Celery("c", broker="memory://", set_as_current=False).conf.beat_scheduler != name
    rabbitmq = {"broker": "amqp://", "set_as_current": False}
    assert Celery("e", **rabbitmq).conf.beat_scheduler == name
    assert Celery("f", backend="sqlite:///records.db", **rabbitmq).conf.beat_scheduler == name
    assert Celery("g", backend="redis://", **rabbitmq).conf.beat_scheduler != name
    chosen = Celery("d", set_as_current=False)
    chosen.conf.beat_scheduler = "mine:Scheduler"
    assert chosen.conf.beat_scheduler == "mine:Scheduler"


def test_without_a_database_it_says_what_is_missing() -> None:
    app = StockCelery("remote", broker="redis://:secret@server/0", set_as_current=False)

    with pytest.raises(ConfigurationError, match=r"neither broker_url \(redis://\)") as caught:
        DatabaseScheduler(app, lazy=True)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("lease", ["soon", 0, timedelta(milliseconds=1)])
def test_a_lease_that_cannot_work_is_refused(site: Site, lease: object) -> None:
    app = site.app()
    app.conf.celeriac_beat_lease = lease

    with pytest.raises(ConfigurationError, match="celeriac_beat_lease"):
        DatabaseScheduler(app, lazy=True)
