"""The SQL broker, where the broker contract does not look."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from celeriac.brokers import sql
from celeriac.brokers.base import Publication
from celeriac.brokers.sql import SQLBroker
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.message import Message
from celeriac.sql import messages
from celeriac.sql.stalls import Stall
from celeriac.testing.contract.messages import collect, name_of, publication, receive
from celeriac.transports.sql import SQLStorage
from celeriac.transports.storage import Order


@pytest_asyncio.fixture
async def broker(database_url: str) -> AsyncIterator[SQLBroker]:
    broker = SQLBroker(database_url)
    await broker.open()
    yield broker
    await broker.close()


def publications(count: int) -> list[Publication]:
    return [
        Publication(Message({"task": "t", "id": str(n)}, {}, b"[]"), "q", task_id=str(n))
        for n in range(count)
    ]


async def test_purges_any_number_in_steps(broker: SQLBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_PURGE_LIMIT", 10)
    await broker.publish(publications(35))

    assert await broker.purge("q") == 35
    assert await broker.purge("q") == 0


async def test_a_sleeping_consumer_does_not_look_again_and_again(
    broker: SQLBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    has_ready = messages.has_ready

    def counting(*args: object) -> bool:
        nonlocal looks
        looks += 1
        return has_ready(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(messages, "has_ready", counting)
    await broker.wait(["q"], timeout=0.5)

    assert looks <= 4


async def test_brokers_of_one_file_share_their_threads(broker: SQLBroker, database_url: str) -> None:
    others = [SQLBroker(database_url) for _ in range(3)]
    await asyncio.gather(*(other.open() for other in others for _ in range(2)))
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("celeriac-sql-w")]
    assert sorted(names) == ["celeriac-sql-watch", "celeriac-sql-write"]
    for other in others:
        await other.close()

    await broker.publish(publications(1))


async def test_trouble_with_the_file_is_one_sentence(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "celery.db"
    path.write_bytes(b"\x00\xff" * 5000)
    broker = SQLBroker(f"sqlite:///{path}")

    with pytest.raises(BrokerUnavailable, match="damaged or no SQLite database"):
        await broker.open()
    with pytest.raises(BrokerUnavailable, match="not open"):
        await broker.size("q")
    await broker.close()


async def test_leases_that_nobody_could_renew_are_left_to_their_holders(database_url: str) -> None:
    broker = SQLBroker(database_url, lease=0.8)
    await broker.open()
    await broker.publish([publication("1"), publication("2")])
    (held,) = await receive(broker, 1)
    lock = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    # Somebody is stopped in the middle of a transaction; the lease ends meanwhile, and who takes is before who renews.
    taking = asyncio.ensure_future(receive(broker, 10))
    renewing = asyncio.ensure_future(broker.renew([held.tag]))
    await asyncio.sleep(1.2)
    lock.execute("ROLLBACK")
    lock.close()
    assert [name_of(each) for each in await taking] == ["2"]
    assert not await renewing
    # A holder that is dead is found out a little later.
    again = await collect(broker, 2)
    assert [(name_of(each), each.deliveries) for each in again] == [("1", 2), ("2", 2)]
    await broker.close()


async def test_who_reads_commands_leaves_the_leases_of_others_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = SQLBroker(database_url, lease=0.2)
    await broker.open()
    await broker.publish([publication("1")])
    (held,) = await receive(broker, 1)
    await asyncio.sleep(0.3)
    stall = Stall(time.time() - 10, time.time())
    monkeypatch.setattr(broker._database, "last_stall", lambda: stall)
    commands = await asyncio.to_thread(SQLStorage, database_url)
    order = Order(("commands",), 10, no_ack=True)
    assert await asyncio.to_thread(commands.take, [order], 0.2) == [[]]
    assert not await receive(broker, 1)
    assert not await broker.renew([held.tag])
    await asyncio.to_thread(commands.close)
    await broker.close()


async def test_a_stock_worker_leaves_leases_that_nobody_could_renew_to_their_holders(
    database_url: str,
) -> None:
    broker = SQLBroker(database_url, lease=0.8)
    await broker.open()
    await broker.publish([publication("1"), publication("2")])
    (held,) = await receive(broker, 1)
    stock = await asyncio.to_thread(SQLStorage, database_url)
    lock = sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    taking = asyncio.create_task(
        asyncio.to_thread(stock.take, [Order((held.queue,), 10, no_ack=False)], 30.0)
    )
    await asyncio.sleep(1.2)
    lock.execute("ROLLBACK")
    lock.close()
    ((taken,),) = await taking
    assert taken.deliveries == 1
    assert not await broker.renew([held.tag])
    await asyncio.to_thread(stock.close)
    await broker.close()


async def test_a_database_that_is_always_slow_does_not_keep_what_a_dead_worker_held(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = SQLBroker(database_url, lease=0.4)
    await broker.open()
    await broker.publish([publication("1")])
    await receive(broker, 1)

    def stalled() -> Stall:
        now = time.time()
        return Stall(now - 0.6, now)

    monkeypatch.setattr(broker._database, "last_stall", stalled)
    async with asyncio.timeout(5):
        (again,) = await collect(broker, 1)
    assert again.deliveries == 2
    await broker.close()


async def test_while_one_stall_lasts_the_leases_are_spared(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = SQLBroker(database_url, lease=3.0)
    await broker.open()
    stall = Stall(100.0, 100.6)
    monkeypatch.setattr(broker._database, "last_stall", lambda: stall)
    assert broker._spares_leases(100.6)
    stall = Stall(100.0, 102.4)  # still the same
    assert broker._spares_leases(102.4)
    assert not broker._spares_leases(104.0)
    await broker.close()
