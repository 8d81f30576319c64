"""What a task's coroutine publishes by Celery's synchronous calls, which the worker carries out beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import celery as stock
import pytest
from celery import chain, group

from celeriac import Celery
from celeriac.compat import current_execution
from celeriac.errors import BrokerUnavailable
from celeriac.task import Task
from celeriac.worker.embedded import run_embedded
from celeriac.worker.executor import Executor


@pytest.fixture
def celery() -> Celery:
    url = f"memory://{uuid4()}"
    app = Celery("ambient", broker=url, backend=url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 1.0
    return app


async def test_a_task_that_publishes_all_the_time_remembers_nothing_of_it(celery: Celery) -> None:
    remembered: list[int] = []
    ran: list[int] = []

    @celery.task(name="leaf")
    async def leaf(number: int) -> None:
        ran.append(number)

    @celery.task(name="stream")
    async def stream() -> None:
        for number in range(300):
            leaf.delay(number)
            await asyncio.sleep(0)
            remembered.append(len(current_execution().planned))

    async with celery, run_embedded(celery, concurrency=1):
        await (await stream.enqueue()).result(10)
        await (await celery.enqueue("leaf", (300,))).result(10)
    assert max(remembered) <= 2
    assert ran == list(range(301))


async def test_calls_that_wait_for_one_that_is_under_way_keep_their_order(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = asyncio.Event()
    seen: list[list[Any]] = []

    @celery.task(name="leaf")
    async def leaf(number: int) -> None: ...

    @celery.task(name="stream")
    async def stream() -> None:
        for number in range(5):
            leaf.delay(number)
            await asyncio.sleep(0.01)
        released.set()

    async with celery, run_embedded(celery, concurrency=1):
        publish = celery.broker.publish

        async def publish_late(publications: Any) -> None:
            if publications[0].message.headers["task"] == "leaf":
                await released.wait()
                seen.append([each.message.headers["argsrepr"] for each in publications])
            await publish(publications)

        handle = await stream.enqueue()
        monkeypatch.setattr(celery.broker, "publish", publish_late)
        await handle.result(10)
    assert seen == [["(0,)"], ["(1,)", "(2,)", "(3,)", "(4,)"]]


async def test_a_task_of_another_app_is_published_there(celery: Celery, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}"
    other = Celery("other", broker=url, backend=url, set_as_current=False)
    ran = asyncio.Event()

    @other.task(name="theirs")
    async def theirs() -> None:
        ran.set()

    @celery.task(name="calls")
    async def calls() -> str:
        group([theirs.si()]).delay()
        other.backend.store_result("told", 1, "SUCCESS")
        return str(theirs.delay().id)

    async with celery, run_embedded(celery, concurrency=1), other:
        task_id = await (await calls.enqueue()).result(10)
        assert (await other.handle(task_id).record()).name == "theirs"
        assert await other.handle("told").state() == "SUCCESS"
        assert await other.queue_size("celery") == 2
        assert await celery.queue_size("celery") == 0


async def test_a_task_may_ask_for_a_state(celery: Celery) -> None:
    @celery.task(name="asks")
    async def asks(task_id: str) -> str:
        return str(celery.backend.get_state(task_id))

    @celery.task(name="leaf")
    async def leaf() -> None: ...

    async with celery, run_embedded(celery, concurrency=1):
        handle = await leaf.enqueue()
        await handle.result(10)
        assert await (await asks.enqueue(handle.id)).result(10) == "SUCCESS"


async def test_a_message_of_the_tasks_own_making_is_published(celery: Celery) -> None:
    @celery.task(name="tells")
    async def tells() -> None:
        with celery.producer_or_acquire() as producer:
            producer.publish({"a": 1}, routing_key="elsewhere", serializer="json")

    async with celery, run_embedded(celery, concurrency=1):
        await (await tells.enqueue()).result(10)
        assert await celery.queue_size("elsewhere") == 1


async def test_an_errback_that_is_called_again_publishes_without_blocking(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    celery.conf.celeriac_lease = 1.0
    ran: asyncio.Queue[int] = asyncio.Queue()
    calls = 0

    @celery.task(name="leaf")
    async def leaf(number: int) -> None:
        ran.put_nowait(number)

    @celery.task(name="errback")
    async def errback(_request: Any, _exc: Any, _traceback: Any) -> None:
        nonlocal calls
        calls += 1
        leaf.delay(calls)

    @celery.task(name="fails")
    async def fails() -> None:
        raise ValueError("no")

    def send_and_wait(_app: Any, name: str, *_args: Any, **_options: Any) -> None:
        raise AssertionError(f"{name} is published by blocking code")

    settle = Executor._settle

    async def settle_the_second(executor: Executor, execution: Any, ending: Any) -> None:
        if execution.name == "fails" and execution.delivery.deliveries == 1:
            raise RuntimeError("this worker dies")
        await settle(executor, execution, ending)

    monkeypatch.setattr(stock.Celery, "send_task", send_and_wait)
    monkeypatch.setattr(Executor, "_settle", settle_the_second)
    async with celery, run_embedded(celery, concurrency=2):
        await celery.enqueue(fails.s().on_error(errback.s()))
        assert {await asyncio.wait_for(ran.get(), 10) for _ in range(2)} == {1, 2}


async def test_what_is_started_while_a_canvas_is_laid_out_publishes_for_itself(celery: Celery) -> None:
    started: list[asyncio.Task[None]] = []
    ran: asyncio.Queue[str] = asyncio.Queue()

    async def audit() -> None:
        audited.delay()

    class Audited(Task[..., Any]):
        def apply_async(self, *args: Any, **options: Any) -> Any:
            started.append(asyncio.get_running_loop().create_task(audit()))
            return super().apply_async(*args, **options)

    @celery.task(name="audited")
    async def audited() -> None:
        ran.put_nowait("audited")

    @celery.task(name="leaf", base=Audited)
    async def leaf() -> None:
        ran.put_nowait("leaf")

    @celery.task(name="calls")
    async def calls() -> None:
        await celery.enqueue(chain(leaf.si(), audited.si()))

    async with celery, run_embedded(celery, concurrency=1):
        await (await calls.enqueue()).result(10)
        found = [await asyncio.wait_for(ran.get(), 10) for _ in range(3)]
    assert sorted(found) == ["audited", "audited", "leaf"]


async def test_what_a_task_leaves_running_does_not_hold_it_up(celery: Celery) -> None:
    left: list[asyncio.Task[None]] = []

    @celery.task(name="leaf", ignore_result=True)
    async def leaf() -> None: ...

    async def publish_for_ever() -> None:
        while True:
            leaf.delay()
            await asyncio.sleep(0)

    @celery.task(name="leaves")
    async def leaves() -> int:
        left.append(asyncio.get_running_loop().create_task(publish_for_ever()))
        await asyncio.sleep(0.01)
        return 1

    async with celery, run_embedded(celery, concurrency=2):
        try:
            assert await (await leaves.enqueue()).result(5) == 1
        finally:
            left[0].cancel()


async def test_a_call_that_is_refused_for_good_takes_no_other_along(
    celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    @celery.task(name="leaf")
    async def leaf(number: int) -> None:
        ran.append(number)

    @celery.task(name="several")
    async def several() -> None:
        for number in range(3):
            leaf.delay(number)

    async with celery, run_embedded(celery, concurrency=1):
        publish = celery.broker.publish

        async def refuse_one(publications: Any) -> None:
            if any(each.message.headers["argsrepr"] == "(1,)" for each in publications):
                error = BrokerUnavailable("too large")
                error.permanent = True
                raise error
            await publish(publications)

        monkeypatch.setattr(celery.broker, "publish", refuse_one)
        with pytest.raises(BrokerUnavailable, match="too large"):
            await (await several.enqueue()).result(5)
        await (await leaf.enqueue(3)).result(5)
    assert ran == [0, 2, 3]
