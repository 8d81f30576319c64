"""How tasks end that are not like the others, and how functions are run that are not what they seem."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import Reject
from pydantic import BaseModel

from celeriac import Celery
from celeriac.stores.records import TaskRecord
from celeriac.worker.embedded import run_embedded


class Order(BaseModel):
    number: int


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words for it")


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("endings", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.5
    return app


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=10):
        yield


# -- endings -----------------------------------------------------------------------------------------------------


async def run_once(app: Celery, task: Any, runs: list[int]) -> TaskRecord:
    """Run the task to its record's end, and see that nothing is left that would come back with its lease's end."""
    app.conf.celeriac_lease = 0.5
    async with app:
        async with run_embedded(app):
            handle = await task.enqueue()
            with contextlib.suppress(Exception):  # the record tells, and not every exception can be printed
                await handle.result(1)
            record: TaskRecord = await handle.record()
        assert record.ready, record.state
        assert await app.queue_size("celery") == 0
        # What is still leased would end the wait early, and the receive would find it.
        await app.broker.wait(["celery"], 0.6)
        assert not (await app.broker.receive(["celery"], 1)).deliveries
    assert len(runs) == 1
    return record


async def test_an_exception_whose_arguments_are_not_text_is_a_failure(celery: Celery) -> None:
    runs: list[int] = []

    @celery.task
    async def decodes() -> str:
        runs.append(1)
        return b"\xff".decode()

    record = await run_once(celery, decodes, runs)
    assert record.state == "FAILURE"
    assert "UnicodeDecodeError" in (record.error or "")


async def test_an_exception_that_cannot_be_printed_is_a_failure(celery: Celery) -> None:
    runs: list[int] = []

    @celery.task
    async def speechless() -> None:
        runs.append(1)
        raise Unprintable

    record = await run_once(celery, speechless, runs)
    assert record.state == "FAILURE"
    assert "Unprintable" in (record.error or "")


async def test_a_task_that_cancels_itself_has_failed(celery: Celery) -> None:
    runs: list[int] = []

    @celery.task
    async def gives_up() -> None:
        runs.append(1)
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(30)

    record = await run_once(celery, gives_up, runs)
    assert record.state == "FAILURE"
    assert "Cancelled" in (record.error or "")


async def test_a_task_that_cancels_itself_as_it_returns_is_settled(celery: Celery) -> None:
    runs: list[int] = []

    @celery.task
    async def gives_up_late() -> None:
        runs.append(1)
        current = asyncio.current_task()
        assert current is not None
        current.cancel()

    await run_once(celery, gives_up_late, runs)


async def test_a_rejected_task_has_failed(celery: Celery) -> None:
    @celery.task
    async def rejects() -> None:
        raise Reject("not for me", requeue=False)

    async with working(celery):
        handle = await rejects.enqueue()
        with pytest.raises(Exception, match="not for me"):
            await handle.result(1)
        assert await handle.state() == "FAILURE"


# -- what runs how -----------------------------------------------------------------------------------------------


async def test_a_task_of_after_the_workers_start_runs(celery: Celery) -> None:
    @celery.task
    async def early() -> str:
        return "early"

    async with working(celery):
        assert await (await early.enqueue()).result(5) == "early"

        @celery.task
        async def late() -> str:
            return "late"

        assert await (await late.enqueue()).result(1) == "late"


def test_apply_runs_a_coroutine_here_and_now(celery: Celery) -> None:
    @celery.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return x * 2

    applied = double.apply(args=(21,))
    assert (applied.state, applied.get()) == ("SUCCESS", 42)


async def test_apply_runs_a_coroutine_beside_a_loop(celery: Celery) -> None:
    @celery.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return x * 2

    async with celery:
        applied = await asyncio.to_thread(lambda: double.apply(args=(21,)))
    assert (applied.state, applied.get()) == ("SUCCESS", 42)


async def test_a_function_that_wraps_a_coroutine_function_runs_in_a_thread(celery: Celery) -> None:
    def on_a_loop_of_its_own(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(function(*args, **kwargs))

        return run

    @celery.task
    @on_a_loop_of_its_own
    async def thread_of(x: int) -> list[int]:
        await asyncio.sleep(0)
        return [x, threading.get_ident()]

    async with working(celery):
        x, thread = await (await thread_of.enqueue(7)).result(5)
        assert x == 7
        assert thread != threading.get_ident()


async def test_a_retry_may_have_a_model_for_an_argument(celery: Celery) -> None:
    @celery.task(bind=True, max_retries=2, default_retry_delay=0)
    async def ship(self: Any, order: Order) -> int:
        if self.request.retries == 0:
            raise self.retry(args=(Order(number=order.number + 1),))
        return order.number

    async with working(celery):
        handle = await ship.enqueue(Order(number=1))
        assert await handle.result(5) == 2
        assert (await handle.record()).retries == 1


class Load:
    """What a task has in a variable."""


async def test_a_failed_tasks_variables_are_gone_with_it(celery: Celery) -> None:
    """Without the garbage collector, which a worker seldom runs: a large table in each would soon be all its memory."""
    loads: list[weakref.ref[Load]] = []

    def carry() -> None:
        load = Load()
        loads.append(weakref.ref(load))
        raise ValueError("failed")

    @celery.task
    async def coroutine() -> None:
        carry()

    @celery.task
    def function() -> None:
        carry()

    gc.disable()
    logging.disable()  # pytest keeps what is logged, and its exceptions
    try:
        async with working(celery):
            for task in (coroutine, function):
                with contextlib.suppress(ValueError):
                    await (await task.enqueue()).result(5)
                async with asyncio.timeout(2):
                    while any(load() is not None for load in loads):
                        await asyncio.sleep(0.01)
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()
    assert len(loads) == 2
