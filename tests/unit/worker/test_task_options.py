"""What Celery's documentation promises of tasks and their options, for ``def`` and ``async def`` tasks alike."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import celery as stock
import pytest
from celery import current_app, current_task, signals
from celery.exceptions import MaxRetriesExceededError, Reject, Retry
from pydantic import BaseModel

from celeriac import Celery, TaskContext
from celeriac.errors import InvalidArguments
from celeriac.worker.embedded import run_embedded


class Point(BaseModel):
    x: int


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("options", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.5
    assert app.conf.task_always_eager is False  # reads the configuration, which a loop must not wait for
    return app


@pytest.fixture(params=["def", "async def"])
def body(request: pytest.FixtureRequest) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of a kind of another: the tests' tasks are written as ``def``."""

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        if request.param == "def":
            return function

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)
            return function(*args, **kwargs)

        return coroutine

    return make


@asynccontextmanager
async def working(app: Celery) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=10):
        yield


# -- classes -----------------------------------------------------------------------------------------------------


async def test_a_class_may_wrap_the_call(celery: Celery, body: Any) -> None:
    class BySuper(celery.Task):  # type: ignore[misc,name-defined]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    class ByRun(celery.Task):  # type: ignore[misc,name-defined]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.run(*args, **kwargs)

    def tell(self: Any, x: int) -> list[Any]:
        return [x, self.request.id, current_task.name]

    for base in (BySuper, ByRun):
        task = celery.task(base=base, bind=True, name=base.__name__)(body(tell))
        async with working(celery):
            handle = await task.enqueue(1)
            assert await handle.result(5) == [1, handle.id, task.name]


async def test_a_class_may_wrap_the_call_of_a_coroutine(celery: Celery) -> None:
    class Wrapping(celery.Task):  # type: ignore[misc,name-defined]
        async def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return {"wrapped": await super().__call__(*args, **kwargs)}

    @celery.task(base=Wrapping, bind=True)
    async def tell(self: Any, x: int) -> Any:
        await asyncio.sleep(0)
        return [x, self.request.retries]

    async with working(celery):
        assert await (await tell.enqueue(1)).result(5) == {"wrapped": [1, 0]}


@pytest.mark.parametrize("base", ["ours", "Celery's"])
async def test_a_class_is_registered_as_a_task(celery: Celery, body: Any, base: str) -> None:
    def run(self: Any, x: int) -> list[Any]:
        if self.request.retries < 2:
            raise KeyError(x)
        return [x, self.request.retries]

    namespace = {
        "run": body(run),
        "name": "class",
        "autoretry_for": (KeyError,),
        "retry_kwargs": {"countdown": 0, "max_retries": 2},
    }
    task = celery.register_task(type("Class", (celery.Task if base == "ours" else stock.Task,), namespace)())
    async with working(celery):
        assert await (await celery.enqueue(task.name, [1])).result(5) == [1, 2]


async def test_annotations_change_tasks(celery: Celery, body: Any) -> None:
    called: list[str] = []

    def on_failure(self: Any, exc: Exception, *_: Any) -> None:
        called.append(str(exc))

    celery.conf.task_annotations = {
        "fails": {"max_retries": 7, "on_failure": on_failure},
        "*": {"trail": False},
    }

    def fails() -> None:
        raise ValueError(f"{current_task.max_retries} {current_task.trail}")

    task = celery.task(name="fails")(body(fails))
    async with working(celery):
        with pytest.raises(ValueError, match="7 False"):
            await (await task.enqueue()).result(5)
    assert called == ["7 False"]


