"""What waiting on the SQL store costs, and that it costs nothing while nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from celeriac.errors import BrokerUnavailable, StoreUnavailable
from celeriac.sql.database import Database
from celeriac.stores.records import EventDraft, Transition
from celeriac.stores.sql import SQLStore


def done(task_id: str) -> Transition:
    return Transition(task_id=task_id, state="SUCCESS", at=1_790_000_000.0, result="1")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[SQLStore]:
    made = SQLStore(database_url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def reads(database_url: str, monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """The reads that the store has asked its database for."""
    submitted: list[Callable[..., Any]] = []
    read = Database.read

    def counting(self: Database, operation: Callable[..., Any]) -> Any:
        submitted.append(operation)
        return read(self, operation)

    monkeypatch.setattr(Database, "read", counting)
    return submitted


async def test_nobody_watching_asks_nothing(store: SQLStore, reads: list[Any]) -> None:
    for number in range(5):
        await store.transition([done(f"task-{number}")])
    async with store.watch("a"), store.cancellations():
        pass
    reads.clear()
    for number in range(5):
        await store.transition([done(f"other-{number}")])
    other = SQLStore(store.url)
    await other.open()
    await other.transition([done("from another connection")])
    await other.close()
    assert reads == []


async def test_a_thousand_watchers_cost_a_query_or_two_for_a_change(
    store: SQLStore, reads: list[Any]
) -> None:
    ids = [f"task-{number}" for number in range(1000)]
    async with AsyncExitStack() as stack:
        watches = await asyncio.gather(*(stack.enter_async_context(store.watch(task_id)) for task_id in ids))
        assert len(reads) <= 3, "one look at the log serves all who come at once"
        reads.clear()
        await store.transition([done(task_id) for task_id in ids])
        await asyncio.gather(*(watch.changed() for watch in watches))
        assert len(reads) <= 3
        reads.clear()
        records = await asyncio.gather(*(store.get([task_id]) for task_id in ids))
        assert all(record[task_id].ready for record, task_id in zip(records, ids, strict=True))
        assert len(reads) <= 2, "one query for all who ask in the same tick"


async def test_more_changes_than_a_page_holds(store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac.stores.tail._PAGE", 10)
    await store.transition([Transition(task_id="a", state="STARTED", at=1.0)])
    async with (
        store.watch("last", until_ready=True) as watch,
        store.watch("a") as noisy,
        AsyncExitStack() as stack,
    ):
        for number in range(300):  # more than are picked out by the database
            await stack.enter_async_context(store.watch(f"task-{number}"))
        await store.append_events([EventDraft("a", "value", "1", 1.0)] * 57)
        await store.transition([done("last")])
        await asyncio.wait_for(watch.changed(), 5)
        await asyncio.wait_for(noisy.changed(), 5)


async def test_what_a_body_raises_goes_through(store: SQLStore) -> None:
    with pytest.raises(BrokerUnavailable):
        async with store.watch("a"):
            raise BrokerUnavailable("the user's own broker")
    with pytest.raises(BrokerUnavailable):
        async with store.cancellations():
            raise BrokerUnavailable("the user's own broker")


async def test_a_cancelled_waiter_takes_nobody_along(store: SQLStore) -> None:
    await store.transition([done("a")])
    first, second = (asyncio.ensure_future(store.get(["a"])) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second)["a"].ready


async def test_a_database_that_cannot_be_opened(database_url: str) -> None:
    store = SQLStore(database_url.replace("celery.db", "missing/celery.db"))
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await store.open()
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.get(["a"])
    with pytest.raises(StoreUnavailable, match="not open"):
        async with store.watch("a"):
            pass
