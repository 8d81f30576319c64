"""The app's own verbs: enqueue in all its forms, handles, queues."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID, uuid4

import pytest
from celery import signals
from pydantic import BaseModel

from celeriac import Celery
from celeriac.errors import ConfigurationError, InvalidArguments, ResultTimeout, TaskNotFound
from celeriac.protocol import envelope
from celeriac.worker.embedded import run_embedded


@pytest.fixture(params=["memory", "sqlite"])
def celery(request: pytest.FixtureRequest, database_url: str) -> Celery:
    url = f"memory://{uuid4()}" if request.param == "memory" else database_url
    return Celery("unit", broker=url, backend=url, set_as_current=False)


class Colour(Enum):
    RED = "red"


class Item(BaseModel):
    name: str
    price: Decimal


@dataclass
class Point:
    x: int
    y: int


async def test_rich_arguments_and_results_arrive_as_what_the_annotations_say(celery: Celery) -> None:
    seen: list[object] = []

    @celery.task
    async def rich(when: datetime, key: UUID, colour: Colour, items: list[Item], *, at: Point) -> Item:
        seen.extend([when, key, colour, items, at])
        return items[0]

    given = (datetime(2026, 1, 2, tzinfo=UTC), uuid4(), Colour.RED, [Item(name="a", price=Decimal("1.10"))])
    async with celery, run_embedded(celery):
        handle = await rich.enqueue(*given, at=Point(1, 2))
        result = await handle.result(5)
    assert seen == [*given, Point(1, 2)]
    assert result == given[3][0]


async def test_wrong_arguments_are_refused_before_anything_is_published(celery: Celery) -> None:
    @celery.task
    async def typed(count: int) -> None: ...

    async with celery:
        with pytest.raises(InvalidArguments, match="count"):
            await typed.enqueue("many")  # type: ignore[arg-type]
        with pytest.raises(InvalidArguments):
            await typed.enqueue(1, 2)  # type: ignore[call-arg]
        with pytest.raises(InvalidArguments):
            await celery.enqueue(typed.name, ("many",))
        with pytest.raises(InvalidArguments):
            await asyncio.to_thread(typed.delay, "many")
        assert await celery.queue_size("celery") == 0


async def test_options_are_kept_in_the_record_and_the_message(celery: Celery) -> None:
    @celery.task
    async def task(x: int) -> None: ...

    async with celery:
        call = task.using(
            queue="other", priority=7, task_id="my-id", owner="ada", headers={"tenant": "t1"}, expires=60
        )
        handle = await call.enqueue(5)
        assert handle.id == "my-id"
        record = await handle.record()
        assert (record.state, record.name, record.queue, record.owner, record.args) == (
            "PENDING",
            task.name,
            "other",
            "ada",
            [5],
        )
        assert record.expires is not None
        assert record.expires > datetime.now(UTC) + timedelta(seconds=50)
        delivery = (await celery.broker.receive(["other"], 1)).deliveries[0]
        assert isinstance(delivery.envelope, bytes)
        message = envelope.decode(delivery.envelope)
        assert message.headers["tenant"] == "t1"
        assert message.properties["priority"] == 7
        assert json.loads(message.body)[0] == [5]


async def test_many_signatures_are_published_at_once_or_not_at_all(celery: Celery) -> None:
    @celery.task
    async def task(x: int) -> int:
        return x

    async with celery:
        handles = await celery.enqueue_many([task.s(i) for i in range(100)])
        assert await celery.queue_size("celery") == 100
        assert len({handle.id for handle in handles}) == 100
        with pytest.raises(InvalidArguments):
            await celery.enqueue_many([task.s(1), task.s("one")])
        assert await celery.queue_size("celery") == 100
        assert await celery.purge("celery") == 100


async def test_tasks_are_enqueued_by_name_and_by_signature(celery: Celery) -> None:
    @celery.task
    async def add(x: int, y: int) -> int:
        return x + y

    async with celery, run_embedded(celery):
        assert await (await celery.enqueue(add.name, (1,), {"y": 2})).result(5) == 3
        assert await (await celery.enqueue(add.s(1), (5,))).result(5) == 6
        assert await (await celery.enqueue(add.si(1, 1), countdown=0.05)).result(5) == 2


async def test_an_id_that_was_never_enqueued_is_unknown(celery: Celery) -> None:
    async with celery:
        handle = celery.handle("nobody")
        for ask in (handle.state, handle.record, handle.result):
            with pytest.raises(TaskNotFound, match="nobody"):
                await ask()
        assert await handle.cancel() is False


async def test_a_result_that_takes_too_long_raises_and_the_task_goes_on(celery: Celery) -> None:
    @celery.task
    async def slow() -> str:
        await asyncio.sleep(0.2)
        return "done"

    async with celery, run_embedded(celery):
        handle = await slow.enqueue()
        with pytest.raises(ResultTimeout):
            await handle.result(timeout=0.05)
        assert await handle.result(5) == "done"


async def test_celerys_publish_signals_are_sent(celery: Celery) -> None:
    @celery.task
    async def task() -> None: ...

    seen: list[str] = []

    def before(sender: str, headers: dict[str, object], **_: object) -> None:
        headers["added"] = 1
        seen.append("before")

    def after(sender: str, headers: dict[str, object], **_: object) -> None:
        assert headers["added"] == 1
        seen.append("after")

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        async with celery:
            await task.enqueue()
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert seen == ["before", "after"]


async def test_delay_and_async_result_see_the_same_task(celery: Celery) -> None:
    @celery.task
    def add(x: int, y: int) -> int:
        return x + y

    def synchronous() -> tuple[str, str, int]:
        result = add.delay(2, 3)
        return result.id, add.AsyncResult(result.id).status, result.get(timeout=10)

    async with celery:
        before = asyncio.create_task(asyncio.to_thread(synchronous))
        async with run_embedded(celery):
            task_id, _, value = await before
        assert value == 5
        record = await celery.handle(task_id).record()
        assert (record.state, record.result, record.args) == ("SUCCESS", 5, [2, 3])


async def test_a_finished_task_is_replayed_under_its_id(celery: Celery) -> None:
    runs: list[int] = []

    @celery.task
    async def task(x: int) -> int:
        runs.append(x)
        return x

    async with celery, run_embedded(celery):
        handle = await task.enqueue(7)
        await handle.result(5)
        again = await celery.replay(await handle.record())
        assert again.id == handle.id
        assert await again.result(5) == 7
    assert runs == [7, 7]


async def test_outside_its_context_the_app_says_what_to_do(celery: Celery) -> None:
    with pytest.raises(ConfigurationError, match="async with celery"):
        _ = celery.store


async def test_early_acknowledgement_settles_before_the_start(celery: Celery) -> None:
    sizes: list[int] = []

    @celery.task(acks_late=False)
    async def early() -> None:
        await asyncio.sleep(0)
        sizes.append(
            await celery.purge("celery") + len((await celery.broker.receive(["celery"], 1)).deliveries)
        )

    celery.conf.celeriac_lease = 0.5
    async with celery, run_embedded(celery):
        await (await early.enqueue()).result(5)
    assert sizes == [0]
