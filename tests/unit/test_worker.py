"""What a task may count on while it runs in our worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from celeriac import Celery, TaskContext
from celeriac.errors import TaskRevoked
from celeriac.worker.embedded import run_embedded


@pytest.fixture(params=["memory", "sqlite"])
def celery(request: pytest.FixtureRequest, database_url: str) -> Celery:
    url = f"memory://{uuid4()}" if request.param == "memory" else database_url
    app = Celery("unit", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0
    return app


@asynccontextmanager
async def working(app: Celery, concurrency: int = 20) -> AsyncIterator[None]:
    async with app, run_embedded(app, concurrency=concurrency):
        yield


async def test_coroutines_functions_and_generators_return_what_they_return(celery: Celery) -> None:
    @celery.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return x * 2

    @celery.task
    def triple(x: int) -> int:
        return x * 3

    @celery.task
    async def words(text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    async with working(celery):
        assert await (await double.enqueue(21)).result(5) == 42
        assert await (await triple.enqueue(x=2)).result(5) == 6
        handle = await words.enqueue("one two three")
        assert await handle.result(5) is None
        assert [event.data async for event in handle.events() if event.kind == "value"] == [
            "one",
            "two",
            "three",
        ]


async def test_a_failure_is_raised_as_what_the_task_raised(celery: Celery) -> None:
    @celery.task
    async def fail() -> None:
        raise ValueError("too bad")

    async with working(celery):
        handle = await fail.enqueue()
        with pytest.raises(ValueError, match="too bad"):
            await handle.result(5)
        record = await handle.record()
        assert record.state == "FAILURE"
        assert record.error == "ValueError - too bad"
        assert "too bad" in (record.traceback or "")
        assert "celeriac" not in (record.traceback or "").split("test_worker.py")[0]


async def test_a_retry_keeps_the_id_and_counts_until_it_gives_up(celery: Celery) -> None:
    seen: list[int] = []

    @celery.task(bind=True, max_retries=2, default_retry_delay=0)
    async def flaky(self: Any) -> str:
        seen.append(self.request.retries)
        raise self.retry(exc=OSError("not yet"))

    @celery.task(bind=True, max_retries=3, default_retry_delay=0)
    def recovers(self: Any) -> int:
        if self.request.retries < 2:
            raise self.retry(exc=OSError("not yet"))
        return int(self.request.retries)

    async with working(celery):
        handle = await flaky.enqueue()
        with pytest.raises(OSError, match="not yet"):
            await handle.result(5)
        assert seen == [0, 1, 2]
        assert [attempt.retries for attempt in (await handle.record()).attempts] == [0, 1, 2]
        assert await (await recovers.enqueue()).result(5) == 2


async def test_autoretry_sees_what_a_coroutine_raises(celery: Celery) -> None:
    tries: list[int] = []

    @celery.task(autoretry_for=(ConnectionError,), max_retries=2, default_retry_delay=0)
    async def connect() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("refused")
        return "connected"

    async with working(celery):
        assert await (await connect.enqueue()).result(5) == "connected"


async def test_requests_of_interleaved_tasks_are_told_apart(celery: Celery) -> None:
    @celery.task(bind=True)
    async def who(self: Any, pause: float) -> tuple[str, str, str]:
        before = self.request.id
        await asyncio.sleep(pause)
        from celery import current_task

        return before, self.request.id, current_task.request.id

    async with working(celery):
        handles = [await who.enqueue(0.05 - i * 0.005) for i in range(10)]
        for handle in handles:
            assert await handle.result(5) == (handle.id, handle.id, handle.id)


async def test_soft_limit_is_raised_inside_and_hard_limit_ends_a_coroutine(celery: Celery) -> None:
    @celery.task(soft_time_limit=0.05)
    async def tidies() -> str:
        try:
            await asyncio.sleep(30)
        except SoftTimeLimitExceeded:
            await asyncio.sleep(0)
            return "tidied"
        return "never"

    @celery.task(time_limit=0.05)
    async def stubborn() -> None:
        while True:
            await asyncio.sleep(30)

    @celery.task(soft_time_limit=0.05)
    def busy() -> str:
        try:
            while True:
                time.sleep(0.001)
        except SoftTimeLimitExceeded:
            return "stopped"

    async with working(celery):
        assert await (await tidies.enqueue()).result(5) == "tidied"
        handle = await stubborn.enqueue()
        with pytest.raises(Exception, match=r"TimeLimitExceeded|0\.05"):
            await handle.result(5)
        assert (await handle.record()).error == "TimeLimitExceeded - 0.05"
        assert await (await busy.enqueue()).result(5) == "stopped"


async def test_cancel_holds_for_waiting_and_running_tasks(celery: Celery) -> None:
    started = asyncio.Event()
    cleaned = asyncio.Event()

    @celery.task
    async def sleeper() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.set()

    async with celery:
        queued = await sleeper.enqueue()
        assert await queued.cancel()
        assert await queued.state() == "REVOKED"
        async with run_embedded(celery):
            running = await sleeper.enqueue()
            await asyncio.wait_for(started.wait(), 5)
            assert await running.cancel()
            with pytest.raises(TaskRevoked):
                await running.result(5)
            await asyncio.wait_for(cleaned.wait(), 5)
        assert len((await queued.record()).attempts) == 0


async def test_ignore_reject_and_expiry_are_no_failures(celery: Celery) -> None:
    @celery.task
    async def ignores() -> None:
        raise Ignore

    @celery.task
    async def rejects() -> None:
        raise Reject("bad", requeue=False)

    @celery.task
    async def late() -> str:
        return "ran"

    async with celery:
        expired = await late.using(expires=0.001).enqueue()
        await asyncio.sleep(0.01)
        async with run_embedded(celery):
            with pytest.raises(TaskRevoked, match="expired"):
                await expired.result(5)
            await ignores.enqueue()
            rejected = await rejects.enqueue()
            assert await (await late.enqueue()).result(5) == "ran"
        letters = await celery.broker.dead_letters()
        assert [letter.task_id for letter in letters] == [rejected.id]


async def test_progress_emit_and_context(celery: Celery) -> None:
    @celery.task(bind=True)
    async def works(self: Any, n: int, context: TaskContext) -> str:
        for i in range(n):
            self.progress(i + 1, n, "going")
        context.emit({"n": n})
        return context.id

    @celery.task(bind=True)
    def in_thread(self: Any) -> None:
        self.progress(1, 2)

    async with working(celery):
        handle = await works.enqueue(3)  # type: ignore[call-arg]
        assert await handle.result(5) == handle.id
        record = await handle.record()
        assert record.progress is not None
        assert (record.progress.current, record.progress.total, record.progress.note) == (3, 3, "going")
        kinds = [event.kind async for event in handle.events()]
        assert kinds == ["state", "state", "progress", "progress", "progress", "value", "state"]
        threaded = await in_thread.enqueue()
        await threaded.result(5)
        assert (await threaded.record()).progress is not None


async def test_a_countdown_waits_in_the_broker(celery: Celery) -> None:
    @celery.task
    async def now() -> float:
        return time.time()

    async with working(celery):
        asked = time.time()
        handle = await now.using(countdown=0.3).enqueue()
        assert await celery.queue_size("celery") == 0
        assert await handle.result(5) - asked >= 0.3


async def test_an_unknown_task_is_parked_and_then_dead_lettered(celery: Celery) -> None:
    celery.conf.celeriac_unknown_task_grace = 0.2

    async with working(celery):
        handle = await celery.enqueue("nobody.knows", (1,))
        with pytest.raises(Exception, match=r"nobody\.knows"):
            await handle.result(5)
        async with asyncio.timeout(5):
            while not (letters := await celery.broker.dead_letters()):
                await asyncio.sleep(0.01)
        assert [letter.task_id for letter in letters] == [handle.id]
        assert "unknown task" in letters[0].reason


async def test_canvas_goes_on(celery: Celery) -> None:
    @celery.task
    def add(x: int, y: int) -> int:
        return x + y

    @celery.task
    async def total(values: list[int]) -> int:
        return sum(values)

    async with working(celery):
        chain = await celery.enqueue(add.s(1, 2) | add.s(3) | add.s(4))
        assert await chain.result(10) == 10
        from celery import chord

        body = await celery.enqueue(chord([add.s(i, i) for i in range(3)], total.s()))
        assert await body.result(10) == 6


async def test_a_child_knows_its_parent_and_root(celery: Celery) -> None:
    @celery.task
    async def child() -> None: ...

    @celery.task
    async def parent() -> str:
        return (await child.enqueue()).id

    async with working(celery):
        handle = await parent.enqueue()
        record = await celery.handle(await handle.result(5)).record()
        assert (record.parent_id, record.root_id) == (handle.id, handle.id)


async def test_running_tasks_are_handed_back_when_the_grace_period_ends(celery: Celery) -> None:
    celery.conf.celeriac_shutdown_grace = 0.05
    started = asyncio.Event()

    @celery.task
    async def long() -> None:
        started.set()
        await asyncio.sleep(30)

    async with celery:
        async with run_embedded(celery):
            handle = await long.enqueue()
            await asyncio.wait_for(started.wait(), 5)
        assert await celery.queue_size("celery") == 1
        assert not (await handle.record()).ready
