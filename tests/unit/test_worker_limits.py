"""When a task is stopped: its time limits, a cancel, and what may still happen afterwards."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from celery import signals

from celeriac import Celery
from celeriac.errors import TaskRevoked
from celeriac.task import Task
from celeriac.worker.embedded import run_embedded


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("limits", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.5
    return app


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=10):
        yield


# -- functions, which need a thread ------------------------------------------------------------------------------


async def test_a_function_that_is_cancelled_while_it_waits_for_a_thread_never_runs(celery: Celery) -> None:
    celery.conf.celeriac_threads = 1
    busy, release, received = threading.Event(), threading.Event(), asyncio.Event()
    ran: list[str] = []

    @celery.task
    def occupies() -> None:
        busy.set()
        release.wait(5)

    @celery.task
    def waits() -> None:
        ran.append("waits")

    @celery.task
    def follows() -> None:
        ran.append("follows")

    def on_received(request: Any, **_: Any) -> None:
        if request.name == waits.name:
            received.set()

    signals.task_received.connect(on_received)
    async with working(celery):
        try:
            first = await occupies.enqueue()
            assert await asyncio.to_thread(busy.wait, 5)
            second = await waits.enqueue()
            await asyncio.wait_for(received.wait(), 5)
            assert await second.cancel()
            with pytest.raises(TaskRevoked):
                await second.result(1)
        finally:
            release.set()
        await first.result(5)
        await (await follows.enqueue()).result(5)
        assert ran == ["follows"]
        assert await second.state() == "REVOKED"


@pytest.mark.parametrize("limits", [(0.3, None), (None, 0.3)], ids=["hard", "soft"])
async def test_the_limits_of_a_function_begin_when_it_gets_its_thread(
    celery: Celery, limits: tuple[float | None, float | None]
) -> None:
    hard, soft = limits
    celery.conf.celeriac_threads = 1

    @celery.task
    def occupies() -> None:
        time.sleep(0.4)

    @celery.task(time_limit=hard, soft_time_limit=soft)
    def limited() -> str:
        time.sleep(0.05)
        return "in time"

    async with working(celery):
        first = await occupies.enqueue()
        second = await limited.enqueue()
        await first.result(5)
        assert await second.result(5) == "in time"


async def test_a_function_that_hangs_past_its_hard_limit_does_not_hold_up_the_next(celery: Celery) -> None:
    celery.conf.celeriac_threads = 1

    @celery.task(time_limit=0.1)
    def hangs() -> None:
        time.sleep(1.5)

    @celery.task
    def follows() -> str:
        return "ran"

    async with working(celery):
        hung = await hangs.enqueue()
        with pytest.raises(Exception, match=r"TimeLimitExceeded|0\.1"):
            await hung.result(1)
        assert await (await follows.enqueue()).result(0.8) == "ran"


# -- coroutines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["hard limit", "shutdown"])
async def test_a_function_that_was_stopped_is_not_retried(celery: Celery, reason: str) -> None:
    """What is put in the way of a thread is an ``Exception``, and many tasks retry themselves for all of these."""
    celery.conf.celeriac_shutdown_grace = 0.1
    started, noticed = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @celery.task(name="busy", bind=True, max_retries=3, time_limit=0.2 if reason == "hard limit" else None)
    def busy(self: Any) -> None:
        try:
            loop.call_soon_threadsafe(started.set)
            while True:
                sum(range(100))
        except Exception as exc:
            loop.call_soon_threadsafe(noticed.set)
            raise self.retry(exc=exc, countdown=0) from exc

    async with celery:
        async with run_embedded(celery, concurrency=10):
            handle = await busy.enqueue()
            await asyncio.wait_for(started.wait(), 5)
            if reason == "hard limit":
                with pytest.raises(Exception, match="TimeLimitExceeded"):
                    await handle.result(5)
                await asyncio.wait_for(noticed.wait(), 5)
        # Handed back, it waits; the retry of an attempt that is made again would be a second message.
        assert await celery.queue_size("celery") == (1 if reason == "shutdown" else 0)


async def test_a_cancel_that_comes_out_as_another_exception_is_still_a_cancel(celery: Celery) -> None:
    started = asyncio.Event()

    @celery.task
    async def translates() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    async with working(celery):
        handle = await translates.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        assert await handle.cancel()
        with pytest.raises(TaskRevoked):
            await handle.result(5)
        assert await handle.state() == "REVOKED"


async def test_a_hard_limit_that_comes_out_as_another_exception_is_still_a_limit(celery: Celery) -> None:
    @celery.task(time_limit=0.05)
    async def translates() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise ConnectionError("closed") from None

    async with working(celery):
        handle = await translates.enqueue()
        with pytest.raises(Exception, match=r"TimeLimitExceeded|0\.05"):
            await handle.result(5)
        record = await handle.record()
        assert record.state == "FAILURE"
        assert record.error == "TimeLimitExceeded - 0.05"


async def test_a_cancel_during_before_start_keeps_the_function_from_running(celery: Celery) -> None:
    preparing = asyncio.Event()
    ran: list[int] = []

    class Prepared(Task[Any, Any]):
        abstract = True

        async def before_start(self, *_: Any) -> None:
            preparing.set()
            await asyncio.sleep(0.4)

    @celery.task(base=Prepared)
    async def prepared() -> None:
        ran.append(1)

    async with working(celery):
        handle = await prepared.enqueue()
        await asyncio.wait_for(preparing.wait(), 5)
        assert await handle.cancel()
        with pytest.raises(TaskRevoked):
            await handle.result(5)
        assert await handle.state() == "REVOKED"
    assert ran == []


async def test_a_cancelled_coroutine_may_finish_its_cleanup(celery: Celery) -> None:
    started, cleaned = asyncio.Event(), asyncio.Event()

    @celery.task
    async def tidy() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(1.1)
            cleaned.set()

    async with working(celery):
        handle = await tidy.enqueue()
        await asyncio.wait_for(started.wait(), 5)
        assert await handle.cancel()
        with pytest.raises(TaskRevoked):
            await handle.result(5)
        await asyncio.wait_for(cleaned.wait(), 1)


async def test_a_soft_limit_takes_the_children_of_a_task_group_along(celery: Celery) -> None:
    cancelled: list[int] = []

    async def child(number: int) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise

    @celery.task(soft_time_limit=0.1)
    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(child(number))

    async with working(celery):
        handle = await parent.enqueue()
        with pytest.raises(Exception, match=r"SoftTimeLimitExceeded|0\.1|TaskGroup"):
            await handle.result(1)
        assert sorted(cancelled) == [0, 1, 2]
        record = await handle.record()
        assert record.state == "FAILURE"
        assert "SoftTimeLimitExceeded" in (record.traceback or "")


async def test_a_timeout_that_is_not_acknowledged_is_delivered_again(celery: Celery) -> None:
    runs: list[int] = []
    again = asyncio.Event()

    @celery.task(time_limit=0.1, acks_on_timeout=False)
    async def slow_at_first() -> str:
        runs.append(1)
        if len(runs) == 1:
            await asyncio.sleep(30)
        again.set()
        return "second run"

    async with working(celery):
        handle = await slow_at_first.enqueue()
        await asyncio.wait_for(again.wait(), 1.5)
    async with celery:
        assert await celery.queue_size("celery") == 0
        record = await handle.record()
        assert (record.state, record.result) == ("SUCCESS", "second run")
    assert len(runs) == 2


async def test_a_coroutine_that_cannot_be_stopped_is_left_to_itself(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriac.worker.coroutines._PATIENCE", 0.05)
    released = asyncio.Event()

    @celery.task(time_limit=0.05)
    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    @celery.task
    async def quick() -> str:
        return "ran"

    async with celery, run_embedded(celery, concurrency=1):
        handle = await stubborn.enqueue()
        with pytest.raises(Exception, match=r"TimeLimitExceeded|0\.05"):
            await handle.result(5)
        assert await (await quick.enqueue()).result(5) == "ran"
        assert await celery.queue_size("celery") == 0
        released.set()
