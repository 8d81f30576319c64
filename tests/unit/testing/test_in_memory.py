"""Running an app's tasks in memory, and giving the app back."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group

from celeriac import Celery
from celeriac.brokers.memory_queues import MemoryQueues
from celeriac.errors import BrokerUnavailable, StillRunning
from celeriac.stores.memory_records import MemoryRecords
from celeriac.testing import in_memory


async def test_tasks_run_without_the_server_that_the_settings_name(celery: Celery) -> None:
    @celery.task
    async def add(x: int, y: int) -> int:
        return x + y

    @celery.task
    def add_in_a_thread(x: int, y: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return x + y

    async with in_memory(celery) as tasks:
        one, two = await add.enqueue(1, 2), await add_in_a_thread.enqueue(3, 4)
        await tasks.idle()
        assert (await one.result(), await two.result()) == (3, 7)
        assert await one.state() == "SUCCESS"


async def test_afterwards_the_app_is_as_it_was(celery: Celery) -> None:
    @celery.task
    async def nothing() -> None: ...

    before, known = celery.conf.broker_url, set(vars(celery))
    async with in_memory(celery):
        await nothing.enqueue()
        await asyncio.to_thread(nothing.delay)
        celery.conf.task_default_queue = "only here"
        assert celery.conf.broker_url.startswith("memory://")
    assert celery.conf.broker_url == before
    assert celery.conf.task_default_queue == "celery"
    backend = await asyncio.to_thread(lambda: celery.backend)
    assert backend.as_uri().startswith("redis://127.0.0.1:1/")
    assert not {"amqp", "now", "settings"} & (set(vars(celery)) - known)
    assert abs(celery.now().timestamp() - time.time()) < 60
    with pytest.raises(BrokerUnavailable):
        await nothing.enqueue()


async def test_nothing_of_a_test_is_left_in_the_process(celery: Celery) -> None:
    @celery.task
    async def nothing() -> None: ...

    queues, records = set(MemoryQueues._instances), set(MemoryRecords._named)
    threads = set(threading.enumerate())
    for _ in range(2):
        async with in_memory(celery, mode="held") as tasks:
            assert tasks.enqueued == []
            await nothing.enqueue()
            assert len(tasks.enqueued) == 1
    assert set(MemoryQueues._instances) == queues
    assert set(MemoryRecords._named) == records
    left = set(threading.enumerate()) - threads
    assert not [thread for thread in left if thread.name.startswith("celeriac")]


async def test_nothing_is_written_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    celery = Celery("embedded", set_as_current=False)

    @celery.task
    async def nothing() -> None: ...

    async with in_memory(celery) as tasks:
        await nothing.enqueue()
        await asyncio.to_thread(nothing.delay)
        await tasks.idle()
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


async def test_two_apps_at_a_time_do_not_meet(celery: Celery) -> None:
    other = Celery("other", set_as_current=False)
    ran: list[str] = []

    for app in (celery, other):

        @app.task(name="same.name")
        async def note(app: Any = app) -> None:
            ran.append(app.main)

    async with in_memory(celery) as ours, in_memory(other) as theirs:
        await celery.enqueue("same.name")
        await ours.idle()
        await theirs.idle()
        assert ran == [celery.main]
        assert (len(ours.enqueued), len(theirs.enqueued)) == (1, 0)


async def test_the_stock_ways_to_publish_and_to_wait_work(celery: Celery) -> None:
    @celery.task
    async def double(x: int) -> int:
        return 2 * x

    @celery.task
    async def total(values: list[int]) -> int:
        return sum(values)

    async with in_memory(celery) as tasks:
        result = await asyncio.to_thread(double.delay, 4)
        assert await asyncio.to_thread(result.get, timeout=5) == 8
        tasks.assert_enqueued(double, 4)
        assert await (await celery.enqueue(chain(double.s(1), double.s()))).result(5) == 4
        handle = await celery.enqueue(chord(group(double.s(n) for n in range(4)), total.s()))
        await tasks.idle()
        assert await handle.result(0) == 12


async def test_each_queue_that_a_task_is_sent_to_is_worked_on(celery: Celery) -> None:
    @celery.task
    async def where() -> str:
        return str(where.request.delivery_info["routing_key"])

    celery.conf.task_routes = {where.name: {"queue": "reports"}}
    async with in_memory(celery) as tasks:
        routed, sent = await where.enqueue(), await where.using(queue="elsewhere").enqueue()
        await tasks.idle()
        assert (await routed.result(0), await sent.result(0)) == ("reports", "elsewhere")


async def test_held_tasks_run_when_the_test_says_so(celery: Celery) -> None:
    ran: list[int] = []

    @celery.task
    async def note(n: int) -> None:
        ran.append(n)

    async with in_memory(celery, mode="held") as tasks:
        await note.enqueue(1)
        await tasks.idle()
        await asyncio.sleep(0.02)
        assert ran == []
        await tasks.run_until_idle()
        assert ran == [1]
        await note.enqueue(2)
        await asyncio.sleep(0.02)
        assert ran == [1]


async def test_a_task_that_never_ends_is_named(celery: Celery) -> None:
    @celery.task
    async def endless() -> None:
        await asyncio.Event().wait()

    async with in_memory(celery, timeout=0.1) as tasks:
        handle = await endless.enqueue()
        with pytest.raises(StillRunning, match="The tasks were not done within") as caught:
            await tasks.idle()
        assert f"{endless.name}[{handle.id}] still runs" in str(caught.value)


async def test_a_task_that_nobody_knows_fails_at_once(celery: Celery) -> None:
    async with in_memory(celery) as tasks:
        handle = await celery.enqueue("no.such.task")
        await tasks.idle()
        assert (await handle.record()).error == "NotRegistered - no.such.task"


async def test_failures_are_raised_where_the_test_waits_if_it_asks_for_that(celery: Celery) -> None:
    @celery.task
    async def fail() -> None:
        raise ZeroDivisionError("by nothing")

    async with in_memory(celery) as tasks:
        await fail.enqueue()
        await tasks.idle()

    async with in_memory(celery, raise_errors=True) as tasks:
        await fail.enqueue()
        with pytest.raises(ZeroDivisionError, match="by nothing") as caught:
            await tasks.idle()
        assert 'raise ZeroDivisionError("by nothing")' in caught.value.__notes__[0]
        await tasks.idle()


async def test_an_app_that_is_open_stays_open(database_url: str) -> None:
    celery = Celery("open", broker=database_url, backend=database_url, set_as_current=False)

    @celery.task(name="nothing")
    async def nothing() -> None: ...

    async with celery:
        before = await celery.enqueue("nothing")
        async with in_memory(celery, mode="held") as outer:
            await celery.enqueue("nothing")
            async with in_memory(celery) as inner:
                handle = await celery.enqueue("nothing")
                await inner.idle()
                assert await handle.state() == "SUCCESS"
            assert (len(outer.enqueued), len(inner.enqueued)) == (1, 1)
            assert await celery.queue_size("celery") == 1
        assert await before.state() == "PENDING"
        assert await celery.queue_size("celery") == 1
