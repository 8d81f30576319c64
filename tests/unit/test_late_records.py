"""Records of tasks that were enqueued while the store was away, and the broker was not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from tests.services import RedisServer

from celeriac import Celery, late_records
from celeriac.errors import StoreError
from celeriac.late_records import LateRecords
from celeriac.stores.records import Transition


@pytest.fixture
async def celery(redis_server: RedisServer, redis_url: str, monkeypatch: Any) -> AsyncIterator[Celery]:
    """An app whose store is a server of its own."""
    monkeypatch.setattr(late_records, "_BACKOFF", (0.05, 0.1))
    app = Celery("shop", broker=redis_url, backend=redis_server.url, set_as_current=False)
    async with app:
        await app.enqueue("shop.bill", ("bob",))
        await asyncio.to_thread(redis_server.kill)
        yield app


async def recorded(celery: Celery, task_id: str) -> Any:
    async with asyncio.timeout(10):
        while not (found := (await celery.store.get([task_id])).get(task_id)) or found.args is None:
            await asyncio.sleep(0.02)
    return found


async def test_they_are_written_when_it_is_back(celery: Celery, redis_server: RedisServer) -> None:
    handle = await celery.enqueue("shop.bill", ("ann",), owner="ann")
    await asyncio.to_thread(redis_server.start)
    record = await recorded(celery, handle.id)
    assert (record.state, record.name, record.args, record.owner) == ("PENDING", "shop.bill", ["ann"], "ann")


async def test_they_change_nothing_of_what_a_worker_has_recorded(
    celery: Celery, redis_server: RedisServer
) -> None:
    handle = await celery.enqueue("shop.bill", ("ann",))
    await asyncio.to_thread(redis_server.start)
    ended = Transition(task_id=handle.id, state="SUCCESS", at=2.0, result="1", worker="w")
    await celery.store.transition([ended])
    record = await recorded(celery, handle.id)
    assert (record.state, record.result, record.args) == ("SUCCESS", 1, ["ann"])


async def test_an_app_that_closes_tries_once_more(
    redis_server: RedisServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_records, "_BACKOFF", (60.0, 60.0))
    celery = Celery("shop", broker=redis_url, backend=redis_server.url, set_as_current=False)
    async with celery:
        await asyncio.to_thread(redis_server.kill)
        handle = await celery.enqueue("shop.bill", ("ann",))
        await asyncio.to_thread(redis_server.start)
    async with celery:
        assert (await handle.record()).args == ["ann"]


class PickyStore:
    """A store that refuses one record for good, by an error of whatever kind."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.taken: list[str] = []

    async def transition(self, transitions: Sequence[Transition]) -> None:
        if any(each.task_id == "bad" for each in transitions):
            raise self.error
        self.taken += [each.task_id for each in transitions]


@pytest.mark.parametrize("error", [StoreError("no room for it"), UnicodeError("half a character")], ids=repr)
@pytest.mark.parametrize("closing", [False, True])
async def test_one_that_the_store_never_takes_costs_no_other(
    error: Exception, closing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_records, "_BACKOFF", (60.0, 60.0) if closing else (0.0, 0.0))
    store: Any = PickyStore(error)
    late = LateRecords(store)
    late.add([Transition(task_id=task_id, state="PENDING", at=1.0) for task_id in ("a", "bad", "b")])
    if not closing:
        async with asyncio.timeout(5):
            while store.taken != ["a", "b"]:
                await asyncio.sleep(0)
    await late.close()
    assert store.taken == ["a", "b"]
