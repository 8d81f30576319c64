"""``.delay()`` on the event loop: said once for each place, with what to write instead."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from blockbuster import BlockBuster
from celery import chain

from celeriac import Celery, blocking


@pytest.fixture(autouse=True)
def _forgets(_no_blocking_calls: BlockBuster) -> Iterator[None]:
    """The very thing that is warned of is done here."""
    _no_blocking_calls.deactivate()
    blocking._named.clear()
    yield
    blocking._named.clear()


@pytest.fixture
def celery(database_url: str) -> Celery:
    return Celery("unit", broker=database_url, set_as_current=False)


@pytest.fixture
def add(celery: Celery) -> Any:
    @celery.task(name="shop.add")
    async def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "celeriac.blocking"]


async def test_the_line_that_did_it_is_named_once(
    celery: Celery, add: Any, caplog: pytest.LogCaptureFixture
) -> None:
    frame = inspect.currentframe()
    assert frame is not None
    async with celery:
        for number in range(3):
            add.delay(1, y=number)
            line = frame.f_lineno - 1
    (message,) = said(caplog)
    assert message.startswith(
        f"{__file__}:{line}: `add.delay(1, y=number)` publishes shop.add on the event loop"
    )
    assert "Write `await add.enqueue(1, y=number)` instead." in message
    assert [record.levelno for record in caplog.records if record.name == "celeriac.blocking"] == [
        logging.WARNING
    ]


async def test_what_to_write_instead(celery: Celery, add: Any, caplog: pytest.LogCaptureFixture) -> None:
    args, options, more = (1,), {"countdown": 5}, {"x": 1}
    async with celery:
        add.apply_async((1, 2), countdown=5, queue="slow")
        add.apply_async(args, {"y": 2})
        add.apply_async(args=[], kwargs={"y": 3, **more})
        add.apply_async(
            (1,),
            priority=3,
        )
        add.apply_async(args, **options)
        celery.send_task("shop.add", (1,), countdown=5)
        add.s(1, 2).delay()
        chain(add.s(1, 2), add.s()).apply_async()
        chain(add.s(1, 2), add.s())()
        (lambda call: call(1))(add.delay)
    assert [message.split("Write ")[1].split(" instead")[0] for message in said(caplog)] == [
        "`await add.using(countdown=5, queue='slow').enqueue(1, 2)`",
        "`await add.enqueue(*args, y=2)`",
        "`await add.enqueue(**{'y': 3, **more})`",
        "`await add.using(priority=3).enqueue(1)`",
        "`await add.using(…).enqueue(…)`",
        "`await celery.enqueue('shop.add', (1,), countdown=5)`",
        "`await celery.enqueue(add.s(1, 2))`",
        "`await celery.enqueue(chain(add.s(1, 2), add.s()))`",
        "`await celery.enqueue(…)` with the signature",
        "`await task.enqueue(…)`, or `await task.using(…).enqueue(…)` with options,",
    ]


async def test_threads_and_memory_and_enqueue_are_fine(
    celery: Celery, add: Any, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Celery("unit", broker=f"memory://{uuid4()}", set_as_current=False)

    @memory.task
    async def nothing() -> None: ...

    async with celery, memory:
        await asyncio.to_thread(add.delay, 1)
        await add.enqueue(1)
        await celery.enqueue(chain(add.s(1), add.s()))
        nothing.delay()
    assert said(caplog) == []


async def test_code_without_source_is_named_too(
    celery: Celery, add: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with celery:
        exec(compile("\nadd.delay(1)", "made up", "exec"), {"add": add})
    (message,) = said(caplog)
    assert message.startswith("made up:2: `delay` publishes shop.add")


async def test_memory_is_bounded(celery: Celery, add: Any, caplog: pytest.LogCaptureFixture) -> None:
    blocking._named.update((f"file{number}", 1) for number in range(1000))
    async with celery:
        add.delay(1)
    assert said(caplog) == []
    assert len(blocking._named) == 1000