# -- retries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"countdown": 0},
        {"countdown": 0, "exc": OSError("not yet")},
        {"countdown": 0, "max_retries": 5},
        {"countdown": 0, "priority": 3, "shadow": "again", "headers": {"x": 1}, "time_limit": 30},
        {"eta": datetime.now(UTC) - timedelta(seconds=1)},
    ],
    ids=" and ".join,
)
async def test_a_retry_takes_what_celerys_takes(celery: Celery, body: Any, options: Any) -> None:
    def flaky(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(**options)
        return int(self.request.retries)

    task = celery.task(bind=True, name="flaky")(body(flaky))
    async with working(celery):
        assert await (await task.enqueue()).result(5) == 2


async def test_a_retry_may_have_other_arguments_and_another_queue(celery: Celery, body: Any) -> None:
    def flaky(self: Any, x: int, y: int = 0) -> list[int]:
        if not self.request.retries:
            raise self.retry(args=(5,), kwargs={"y": 6}, countdown=0)
        return [x, y]

    def moves(self: Any) -> None:
        raise self.retry(queue="elsewhere", countdown=0)

    flaky_task, moving = (celery.task(bind=True, name=f.__name__)(body(f)) for f in (flaky, moves))
    async with working(celery):
        assert await (await flaky_task.enqueue(1, y=2)).result(5) == [5, 6]
        handle = await moving.enqueue()
        async with asyncio.timeout(5):
            while await handle.state() != "RETRY":
                await asyncio.sleep(0.01)
            while not await celery.queue_size("elsewhere"):
                await asyncio.sleep(0.01)


async def test_a_retry_that_is_not_thrown_lets_the_attempt_go_on(celery: Celery, body: Any) -> None:
    seen: list[str] = []

    def goes_on(self: Any) -> str:
        if self.request.retries:
            seen.append("second")
            return "second"
        seen.append(type(self.retry(countdown=0, throw=False)).__name__)
        return "first"

    task = celery.task(bind=True, name="goes_on")(body(goes_on))
    async with working(celery):
        await (await task.enqueue()).result(5)
        async with asyncio.timeout(5):
            while seen != [Retry.__name__, "second"]:
                await asyncio.sleep(0.01)


async def test_retries_end_as_the_task_says(celery: Celery, body: Any) -> None:
    def bare(self: Any) -> None:
        self.retry(countdown=0)

    def with_cause(self: Any) -> None:
        raise self.retry(exc=OSError("cause"), countdown=0)

    def endless(self: Any) -> int:
        if self.request.retries < 6:
            self.retry(countdown=0)
        return int(self.request.retries)

    bare_task = celery.task(bind=True, max_retries=1, name="bare")(body(bare))
    caused = celery.task(bind=True, max_retries=1, name="caused")(body(with_cause))
    endless_task = celery.task(bind=True, max_retries=None, name="endless")(body(endless))
    async with working(celery):
        with pytest.raises(MaxRetriesExceededError, match="Can't retry bare"):
            await (await bare_task.enqueue()).result(5)
        with pytest.raises(OSError, match="cause"):
            await (await caused.enqueue()).result(5)
        assert await (await endless_task.enqueue()).result(5) == 6


async def test_autoretry_has_its_exceptions(celery: Celery, body: Any) -> None:
    attempts: dict[str, int] = {}

    def fails(how: str) -> None:
        attempts[how] = attempts.get(how, 0) + 1
        raise {"listed": OSError(how), "excepted": ValueError(how), "reject": Reject(how, requeue=False)}[how]

    task = celery.task(
        name="fails",
        autoretry_for=(Exception,),
        dont_autoretry_for=(ValueError,),
        retry_kwargs={"max_retries": 2, "countdown": 0},
    )(body(fails))
    async with working(celery):
        for how in ("listed", "excepted", "reject"):
            with pytest.raises(Exception, match=how):
                await (await task.enqueue(how)).result(5)
    assert attempts == {"listed": 3, "excepted": 1, "reject": 3}


async def test_autoretry_backs_off(celery: Celery, body: Any) -> None:
    def fails() -> None:
        raise OSError

    task = celery.task(
        name="fails", autoretry_for=(OSError,), retry_backoff=50, retry_backoff_max=70, retry_jitter=False
    )(body(fails))
    again: asyncio.Future[datetime] = asyncio.get_running_loop().create_future()

    @signals.before_task_publish.connect
    def on_publish(headers: Any, **_: Any) -> None:
        if headers["retries"]:
            again.set_result(datetime.fromisoformat(headers["eta"]))

    async with working(celery):
        await task.enqueue()
        async with asyncio.timeout(5):
            eta = await again
        assert 45 < (eta - datetime.now(UTC)).total_seconds() <= 50


async def test_a_limit_of_its_own_is_that_attempts_alone(celery: Celery, body: Any) -> None:
    """Executions of one task run beside each other, and share the task object."""
    last: dict[str, int] = {}

    def fails(self: Any, name: str, limit: int | None) -> None:
        last[name] = self.request.retries
        if limit is not None:
            self.override_max_retries = limit
        raise OSError

    task = celery.task(
        bind=True, name="fails", max_retries=3, autoretry_for=(OSError,), retry_kwargs={"countdown": 0}
    )(body(fails))
    async with working(celery):
        handles = [await task.enqueue(f"limited {limit}", limit) for limit in (0, 1, None, 0, None)]
        for handle in handles:
            with pytest.raises(OSError):
                await handle.result(5)
    assert last == {"limited 0": 0, "limited 1": 1, "limited None": 3}


# -- states ------------------------------------------------------------------------------------------------------


async def test_a_task_sets_its_own_state_and_anothers(celery: Celery, body: Any) -> None:
    def sets(self: Any) -> None:
        self.update_state(state="HALFWAY", meta={"done": 1})
        self.update_state("another", "CUSTOM", {"a": 1})

    task = celery.task(bind=True, name="sets")(body(sets))
    async with working(celery):
        handle = await task.enqueue()
        await handle.result(5)
        async with asyncio.timeout(5):
            while (await celery.store.get(["another"])).get("another") is None:
                await asyncio.sleep(0.01)
        record = await celery.handle("another").record()
        assert (record.state, record.result) == ("CUSTOM", {"a": 1})
        states = [event.data["state"] async for event in handle.events() if event.kind == "state"]
        assert states == ["PENDING", "STARTED", "HALFWAY", "SUCCESS"]


# -- pydantic=True -----------------------------------------------------------------------------------------------


async def test_celerys_own_pydantic_validates_its_own_way(celery: Celery, body: Any) -> None:
    def shift(point: Point) -> Point:
        return Point(x=point.x + 1)

    strict = celery.task(name="strict", pydantic=True, pydantic_strict=True)(body(shift))
    lax = celery.task(name="lax", pydantic=True)(body(shift))
    async with working(celery):
        for task in (strict, lax):
            assert (await (await task.enqueue(Point(x=1))).result(5)) == Point(x=2)
        # As a stock client sends it.
        sent = await asyncio.to_thread(celery.send_task, "lax", ({"x": "1"},))
        assert await celery.handle(sent.id).result(5) == {"x": 2}
        sent = await asyncio.to_thread(celery.send_task, "strict", ({"x": "1"},))
        with pytest.raises(Exception, match="ValidationError"):
            await celery.handle(sent.id).result(5)


# -- here and now ------------------------------------------------------------------------------------------------


async def test_always_eager_runs_what_is_enqueued(celery: Celery, body: Any) -> None:
    celery.conf.task_always_eager = True
    loops: list[Any] = []

    def shift(self: Any, point: Point, context: TaskContext) -> Point:
        loops.append(asyncio._get_running_loop())
        assert self.request.is_eager
        assert context.id == self.request.id
        return Point(x=point.x + 1)

    def flaky(self: Any) -> int:
        if self.request.retries < 2:
            raise OSError
        return int(self.request.retries)

    shifting = celery.task(bind=True, name="shift")(body(shift))
    retrying = celery.task(
        bind=True, name="flaky", autoretry_for=(OSError,), retry_kwargs={"countdown": 0, "max_retries": 2}
    )(body(flaky))
    handle = await shifting.enqueue(Point(x=1))
    assert await handle.result() == Point(x=2)
    assert await handle.state() == "SUCCESS"
    assert loops[0] in (None, asyncio.get_running_loop())
    assert await (await retrying.enqueue()).result() == 2
    assert await (await celery.enqueue(retrying.s())).result() == 2
    assert [event async for event in handle.events()] == []


async def test_an_eager_failure_waits_for_who_asks_or_is_raised(celery: Celery, body: Any) -> None:
    celery.conf.task_always_eager = True

    def fails() -> None:
        raise ValueError("too bad")

    task = celery.task(name="fails")(body(fails))
    handle = await task.enqueue()
    assert (await handle.state(), (await handle.record()).error) == ("FAILURE", "ValueError - too bad")
    with pytest.raises(ValueError, match="too bad"):
        await handle.result()
    celery.conf.task_eager_propagates = True
    with pytest.raises(ValueError, match="too bad"):
        await task.enqueue()


async def test_apply_inside_a_running_task_runs_a_coroutine_to_its_end(celery: Celery) -> None:
    @celery.task(bind=True)
    async def inner(self: Any) -> list[Any]:
        await asyncio.sleep(0)
        return [self.request.parent_id, self.request.is_eager]

    @celery.task(bind=True)
    def outer(self: Any) -> list[Any]:
        return [self.request.id, *inner.apply().get(disable_sync_subtasks=False)]

    async with working(celery):
        own, parent, eager = await (await outer.enqueue()).result(5)
        assert (own, eager) == (parent, True)


async def test_the_current_app_of_a_thread_is_its_workers(celery: Celery) -> None:
    @celery.task(name="whose")
    def whose() -> str:
        return str(current_app.main)

    async with working(celery):
        assert await (await whose.enqueue()).result(5) == celery.main


async def test_stop_iteration_is_recorded_as_it_was_raised(celery: Celery) -> None:
    @celery.task(name="exhausted")
    def exhausted() -> str:
        return next(iter(()))

    async with working(celery):
        handle = await exhausted.enqueue()
        async for _event in handle.events():
            """Until it has ended: a coroutine cannot raise what the task has raised."""
        assert (await handle.record()).result["exc_type"] == "StopIteration"


@pytest.mark.parametrize("priority", [-1, 256, "5", 1.5])
async def test_a_priority_that_no_broker_takes_is_refused(celery: Celery, priority: Any) -> None:
    @celery.task(name="urgent")
    async def urgent() -> None: ...

    async with celery:
        with pytest.raises(InvalidArguments, match="from 0 to 255"):
            await urgent.using(priority=priority).enqueue()
