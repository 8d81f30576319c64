"""``task_always_eager`` holds for canvas and for many tasks as well: nothing is published."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery.exceptions import AlwaysEagerIgnored

from celeriac import Celery


@pytest.fixture
def celery() -> Celery:
    app = Celery("eager", broker=f"memory://{uuid4()}", set_as_current=False)
    app.conf.task_always_eager = True

    @app.task(name="add")
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y

    @app.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @app.task(name="fail")
    async def fail(_value: int) -> None:
        raise ValueError("too bad")

    app.finalize()
    return app


async def test_chains_groups_and_chords_have_run_when_they_are_enqueued(celery: Celery) -> None:
    add, total = celery.tasks["add"], celery.tasks["total"]
    assert await (await celery.enqueue(chain(add.s(1, 2), add.s(3)))).result() == 6
    handle = await celery.enqueue(group(add.s(1, 1), add.s(2, 2)))
    assert await handle.state() == "SUCCESS"
    assert await handle.result() == [2, 4]
    assert await (await celery.enqueue(chord([add.s(1, 1), add.s(2, 2)], total.s()))).result() == 6
    async with celery:
        assert await celery.queue_size("celery") == 0


async def test_a_canvas_that_fails_says_so_to_who_asks(celery: Celery) -> None:
    handle = await celery.enqueue(chain(celery.tasks["add"].s(1, 2), celery.tasks["fail"].s()))
    assert await handle.state() == "FAILURE"
    with pytest.raises(ValueError, match="too bad"):
        await handle.result()


async def test_many_run_one_by_one(celery: Celery) -> None:
    handles = await celery.enqueue_many([celery.tasks["add"].s(number, 1) for number in range(3)])
    assert [await handle.result() for handle in handles] == [1, 2, 3]
    async with celery:
        assert await celery.queue_size("celery") == 0


async def test_a_task_by_name_is_published_with_a_warning_as_in_celery(celery: Celery) -> None:
    async with celery:
        with pytest.warns(AlwaysEagerIgnored):
            await celery.enqueue("somewhere.else")
        assert await celery.queue_size("celery") == 1


async def test_eager_tasks_that_enqueue_others_do_not_wait_for_each_others_threads(celery: Celery) -> None:
    @celery.task
    async def inner(number: int) -> int:
        return number

    @celery.task
    async def outer(number: int) -> int:
        return await (await inner.enqueue(number)).result()

    async with asyncio.timeout(10):
        handles = await asyncio.gather(*(outer.enqueue(number) for number in range(40)))
    assert [await handle.result() for handle in handles] == list(range(40))
