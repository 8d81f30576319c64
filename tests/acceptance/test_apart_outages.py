"""Broker and store are two servers, of which one is away: what then works, and what the error names."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.acceptance.observing import failed_enqueue, measured_loop
from tests.acceptance.outages import OUTAGES, Outage, Site

from celeriac import Celery
from celeriac.errors import BrokerUnavailable, PublishTimeout, StoreUnavailable, TaskNotFound
from celeriac.handle import TaskHandle

#: Seconds after which ``enqueue`` has returned or raised.
DEADLINE = 1.0

#: What a server is restarted for elsewhere.
QUICK = [outage for outage in OUTAGES if outage.name != "killed"]


@dataclass(frozen=True)
class Apart:
    """A client of two servers."""

    broker: Site
    store: Site
    client: Celery


@pytest.fixture
async def apart() -> AsyncIterator[Apart]:
    async with Site.open() as broker, Site.open() as store:
        client = Celery("client", broker=broker.url, backend=store.url, set_as_current=False)
        client.conf.celeriac_publish_deadline = DEADLINE
        async with client:
            await client.enqueue("ledger.work")
            yield Apart(broker, store, client)


@asynccontextmanager
async def trouble(outage: Outage, site: Site) -> AsyncIterator[None]:
    """An outage of one server, during which the loop must not be held up."""
    await outage.begin(site)
    try:
        async with measured_loop() as latency:
            yield
        assert max(latency.computed) < 0.05
    finally:
        await outage.end(site)


@pytest.mark.parametrize("outage", QUICK, ids=str)
async def test_a_store_that_is_away_does_not_keep_a_broker_from_taking_work(
    outage: Outage, apart: Apart
) -> None:
    async with trouble(outage, apart.store):
        before = time.perf_counter()
        await apart.client.enqueue("ledger.work")
        await apart.client.enqueue_many([apart.client.signature("ledger.work") for _ in range(3)])
        assert time.perf_counter() - before < 2 * DEADLINE + 0.5
        assert await apart.client.queue_size("celery") == 5


@pytest.mark.parametrize("outage", QUICK, ids=str)
async def test_rabbitmq_takes_work_while_its_store_is_away(outage: Outage, rabbitmq_url: str) -> None:
    async with Site.open() as store:
        client = Celery("client", broker=rabbitmq_url, backend=store.url, set_as_current=False)
        client.conf.celeriac_publish_deadline = DEADLINE
        async with client:
            await client.enqueue("ledger.work")
            async with trouble(outage, store):
                before = time.perf_counter()
                handle = await client.enqueue("ledger.work")
                assert time.perf_counter() - before < DEADLINE + 0.5
                assert await client.queue_size("celery") == 2
            async with asyncio.timeout(10):
                while await unrecorded(handle):
                    await asyncio.sleep(0.05)


async def unrecorded(handle: TaskHandle[object]) -> bool:
    """Whether the store knows nothing of a task yet, or is not to be had."""
    try:
        return (await handle.record()).name != "ledger.work"
    except (TaskNotFound, StoreUnavailable):  # a connection that has lost something is silent for 5 seconds
        return True


@pytest.mark.parametrize("outage", QUICK, ids=str)
async def test_the_error_names_the_broker_that_is_away(outage: Outage, apart: Apart) -> None:
    async with trouble(outage, apart.broker):
        error, seconds = await failed_enqueue(apart.client)
    assert isinstance(error, (BrokerUnavailable, PublishTimeout))
    assert seconds < DEADLINE + 0.25
    assert re.search(rf"The broker did not confirm|at 127\.0\.0\.1:{apart.broker.proxy.port} ", str(error))
    assert str(apart.store.proxy.port) not in str(error)


async def test_a_network_that_is_slow(apart: Apart) -> None:
    apart.broker.proxy.delay = apart.store.proxy.delay = 0.2
    async with measured_loop() as latency:
        await asyncio.gather(*(apart.client.enqueue("ledger.work") for _ in range(20)))
        apart.broker.proxy.delay = 3.0
        error, seconds = await failed_enqueue(apart.client)
    assert isinstance(error, PublishTimeout)
    assert seconds < DEADLINE + 0.25
    assert max(latency.computed) < 0.05


async def test_a_database_that_somebody_else_has_locked(tmp_path: Path) -> None:
    client = Celery("client", broker=f"sqlite:///{tmp_path / 'celery.db'}", set_as_current=False)
    client.conf.celeriac_publish_deadline = DEADLINE
    async with client:
        await client.enqueue("ledger.work")
        other = sqlite3.connect(tmp_path / "celery.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with measured_loop() as latency:
            failures = await asyncio.gather(*(failed_enqueue(client) for _ in range(20)))
        other.execute("COMMIT")
        other.close()
        before = time.perf_counter()
        await client.enqueue("ledger.work")
        assert time.perf_counter() - before < DEADLINE
        # What was given up before the database had begun with it has not happened, and has left no record.
        assert rows(tmp_path / "celery.db", "celeriac_message") == 2
        assert rows(tmp_path / "celery.db", "celery_taskmeta") == 2
    assert {type(error) for error, _ in failures} == {PublishTimeout}
    assert max(seconds for _, seconds in failures) < DEADLINE + 0.25
    assert max(latency.computed) < 0.05


def rows(file: Path, table: str) -> int:
    """How many rows a table has."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        count: int = database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count
