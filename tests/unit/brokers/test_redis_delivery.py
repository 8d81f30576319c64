"""What Redis makes special about receiving and settling: one step each, whatever happens around it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from tests.services import Proxy, RedisServer

from celeriac.brokers.base import Publication, Settlement
from celeriac.brokers.redis import RedisBroker
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.message import Message
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive

QUEUE = "contract"


def with_eta(name: str, eta: str | None) -> str:
    """An envelope with an eta as a stock client pushes it."""
    headers = {"task": "contract.task", "id": name, "eta": eta}
    properties = {"delivery_info": {}, "body_encoding": "base64", "delivery_tag": name}
    return json.dumps({"body": "W10=", "headers": headers, "properties": properties})


def moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def test_one_receive_takes_thousands(broker: RedisBroker, client: redis.Redis) -> None:
    await broker.publish([publication(str(n), priority=n % 10) for n in range(5000)])

    deliveries = await receive(broker, 10_000)

    assert len({delivery.tag for delivery in deliveries}) == 5000
    assert {name_of(delivery) for delivery in deliveries} == {str(n) for n in range(5000)}
    assert client.hlen("unacked") == client.zcard("celeriac:leases") == 5000
    assert not await broker.renew([delivery.tag for delivery in deliveries])
    assert not await broker.settle(acknowledged(deliveries))
    assert not client.exists("unacked", "unacked_index", "celeriac:leases")


async def test_queues_share_what_a_small_batch_can_take(broker: RedisBroker) -> None:
    queues = [f"q{n}" for n in range(5)]
    for queue, count in zip(queues, (100, 3, 100, 0, 1), strict=True):
        await broker.publish([publication(str(n), queue) for n in range(count)])

    taken = Counter(delivery.queue for delivery in await receive(broker, 50, queues))

    assert taken == {"q0": 23, "q1": 3, "q2": 23, "q4": 1}


async def test_a_reply_that_was_lost_loses_nothing(connect: Any, redis_server: RedisServer) -> None:
    async with Proxy(redis_server.host, redis_server.port) as proxy:
        far = f"redis://{proxy.host}:{proxy.port}/0"
        broker = await connect(url=far, socket_timeout=0.2)
        assert await receive(broker) == []
        await broker.publish([publication(str(n), priority=n) for n in range(10)])

        proxy.blackhole(requests=False)
        with pytest.raises(BrokerUnavailable):
            await broker.receive([QUEUE], 7)
        assert redis_server.command("HLEN", "unacked") == 7
        await proxy.heal()

        deliveries = await receive(broker)

        # All of them, as if nobody had had them.
        assert sorted(name_of(delivery) for delivery in deliveries) == [str(n) for n in range(10)]
        assert {delivery.deliveries for delivery in deliveries} == {1}
        assert redis_server.command("HLEN", "unacked") == 10
        assert not await broker.settle(acknowledged(deliveries))


async def test_a_receive_that_comes_late_takes_nothing(connect: Any, redis_server: RedisServer) -> None:
    broker = await connect(url=redis_server.url, socket_timeout=0.2)
    assert await receive(broker) == []
    await broker.publish([publication("1"), publication("2")])
    redis_server.pause()
    with pytest.raises(BrokerUnavailable):
        await broker.receive([QUEUE], 1)  # waits in the server's buffer
    redis_server.resume()
    first = await receive(broker, 2)
    assert sorted(name_of(delivery) for delivery in first) == ["1", "2"]

    # Had it been delayed still longer:
    await broker.publish([publication("3")])
    name, _ = first[0].tag.rsplit("-", 1)
    late = await broker._run(_receive_script(), f"{name}-2", 30, 1, 1, *broker._plan((QUEUE,)))

    assert late[2:] == [[], []]
    assert [name_of(delivery) for delivery in await receive(broker)] == ["3"]


def _receive_script() -> Any:
    from celeriac.brokers import redis as module

    return module._RECEIVE


async def test_a_cancelled_receive_gives_back_what_it_took(broker: RedisBroker) -> None:
    await broker.publish([publication("1")])
    receiving = asyncio.create_task(broker.receive([QUEUE], 1))
    while not broker._link.pending:
        await asyncio.sleep(0)
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving

    (delivery,) = await receive(broker)

    assert (name_of(delivery), delivery.deliveries) == ("1", 1)


async def test_a_settlement_whose_reply_was_lost_is_not_called_void(
    connect: Any, redis_server: RedisServer
) -> None:
    async with Proxy(redis_server.host, redis_server.port) as proxy:
        broker = await connect(url=f"redis://{proxy.host}:{proxy.port}/0", socket_timeout=0.2)
        await broker.publish([publication("1"), publication("2")])
        first, second = await receive(broker)
        settlements = [
            Settlement(first.tag, Action.ACKNOWLEDGE, publications=(publication("next"),)),
            Settlement(second.tag, Action.REQUEUE),
        ]
        proxy.blackhole(requests=False)
        with pytest.raises(BrokerUnavailable):
            await broker.settle(settlements)
        await proxy.heal()

        assert not await broker.settle(settlements)

        assert sorted(name_of(delivery) for delivery in await receive(broker)) == ["2", "next"]
        assert set(await broker.settle(acknowledged([first]))) == {first.tag}


async def test_expired_leases_come_back_in_order_and_first(connect: Any) -> None:
    crashing, broker = await connect(lease=0.1), await connect()
    await crashing.publish([publication(str(n)) for n in range(20)])
    await receive(crashing, 15)
    await asyncio.sleep(0.15)

    names = [name_of(delivery) for delivery in await receive(broker)]

    assert names == [str(n) for n in range(20)]


async def test_what_a_message_leaves_behind_goes_nowhere_if_a_key_is_taken(
    broker: RedisBroker, client: redis.Redis
) -> None:
    client.set("taken", "by somebody else")
    await broker.publish([publication("1")])
    (delivery,) = await receive(broker)

    with pytest.raises(BrokerUnavailable, match="something else") as caught:
        await broker.publish([publication("2"), publication("3", "taken", priority=0)])
    assert caught.value.permanent
    assert await broker.size(QUEUE) == 0
    bad = Settlement(delivery.tag, Action.ACKNOWLEDGE, publications=(publication("4", "taken"),))
    with pytest.raises(BrokerUnavailable, match="something else"):
        await broker.settle([bad])

    assert not await broker.renew([delivery.tag])


async def test_messages_drain_from_a_server_that_is_out_of_memory(
    connect: Any, redis_server: RedisServer
) -> None:
    broker = await connect(url=redis_server.url)
    await broker.publish([publication("1"), publication("2", priority=9)])
    redis_server.limit_memory()

    with pytest.raises(BrokerUnavailable, match="out of memory"):
        await broker.publish([publication("3")])
    with pytest.raises(BrokerUnavailable, match="out of memory"):
        await broker.publish([publication("3"), publication("4", "other", due=time.time() + 1)])

    deliveries = await receive(broker)
    assert [name_of(delivery) for delivery in deliveries] == ["2", "1"]
    successors = (publication("next"),)
    settlements = [Settlement(each.tag, Action.ACKNOWLEDGE, publications=successors) for each in deliveries]
    assert not await broker.settle(settlements)
    assert await broker.size(QUEUE) == 2


async def test_an_eta_of_a_stock_client_is_waited_for(
    broker: RedisBroker, connect: Any, client: redis.Redis
) -> None:
    texts = {name: with_eta(name, moment(0.4)) for name in ("soon", "twin")}
    client.lpush(QUEUE, *texts.values(), with_eta("now", None), with_eta("past", moment(-5)))
    client.lpush(QUEUE, with_eta("far", moment(1000)).replace('"eta": "', '"eta":"'))
    client.lpush(QUEUE, with_eta("odd", "no time"))

    received = await broker.receive([QUEUE], 100)

    assert [name_of(delivery) for delivery in received.deliveries] == ["now", "past", "odd"]
    assert client.zcard("celeriac:delayed:contract") == 3
    assert client.hlen("unacked") == 3
    assert await broker.size(QUEUE) == 0
    later = await collect(await connect(), 2)
    assert [name_of(delivery) for delivery in later] == ["soon", "twin"]
    assert [delivery.envelope for delivery in later] == [texts["soon"].encode(), texts["twin"].encode()]
    assert {delivery.deliveries for delivery in later} == {1}
    assert await broker.delayed_size(QUEUE) == 1


async def test_an_eta_survives_a_crash_before_it_was_seen(
    connect: Any, broker: RedisBroker, client: redis.Redis
) -> None:
    client.lpush(QUEUE, with_eta("1", moment(1000)))
    crashing = await connect(lease=0.05)
    args = ("crash", 0.05, 1, 1, *crashing._plan((QUEUE,)))
    assert len((await crashing._run(_receive_script(), *args))[3]) == 1
    await asyncio.sleep(0.1)

    assert await receive(broker) == []

    assert await broker.delayed_size(QUEUE) == 1
    assert client.hlen("unacked") == 0


async def test_our_own_eta_header_does_not_delay_twice(broker: RedisBroker) -> None:
    sent = Message({"task": "t", "id": "1", "eta": moment(1000)}, {}, b"[]")
    await broker.publish([Publication(sent, QUEUE, due=time.time() - 1)])

    assert [name_of(delivery) for delivery in await receive(broker)] == ["1"]


async def test_a_priority_that_is_none_is_the_lowest(broker: RedisBroker, client: redis.Redis) -> None:
    for priority in ("high", None, [], 99, -1, "6"):
        sent = Message({"task": "t", "id": str(priority)}, {"priority": priority}, b"[]")
        await broker.publish([Publication(sent, QUEUE)])

    assert client.llen(QUEUE) == 4
    assert client.llen("contract\x06\x169") == client.llen("contract\x06\x166") == 1


async def test_purging_does_not_stop_the_server(broker: RedisBroker, client: redis.Redis) -> None:
    batch = [f'{{"body": "{n}", "headers": {{}}, "properties": {{}}}}' for n in range(50_000)]
    for _ in range(4):
        client.lpush(QUEUE, *batch)
    client.config_resetstat()

    assert await broker.purge(QUEUE) == 200_000

    assert client.info("commandstats")["cmdstat_evalsha"]["usec"] < 20_000
    assert not client.exists(QUEUE)


async def test_dead_letters_of_thousands_are_read_from_the_newest(broker: RedisBroker) -> None:
    await broker.publish([publication(str(n)) for n in range(300)])
    deliveries = await receive(broker, 300)
    await broker.settle([Settlement(each.tag, Action.DEAD_LETTER, reason="no\nluck") for each in deliveries])

    letters = await broker.dead_letters(QUEUE, limit=3)

    assert [letter.task_id for letter in letters] == ["299", "298", "297"]
    assert {letter.reason for letter in letters} == {"no\nluck"}
    assert await broker.dead_letters(QUEUE, limit=0) == []
    assert await broker.replay([letter.id for letter in await broker.dead_letters(limit=1000)]) == 300
    assert await broker.dead_letters() == []
    assert await broker.size(QUEUE) == 300
