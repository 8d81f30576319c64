"""A canvas of many tasks: what is read is read at once, and what costs time leaves the loop alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, chord, group

from celeriac import Celery
from celeriac.stores.records import TaskRecord
from celeriac.task import Task
from celeriac.worker.embedded import run_embedded

#: Where tasks were published.
_threads: list[threading.Thread] = []


class Noted(Task[..., Any]):
    """A task that notes in which thread it is laid out."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        _threads.append(threading.current_thread())
        return super().apply_async(*args, **options)


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("large", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0

    @app.task(name="add", base=Noted)
    async def add(x: int, y: int) -> int:
        return x + y

    @app.task(name="first")
    async def first() -> int:
        return 1

    @app.task(name="total")
    async def total(values: list[int]) -> int:
        return sum(values)

    app.finalize()
    return app


def slow_reads(app: Celery, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each question to the store cost time."""
    get = app.store.get

    async def get_late(task_ids: Sequence[str]) -> Mapping[str, TaskRecord]:
        await asyncio.sleep(seconds)
        return await get(task_ids)

    monkeypatch.setattr(app.store, "get", get_late)


async def test_the_results_of_a_nested_header_are_read_at_once(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    celery.conf.result_chord_join_timeout = 0.5
    add, first = celery.tasks["add"], celery.tasks["first"]
    async with celery, run_embedded(celery, concurrency=20):
        nested = chain(first.s(), group(add.s(1) for _ in range(100)))
        handle = await celery.enqueue(chord([nested, first.s()], celery.signature("join")))
        slow_reads(celery, monkeypatch, 0.02)

        @celery.task(name="join")
        async def join(values: list[Any]) -> int:
            return len(values[0])

        assert await handle.result(10) == 100


async def test_the_state_of_a_group_is_one_question(celery: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    add = celery.tasks["add"]
    async with celery:
        handle = await celery.enqueue(group(add.s(1, 1) for _ in range(200)))
        slow_reads(celery, monkeypatch, 0.02)
        async with asyncio.timeout(2):
            assert await handle.state() == "PENDING"


@pytest.mark.parametrize("many", [2, 40])
async def test_what_follows_a_task_is_laid_out_in_a_thread_if_it_is_much(celery: Celery, many: int) -> None:
    add, first, total = celery.tasks["add"], celery.tasks["first"], celery.tasks["total"]
    async with celery, run_embedded(celery, concurrency=20):
        for canvas in (
            chain(first.s(), group(add.s(1) for _ in range(many)), total.s()),
            chord([first.s()], chord([add.si(1, 1) for _ in range(many)], total.s())),
        ):
            _threads.clear()
            handle = await celery.enqueue(canvas)
            assert await handle.result(10) == 2 * many
            assert len(_threads) == many
            assert ({threading.main_thread()} == set(_threads)) is (many == 2)
