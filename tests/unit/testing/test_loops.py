"""Fixtures and tests on different event loops: where the fixture's loop sleeps, its worker sleeps with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from celeriac import Celery
from celeriac.testing import InMemoryTasks, in_memory


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[tuple[Celery, InMemoryTasks]]:
    celery = Celery("shared", set_as_current=False)

    @celery.task(name="where")
    async def where() -> int:
        return id(asyncio.get_running_loop())

    async with in_memory(celery) as tasks:
        yield celery, tasks


async def test_idle_brings_a_worker_to_the_loop_of_the_test(shared: tuple[Celery, InMemoryTasks]) -> None:
    celery, tasks = shared
    now, later = await celery.enqueue("where"), await celery.enqueue("where", countdown=60)
    await tasks.idle()
    assert await now.result() == id(asyncio.get_running_loop())
    await tasks.clock.advance(minutes=1)
    assert await later.result() == id(asyncio.get_running_loop())


@pytest.mark.asyncio(loop_scope="module")
async def test_on_the_fixtures_loop_its_worker_works(shared: tuple[Celery, InMemoryTasks]) -> None:
    celery, _ = shared
    handle = await celery.enqueue("where")
    assert await handle.result(5) == id(asyncio.get_running_loop())
