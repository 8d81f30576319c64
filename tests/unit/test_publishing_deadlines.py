"""What becomes of a message and its record when the deadline comes first, or the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, PublishTimeout
from celeriac.sql.database import Database
from celeriac.stores.records import RecordFilter, Transition


@pytest.fixture
async def celery(tmp_path: Path) -> AsyncIterator[Celery]:
    app = Celery("shop", broker=f"sqlite:///{tmp_path / 'celery.db'}", set_as_current=False)
    app.conf.celeriac_publish_deadline = 0.5
    async with app:
        yield app


@asynccontextmanager
async def busy_writer(celery: Celery, url: str = "") -> AsyncIterator[None]:
    """The thread that writes has its hands full for as long as the context lasts."""
    begun, release = threading.Event(), threading.Event()
    database = Database.shared(url or celery.settings.broker_url)
    writing = database.write(lambda _: (begun.set(), release.wait()))
    await asyncio.to_thread(begun.wait)
    try:
        yield
    finally:
        release.set()
        await writing


FAILURE = '{"exc_type": "E", "exc_message": ["x"]}'


async def count(celery: Celery) -> tuple[int, int]:
    """How many messages wait, and how many records there are."""
    return await celery.queue_size("celery"), len((await celery.store.list(RecordFilter())).records)


async def test_a_message_that_is_not_written_any_more_leaves_no_record(celery: Celery) -> None:
    async with busy_writer(celery):
        with pytest.raises(PublishTimeout):
            await celery.enqueue("shop.add", (1, 2))
        with pytest.raises(PublishTimeout):
            await celery.enqueue_many([celery.signature("shop.add", (1, 2))])

    assert await count(celery) == (0, 0)


async def test_nor_does_one_that_its_caller_gives_up(celery: Celery) -> None:
    async with busy_writer(celery):
        enqueueing = asyncio.create_task(celery.enqueue_many([celery.signature("shop.add", (1, 2))]))
        await asyncio.sleep(0.05)
        enqueueing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await enqueueing

    assert await count(celery) == (0, 0)


async def test_a_task_that_is_not_started_over_keeps_how_it_ended(celery: Celery) -> None:
    handle = await celery.enqueue("shop.add", (1, 2), deadline=20.0)
    await celery.purge("celery")
    ended = Transition(task_id=handle.id, state="FAILURE", at=time.time(), result=FAILURE)
    await celery.store.transition([ended])
    before = await handle.record()

    async with busy_writer(celery):
        with pytest.raises(PublishTimeout):
            await celery.replay(before)

    assert await count(celery) == (0, 1)
    assert await handle.record() == before


async def test_closing_waits_for_what_was_enqueued_in_the_same_tick(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = Celery("shop", broker=f"sqlite:///{tmp_path / 'celery.db'}", set_as_current=False)
    async with app:
        enqueueing = asyncio.create_task(app.enqueue("shop.add", (1, 2)))
        await asyncio.sleep(0)
    await enqueueing

    async with app:
        assert await count(app) == (1, 1)
    assert not caplog.records


@pytest.fixture
async def split(tmp_path: Path) -> AsyncIterator[Celery]:
    """An app whose records are elsewhere than its messages."""
    broker, backend = (f"sqlite:///{tmp_path / name}.db" for name in ("broker", "backend"))
    app = Celery("shop", broker=broker, backend=backend, set_as_current=False)
    app.conf.celeriac_publish_deadline = 0.5
    async with app:
        yield app


async def test_a_store_elsewhere_does_not_say_that_the_broker_has_a_task_of_a_known_id(split: Celery) -> None:
    """Else whoever sends a request with an idempotency key again is told that its task is enqueued."""
    async with busy_writer(split):
        outcomes = await asyncio.gather(
            split.enqueue("shop.add", (1, 2), task_id="known"),
            split.enqueue("shop.add", (1, 2)),
            return_exceptions=True,
        )

    assert [type(outcome) for outcome in outcomes] == [PublishTimeout, PublishTimeout]
    assert await split.queue_size("celery") == 0
    assert not await split.store.get(["known"])


async def test_a_task_of_a_known_id_is_recorded_elsewhere_when_it_is_enqueued(split: Celery) -> None:
    handles = await asyncio.gather(
        split.enqueue("shop.add", (1, 2), task_id="known"), split.enqueue("shop.add", (3, 4))
    )

    records = await split.store.get([handle.id for handle in handles])
    assert [records[handle.id].args for handle in handles] == [[1, 2], [3, 4]]
    assert await split.queue_size("celery") == 2


async def test_a_task_of_a_known_id_that_the_broker_refuses_has_no_record_elsewhere(
    split: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: Any) -> None:
        raise BrokerUnavailable

    monkeypatch.setattr(split.broker, "publish", gone)
    with pytest.raises(BrokerUnavailable):
        await split.enqueue("shop.add", (1, 2), task_id="known")

    assert await count(split) == (0, 0)


async def test_a_store_that_keeps_silent_does_not_keep_a_broker_from_taking_work(tmp_path: Path) -> None:
    broker, store = (f"sqlite:///{tmp_path / name}" for name in ("broker.db", "store.db"))
    app = Celery("shop", broker=broker, backend=store, set_as_current=False)
    app.conf.celeriac_publish_deadline = 0.3
    async with app:
        async with busy_writer(app, store):
            before = time.monotonic()
            handle = await app.enqueue("shop.add", (1, 2))
            (chosen,) = await app.enqueue_many([app.signature("shop.add", (1, 2), task_id="chosen")])
            assert time.monotonic() - before < 2
            assert await app.queue_size("celery") == 2
        async with asyncio.timeout(10):  # the record is made up for
            while len(await app.store.get([handle.id, chosen.id])) < 2:
                await asyncio.sleep(0.01)

        async with busy_writer(app, broker):
            with pytest.raises(PublishTimeout, match=r"The broker did not confirm within 0\.3 seconds"):
                await app.enqueue("shop.add", (1, 2))
