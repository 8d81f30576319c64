"""``celery worker`` says what it cannot do, and what to do instead."""

from __future__ import annotations

from typing import Any

import pytest
from celery import bootsteps

from celeriac import Celery
from celeriac.worker.unsupported import unsupported


def worker_of(**options: Any) -> Any:
    app = Celery("program", broker="memory://program", set_as_current=False)
    app.conf.update(options.pop("conf", {}))
    app.steps["consumer"].update(options.pop("steps", ()))
    worker = app.Worker.__new__(app.Worker)
    worker.setup_defaults(**options)
    return worker


class Listener(bootsteps.StartStopStep):  # type: ignore[misc]
    pass


def test_nothing_is_said_of_what_works() -> None:
    assert unsupported(worker_of(concurrency=3)) == []


def test_limits_of_child_processes_are_named_with_the_pool_that_has_them() -> None:
    tasks, memory = unsupported(worker_of(max_tasks_per_child=5, conf={"worker_max_memory_per_child": 100}))
    assert "worker_max_tasks_per_child" in tasks
    assert "worker_max_memory_per_child" in memory
    assert "-P processes" in tasks


def test_steps_of_the_consumer_are_named() -> None:
    (sentence,) = unsupported(worker_of(steps=[Listener]))
    assert "Listener" in sentence
    assert 'app.steps["worker"]' in sentence


def test_an_agent_is_named() -> None:
    (sentence,) = unsupported(worker_of(conf={"worker_agent": "agents:Agent"}))
    assert "worker_agent" in sentence


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("worker_prefetch_multiplier", 4),
        ("worker_pool_restarts", True),
        ("worker_pool_start_method", "spawn"),
        ("worker_pool_putlocks", False),
        ("worker_lost_wait", 3.0),
        ("worker_proc_alive_timeout", 9.0),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
        ("worker_enable_soft_shutdown_on_idle", True),
        ("worker_timer", "timers:Timer"),
    ],
)
def test_a_setting_without_effect_is_named_once(setting: str, value: Any) -> None:
    (sentence,) = unsupported(worker_of(conf={setting: value}))
    assert sentence.startswith(f"{setting} has no effect: ")


def test_settings_of_a_database_engine_are_named() -> None:
    conf = {"database_engine_options": {"echo": True}, "database_short_lived_sessions": True}
    sentences = unsupported(worker_of(conf=conf))
    assert [sentence.split()[0] for sentence in sentences] == [
        "database_engine_options",
        "database_short_lived_sessions",
    ]


def test_tasks_with_a_request_class_of_their_own_are_named() -> None:
    worker = worker_of()

    @worker.app.task(name="special", Request="requests:Special")  # type: ignore[untyped-decorator]
    def special() -> None: ...

    (sentence,) = unsupported(worker)
    assert "special" in sentence
