"""Rate limits: how often a task starts, and what happens to those that have to wait."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from celeriac import Celery
from celeriac.errors import ConfigurationError, TaskRevoked
from celeriac.worker.embedded import run_embedded
from celeriac.worker.fetcher import Slots


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("rates", broker=url, backend=url, set_as_current=False)
    app.conf.worker_enable_remote_control = False
    app.conf.celeriac_shutdown_grace = 0.5
    return app


@asynccontextmanager
async def working(app: Celery, concurrency: int = 10) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=concurrency):
        yield


def limited(app: Celery, rate: Any, **options: Any) -> tuple[Any, list[float]]:
    """A task with a rate limit, and the times at which it started."""
    starts: list[float] = []

    @app.task(rate_limit=rate, name="limited", **options)
    async def start(number: int) -> int:
        starts.append(time.monotonic())
        return number

    return start, starts


async def test_starts_are_spread_evenly(celery: Celery) -> None:
    task, starts = limited(celery, "20/s")
    async with working(celery):
        handles = [await task.enqueue(number) for number in range(6)]
        assert [await handle.result(5) for handle in handles] == list(range(6))
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert sum(pauses) >= 0.24
    assert min(pauses) > 0.01


async def test_what_waits_leaves_its_slot_to_other_tasks(celery: Celery) -> None:
    task, _ = limited(celery, "1/h")

    @celery.task
    async def other() -> str:
        return "done"

    async with working(celery, concurrency=2):
        for number in range(3):  # one starts, two wait
            await task.enqueue(number)
        assert await (await other.enqueue()).result(5) == "done"


async def test_a_worker_takes_no_more_than_it_has_slots_for_twice(celery: Celery) -> None:
    task, starts = limited(celery, "1/h")
    async with working(celery, concurrency=2):
        handles = [await task.enqueue(number) for number in range(8)]
        await handles[0].result(5)
        while await celery.queue_size("celery") > 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await celery.queue_size("celery") == 3
    assert len(starts) == 1


async def test_what_waits_is_handed_back_at_once_when_the_worker_ends(celery: Celery) -> None:
    task, starts = limited(celery, "1/h", acks_late=False)
    async with celery:
        async with run_embedded(celery, concurrency=10):
            handles = [await task.enqueue(number) for number in range(3)]
            await handles[0].result(5)
            while await celery.queue_size("celery"):
                await asyncio.sleep(0.01)
            began = time.monotonic()
        assert time.monotonic() - began < 0.4
        assert await celery.queue_size("celery") == 2
        assert len(starts) == 1


async def test_what_waits_can_be_cancelled(celery: Celery) -> None:
    task, starts = limited(celery, "1/h")
    async with working(celery):
        first, second = await task.enqueue(1), await task.enqueue(2)
        await first.result(5)
        while await celery.queue_size("celery"):
            await asyncio.sleep(0.01)
        assert await second.cancel()
        with pytest.raises(TaskRevoked):
            await second.result(5)
    assert len(starts) == 1


async def test_what_waits_keeps_its_lease(celery: Celery) -> None:
    celery.conf.celeriac_lease = 0.5
    task, starts = limited(celery, 0.7)
    async with working(celery):
        handles = [await task.enqueue(number) for number in range(2)]
        assert [await handle.result(5) for handle in handles] == [0, 1]
    assert len(starts) == 2


async def test_the_setting_disables_them(celery: Celery) -> None:
    celery.conf.worker_disable_rate_limits = True
    task, starts = limited(celery, "1/h")
    async with working(celery):
        for handle in [await task.enqueue(number) for number in range(3)]:
            await handle.result(5)
    assert len(starts) == 3


async def test_the_default_is_for_tasks_without_their_own(celery: Celery) -> None:
    celery.conf.task_default_rate_limit = "1/h"
    own, starts = limited(celery, "100/s")

    @celery.task
    async def default() -> None:
        starts.append(0.0)

    async with working(celery):
        handles = [
            await default.enqueue(),
            await default.enqueue(),
            await own.enqueue(1),
            await own.enqueue(2),
        ]
        for handle in (handles[0], *handles[2:]):
            await handle.result(5)
        assert starts.count(0.0) == 1


async def test_a_rate_that_is_none_is_said_in_a_sentence(celery: Celery) -> None:
    limited(celery, "often")
    with pytest.raises(ConfigurationError, match="rate limit of task limited is 'often'"):
        async with working(celery):
            pass


async def test_a_slot_goes_to_who_waits_before_the_fetcher_sees_it() -> None:
    slots = Slots(1)
    slots.take(1)
    waiting = asyncio.create_task(slots.acquire())
    given_up = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    slots.release()
    assert slots.free == 0
    await waiting
    given_up.cancel()
    await asyncio.wait([given_up])
    slots.release()
    assert slots.free == 1


async def test_no_more_ended_tasks_wait_for_the_store_than_there_are_slots() -> None:
    slots = Slots(1)
    slots.take(1)
    assert slots.release_early()
    slots.take(1)
    assert not slots.release_early()
    assert slots.free == 0
    slots.concluded()
    assert slots.release_early()
    assert slots.free == 1
