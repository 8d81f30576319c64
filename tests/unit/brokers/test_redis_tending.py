"""Delayed messages: in order, on time, and without a worker of ours, too."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import redis
from tests.services import RedisServer

from celeriac.brokers.base import Settlement
from celeriac.brokers.redis import RedisBroker
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import collect, name_of, publication, receive

QUEUE = "contract"


def stock_names(client: redis.Redis, key: str = QUEUE) -> list[str]:
    """The names in a list, in the order in which a stock worker takes them."""
    return [json.loads(text)["headers"]["id"] for text in reversed(client.lrange(key, 0, -1))]


async def until_length(client: redis.Redis, key: str, length: int) -> None:
    async with asyncio.timeout(5):
        while client.llen(key) < length:
            await asyncio.sleep(0.005)


async def test_what_is_due_together_comes_in_order(broker: RedisBroker, connect: Any) -> None:
    due = time.time() + 0.2
    later = [publication(f"later-{n}", due=due + 0.001 * (n + 1)) for n in range(10)]
    same = [publication(f"same-{n}", due=due) for n in range(10)]
    await broker.publish([*reversed(later), *same])
    await broker.publish([publication("urgent", due=due + 0.1, priority=9)])
    await asyncio.sleep(0.4)

    names = [name_of(delivery) for delivery in await receive(await connect())]

    assert names == ["urgent", *(f"same-{n}" for n in range(10)), *(f"later-{n}" for n in range(10))]


async def test_a_publisher_delivers_to_stock_workers(broker: RedisBroker, client: redis.Redis) -> None:
    due = time.time() + 0.2
    await broker.publish([publication("late", due=due + 0.2), publication("early", due=due)])
    await broker.publish([publication("urgent", due=due, priority=9)])
    assert client.llen(QUEUE) == 0

    await until_length(client, QUEUE, 1)
    assert due <= time.time() < due + 0.2
    await until_length(client, QUEUE, 2)

    assert time.time() < due + 1
    assert stock_names(client) == ["early", "late"]
    assert stock_names(client, "contract\x06\x169") == ["urgent"]
    assert not client.exists("celeriac:delayed", "celeriac:delayed:contract")
    async with asyncio.timeout(5):
        while broker._tender._task is not None:  # nothing is left to do
            await asyncio.sleep(0.01)


async def test_many_that_are_due_at_once_are_moved_at_once(broker: RedisBroker, client: redis.Redis) -> None:
    past = time.time() - 1
    start = time.monotonic()
    await broker.publish([publication(str(n), due=past) for n in range(3000)])

    await until_length(client, QUEUE, 3000)

    assert time.monotonic() - start < 2
    assert stock_names(client) == [str(n) for n in range(3000)]


async def test_delayed_messages_come_although_the_server_was_away(connect: Any) -> None:
    with RedisServer(append_only=True) as server:
        broker = await connect(url=server.url)
        await broker.publish([publication("1", due=time.time() + 0.3)])
        server.kill()
        await asyncio.sleep(0.5)
        server.start()

        with server.admin() as client:
            await until_length(client, QUEUE, 1)
        await broker.close()


async def test_delayed_messages_are_counted_and_purged_and_no_one_waits_for_them(
    broker: RedisBroker, client: redis.Redis
) -> None:
    due = time.time() + 1000
    await broker.publish([publication(str(n), due=due + n) for n in range(5)])
    await broker.publish([publication("elsewhere", "other", due=due + 50)])
    assert await broker.size(QUEUE) == 0
    assert await broker.delayed_size(QUEUE) == 5

    assert await broker.purge(QUEUE) == 5

    assert await broker.delayed_size(QUEUE) == 0
    received = await broker.receive([QUEUE], 10)
    assert received.next_due is not None
    assert abs(received.next_due - due - 50) < 0.1


async def test_a_requeue_for_later_keeps_its_place_count_and_priority(
    broker: RedisBroker, connect: Any, client: redis.Redis
) -> None:
    await broker.publish([publication("1", priority=6)])
    (delivery,) = await receive(broker)
    due = time.time() + 0.2
    await broker.settle([Settlement(delivery.tag, Action.REQUEUE, due=due)])
    await broker.close()  # who delayed it is gone
    assert client.zcard("celeriac:delayed:contract") == 1

    (again,) = await collect(await connect(), 1)

    assert time.time() >= due
    assert (again.deliveries, again.tag.rpartition("~")[2]) == (2, "6")


async def test_delays_of_one_queue_do_not_wait_for_another(broker: RedisBroker) -> None:
    past = time.time() - 1
    await broker.publish([publication(str(n), "crowded", due=past - 10) for n in range(1000)])
    await broker.publish([publication("1", due=past)])

    assert [name_of(delivery) for delivery in await collect(broker, 1)] == ["1"]
