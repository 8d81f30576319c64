"""A script that fails half-way: no message is lost for it, none comes twice, and no other queue stands still."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import redis
from tests.services import RedisServer

from celeriac.brokers.base import Settlement
from celeriac.brokers.redis import RedisBroker
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import name_of, publication, receive

QUEUE = "contract"


@pytest.mark.parametrize("taken", [QUEUE, "other", "unacked", "unacked_index"])
async def test_a_key_of_another_type_costs_no_message(
    broker: RedisBroker, client: redis.Redis, taken: str
) -> None:
    await broker.publish([publication(str(n), priority=n) for n in (9, 9, 6, 3)])
    client.set(taken, "somebody else's")
    before = {key: client.lrange(key, 0, -1) for key in client.keys(f"{QUEUE}\x06*")}

    with pytest.raises(BrokerUnavailable) as caught:
        await broker.receive([QUEUE, "other"], 10)

    assert caught.value.permanent
    assert {key: client.lrange(key, 0, -1) for key in client.keys(f"{QUEUE}\x06*")} == before
    client.delete(taken)
    assert [name_of(delivery) for delivery in await receive(broker)] == ["9", "9", "6", "3"]


async def test_a_delayed_message_for_a_key_of_another_type_stops_no_other_queue(
    broker: RedisBroker, connect: Any, client: redis.Redis
) -> None:
    client.set("taken", "somebody else's")
    with pytest.raises(BrokerUnavailable):
        await broker.publish([publication("1", "taken", due=time.time() + 60)])
    assert await broker.delayed_size("taken") == 0
    await broker.publish([publication("2", "later", due=time.time() + 0.1)])
    await broker.publish([publication("3", "good", due=time.time() + 0.1), publication("4", "good")])
    client.set("later", "somebody else's")
    await asyncio.sleep(0.2)
    consumer = await connect()

    assert [name_of(delivery) for delivery in await receive(consumer, queues=["good"])] == ["4", "3"]
    assert await consumer.delayed_size("later") == 1


async def test_an_ended_lease_for_a_key_of_another_type_repeats_nothing(
    connect: Any, client: redis.Redis
) -> None:
    crashing, broker = await connect(lease=0.1), await connect()
    await crashing.publish([publication("1", "taken"), *(publication(str(n), "good") for n in range(5))])
    await receive(crashing, queues=["taken", "good"])
    client.set("taken", "somebody else's")
    await asyncio.sleep(0.15)

    names = [name_of(delivery) for _ in range(6) for delivery in await receive(broker, 1, ["good"])]

    assert names == [str(n) for n in range(5)]
    assert client.hlen("unacked") == 6  # the one that has no list is kept


async def test_a_requeue_into_a_key_of_another_type_is_kept(connect: Any, client: redis.Redis) -> None:
    broker = await connect(lease=0.3)
    await broker.publish([publication("1")])
    (delivery,) = await receive(broker)
    client.set(QUEUE, "somebody else's")

    await broker.settle([Settlement(delivery.tag, Action.REQUEUE)])

    client.delete(QUEUE)
    await asyncio.sleep(0.35)
    assert [name_of(delivery) for delivery in await receive(broker)] == ["1"]


async def test_work_goes_on_while_the_server_is_out_of_memory(
    connect: Any, redis_server: RedisServer
) -> None:
    crashing = await connect(lease=0.2, url=redis_server.url)
    broker = await connect(url=redis_server.url)
    await broker.publish([publication(str(n)) for n in range(3)])
    await broker.publish([publication("due", due=time.time() + 0.1)])
    await receive(crashing, 1)
    (held,) = await receive(broker, 1)
    redis_server.limit_memory()
    await asyncio.sleep(0.25)

    assert not await broker.renew([held.tag])
    names = {name_of(delivery) for delivery in await receive(broker)}

    assert names == {"0", "2", "due"}


async def test_a_lost_receive_is_taken_back_while_the_server_is_out_of_memory(
    connect: Any, redis_server: RedisServer
) -> None:
    broker = await connect(url=redis_server.url)
    await receive(broker)
    await broker.publish([publication("1")])
    receiving = asyncio.create_task(broker.receive([QUEUE], 1))
    while not broker._link.pending:
        await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    redis_server.limit_memory()

    assert [name_of(delivery) for delivery in await receive(broker)] == ["1"]


async def test_a_lost_receive_of_thousands_is_taken_back(broker: RedisBroker) -> None:
    await receive(broker)
    await broker.publish([publication(str(n)) for n in range(9000)])
    receiving = asyncio.create_task(broker.receive([QUEUE], 9000))
    while not broker._link.pending:
        await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving

    deliveries = await receive(broker, 9000)

    assert [name_of(delivery) for delivery in deliveries] == [str(n) for n in range(9000)]
    assert {delivery.deliveries for delivery in deliveries} == {1}


async def test_a_delivery_count_of_thousands_of_digits_holds_nobody_up(
    broker: RedisBroker, client: redis.Redis
) -> None:
    odd = '"body": "W10=", "headers": {"id": "odd"}, "properties": {}}'
    client.lpush(QUEUE, f'{{"celeriac-deliveries": {"9" * 5000}, {odd}')
    await broker.publish([publication("1")])

    deliveries = await receive(broker)

    assert [name_of(delivery) for delivery in deliveries] == ["odd", "1"]
    assert deliveries[0].deliveries > 1_000_000  # which no limit allows
    assert deliveries[1].deliveries == 1


@pytest.mark.parametrize(
    ("text", "binding"),
    [
        ('{"celeriac-deliveries": "many", "headers": {"id": "odd"}, "properties": {}}', None),
        (f'{{"body": {"[" * 100_000}{"]" * 100_000}, "properties": {{}}}}', None),
        ('{"headers": {}, "properties": {}}', "no binding"),
        ('{"headers": {}, "properties": {}}', "\x06\x16(\x06\x16celery"),
    ],
    ids=["a count that is none", "deeply nested", "a binding that is none", "a pattern that is none"],
)
async def test_what_a_dead_stock_worker_held_and_cannot_be_read_keeps_nothing_else(
    connect: Any, client: redis.Redis, text: str, binding: str | None
) -> None:
    if binding is not None:
        client.sadd("_kombu.binding.odd", binding)
    fine = '{"body": "W10=", "headers": {"id": "fine", "task": "t"}, "properties": {}}'
    client.hset("unacked", "odd", f'[{text}, "{"odd" if binding else ""}", "{QUEUE}"]')
    client.hset("unacked", "fine", f'[{fine}, "", "{QUEUE}"]')
    client.zadd("unacked_index", {"odd": 1, "fine": 2})
    broker = await connect(visibility_timeout=0.1)

    deliveries = await receive(broker)

    assert "fine" in [name_of(delivery) for delivery in deliveries]
