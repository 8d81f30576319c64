"""kombu's SQLAlchemy transport on a real PostgreSQL server, shared with kombu itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from itertools import chain

import pytest
from kombu.connection import Connection
from tests.services.postgres import PostgreSQLServer, running_postgresql

from celeriac.brokers.kombu import KombuBroker
from celeriac.brokers.urls import broker_for, load_driver
from celeriac.errors import BrokerUnavailable
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQLServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture
async def brokers(server: PostgreSQLServer, database_url: str) -> AsyncIterator[list[KombuBroker]]:
    """Two clients with keepers of their own."""
    url = f"sqla+{server.url}"
    await asyncio.to_thread(load_driver, url)
    brokers = []
    for kept_in in (database_url, database_url.replace("celery.db", "other.db")):
        broker = broker_for(url, options={"polling_interval": 0.1}, kept_in=kept_in)
        assert isinstance(broker, KombuBroker)
        await broker.open()
        brokers.append(broker)
    yield brokers
    for broker in brokers:
        await broker.purge("contract")
        await broker.close()


async def test_takers_do_not_get_in_each_others_way(brokers: list[KombuBroker]) -> None:
    names = [str(n) for n in range(300)]
    await brokers[0].publish([publication(name) for name in names])

    async def consume(broker: KombuBroker) -> list[str]:
        seen = []
        while deliveries := await receive(broker, 7):
            seen += [name_of(each) for each in deliveries]
            assert not await broker.settle(acknowledged(deliveries))
        return seen

    seen = await asyncio.gather(*(consume(broker) for broker in brokers))

    assert Counter(chain.from_iterable(seen)) == Counter(names)


async def test_kombu_and_we_read_what_the_other_writes(
    brokers: list[KombuBroker], server: PostgreSQLServer
) -> None:
    def stock() -> list[str]:
        with Connection(f"sqla+{server.url}") as connection:
            queue = connection.SimpleQueue("contract")
            queue.put("by kombu", headers={"id": "theirs", "task": "t"})
            return [connection.default_channel.basic_get("contract", no_ack=True).headers["id"] for _ in "12"]

    await brokers[0].publish([publication("first"), publication("second")])
    assert await asyncio.to_thread(stock) == ["first", "second"]

    assert [name_of(each) for each in await receive(brokers[0])] == ["theirs"]


async def test_a_server_that_was_restarted_is_consumed_within_five_seconds(
    brokers: list[KombuBroker], server: PostgreSQLServer
) -> None:
    broker = brokers[0]
    waiting = asyncio.ensure_future(broker.wait(["contract"]))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(server.stop)
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await broker.publish([publication("lost")])
    await waiting  # so that the worker looks, and backs off
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await receive(broker)
    await asyncio.to_thread(server.start)
    back = time.monotonic()

    while True:
        try:
            await brokers[1].publish([publication("1")])
            (delivery,) = await collect(broker, 1)
        except BrokerUnavailable:
            await asyncio.sleep(0.05)
        else:
            break

    assert name_of(delivery) == "1"
    assert time.monotonic() - back < 5
