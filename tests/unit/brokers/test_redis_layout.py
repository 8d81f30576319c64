"""The keys of kombu's Redis transport, as kombu itself reads and writes them."""

from __future__ import annotations

import json
import time
from typing import Any

import kombu
import pytest
import redis
from kombu.transport.redis import Channel

from celeriac.brokers.base import Settlement
from celeriac.brokers.redis import RedisBroker
from celeriac.protocol.envelope import decode
from celeriac.protocol.settlement import Action
from celeriac.testing.contract.messages import acknowledged, collect, message, name_of, publication, receive

QUEUE = "contract"


def stock_publish(channel: Channel, name: str, queue: str = QUEUE, **options: Any) -> None:
    """Publish a message as a stock client does."""
    sent = message(name)
    producer = kombu.Producer(channel, auto_declare=False)
    producer.publish(
        sent.body.decode(),
        routing_key=queue,
        headers=dict(sent.headers),
        content_type=sent.content_type,
        content_encoding=sent.content_encoding,
        correlation_id=name,
        **options,
    )


def stock_take(channel: Channel, queue: str = QUEUE) -> Any:
    """Take a message as a stock worker does, and hold it."""
    return channel.basic_get(queue)


def forget(channel: Channel) -> None:
    """What a killed worker does about what it holds: nothing."""
    channel.qos._delivered.clear()


def keys(value: Any) -> Any:
    """The names in an envelope, in their order."""
    return {name: keys(part) for name, part in value.items()} if isinstance(value, dict) else None


async def test_an_envelope_has_kombus_keys_in_kombus_order(
    broker: RedisBroker, client: redis.Redis, stock: Any
) -> None:
    stock_publish(stock(), "1", priority=0)
    await broker.publish([publication("1")])

    ours, theirs = (json.loads(text) for text in client.lrange(QUEUE, 0, -1))

    assert list(ours) == list(theirs)
    assert keys(ours["headers"]) == keys(theirs["headers"])
    assert list(ours["properties"]["delivery_info"]) == list(theirs["properties"]["delivery_info"])
    assert (ours["body"], ours["content-type"]) == (theirs["body"], theirs["content-type"])


@pytest.mark.parametrize("steps", [None, [0, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [3, 6]])
async def test_every_priority_goes_into_the_list_where_kombu_puts_it(
    connect: Any, client: redis.Redis, stock: Any, steps: list[int] | None
) -> None:
    options: dict[str, Any] = {"priority_steps": steps} if steps else {}
    broker, channel = await connect(**options), stock(**options)

    for priority in range(10):
        await broker.publish([publication(str(priority), priority=priority)])
        stock_publish(channel, str(priority), priority=priority)
        (key,) = client.keys("contract*")
        assert key.decode() == channel._q_for_pri(QUEUE, priority)
        assert client.llen(key) == 2
        assert [name_of(delivery) for delivery in await receive(broker)] == [str(priority)] * 2


async def test_a_stock_worker_takes_what_we_publish(broker: RedisBroker, stock: Any) -> None:
    await broker.publish([publication("1"), publication("2", priority=9)])
    channel = stock()

    first, second = stock_take(channel), stock_take(channel)

    assert [each.headers["id"] for each in (first, second)] == ["1", "2"]  # kombu reads the lowest step first
    assert first.body == b"[[], {}, {}]"
    channel.basic_ack(first.delivery_tag)
    channel.basic_ack(second.delivery_tag)


async def test_highest_priority_first_over_all_queues_and_stock_order_on_demand(
    broker: RedisBroker, connect: Any, stock: Any
) -> None:
    def fill() -> None:
        channel = stock()
        for queue, priority in (("a", 0), ("b", 6), ("a", 9), ("b", 9)):
            stock_publish(channel, f"{queue}{priority}", queue, priority=priority)

    fill()
    names = [name_of(delivery) for delivery in await receive(broker, queues=["a", "b"])]
    assert sorted(names[:2]) == ["a9", "b9"]
    assert names[2:] == ["b6", "a0"]

    fill()
    like_stock = await connect(priority_order="lowest_first")
    names = [name_of(delivery) for delivery in await receive(like_stock, queues=["a", "b"])]
    assert names[:2] == ["a0", "b6"]


async def test_what_we_hold_looks_to_kombu_like_what_it_holds_itself(
    broker: RedisBroker, client: redis.Redis, stock: Any
) -> None:
    stock_publish(stock(), "1", priority=6)
    (text,) = client.lrange("contract\x06\x166", 0, -1)
    (delivery,) = await receive(broker)
    assert delivery.envelope == text

    held = client.hget("unacked", delivery.tag)
    envelope, exchange, routing_key = json.loads(held)

    assert (exchange, routing_key) == ("", QUEUE)
    assert envelope.pop("celeriac-deliveries") == 1
    assert envelope == json.loads(text)
    assert client.zscore("unacked_index", delivery.tag) is not None


async def test_a_stock_worker_leaves_alone_what_is_leased(
    connect: Any, client: redis.Redis, stock: Any
) -> None:
    broker = await connect(lease=30.0)
    await broker.publish([publication("1")])
    (delivery,) = await receive(broker)

    impatient = stock(visibility_timeout=0.001, unacked_restore_throttle=1)
    impatient.qos.restore_visible(interval=1)

    assert not await broker.renew([delivery.tag])
    impatient.qos.restore_visible(interval=1)
    assert client.llen(QUEUE) == 0
    assert not await broker.settle(acknowledged([delivery]))
    assert client.hlen("unacked") == client.zcard("unacked_index") == client.zcard("celeriac:leases") == 0


async def test_a_stock_worker_restores_what_a_dead_worker_of_ours_held(
    connect: Any, client: redis.Redis, stock: Any
) -> None:
    broker = await connect(lease=0.05)
    await broker.publish([publication("1", priority=3)])
    (delivery,) = await receive(broker)
    channel = stock(visibility_timeout=0.05)
    while not client.llen("contract\x06\x163"):
        channel.qos.restore_visible(interval=1)

    # Whoever comes late hears that it is void, although a lease is still written down.
    assert set(await broker.renew([delivery.tag])) == {delivery.tag}
    assert set(await broker.settle(acknowledged([delivery]))) == {delivery.tag}
    (again,) = await receive(broker)
    assert (name_of(again), again.deliveries) == ("1", 2)
    assert decode(again.envelope).headers["redelivered"] is True
    assert client.zcard("celeriac:leases") == 1


async def test_we_restore_what_a_dead_stock_worker_held(
    connect: Any, client: redis.Redis, stock: Any
) -> None:
    channel = stock()
    stock_publish(channel, "1", priority=6)
    stock_take(channel)
    forget(channel)
    broker = await connect(visibility_timeout=0.1)
    start = time.monotonic()

    (delivery,) = await collect(broker, 1)

    assert time.monotonic() - start < 5
    assert (name_of(delivery), delivery.deliveries) == ("1", 2)
    assert decode(delivery.envelope).headers["redelivered"] is True
    assert client.hlen("unacked") == 1
    assert not await broker.settle(acknowledged([delivery]))
    assert client.hlen("unacked") == client.zcard("unacked_index") == 0


async def test_we_leave_alone_what_a_live_stock_worker_holds(connect: Any, stock: Any) -> None:
    channel = stock()
    stock_publish(channel, "1")
    held = stock_take(channel)
    broker = await connect()

    assert await receive(broker) == []
    await broker.wait([QUEUE], timeout=0)

    channel.basic_ack(held.delivery_tag)
    assert await receive(broker) == []


@pytest.mark.parametrize(("kind", "binding"), [("direct", "a.b"), ("topic", "a.*")])
async def test_we_restore_into_the_queues_of_an_exchange(
    connect: Any, stock: Any, kind: str, binding: str
) -> None:
    channel = stock()
    exchange = kombu.Exchange("ex", kind)
    queue = kombu.Queue(QUEUE, exchange, routing_key=binding)(channel)
    queue.declare()
    kombu.Queue("other", exchange, routing_key="b")(channel).declare()
    sent = message("1")
    kombu.Producer(channel, exchange).publish("[]", routing_key="a.b", headers=dict(sent.headers))
    stock_take(channel)
    forget(channel)
    broker = await connect(visibility_timeout=0.1)

    (delivery,) = await collect(broker, 1)

    assert (name_of(delivery), delivery.queue) == ("1", QUEUE)
    assert await broker.size("other") == 0


async def test_all_keys_have_the_prefix_and_the_names_that_were_asked_for(
    connect: Any, client: redis.Redis, stock: Any
) -> None:
    options = {
        "global_keyprefix": "my:",
        "sep": "|",
        "priority_steps": [0, 5],
        "unacked_key": "held",
        "unacked_index_key": "held_index",
    }
    broker, channel = await connect(lease=0.05, **options), stock(visibility_timeout=0.01, **options)
    stock_publish(channel, "1", priority=7)
    await broker.publish([publication("2", priority=5), publication("3"), publication("4", due=1.0)])
    await broker.publish([publication("5", due=time.time() + 100)])
    assert client.llen("my:contract|5") == 2

    taken = await receive(broker)
    assert [name_of(delivery) for delivery in taken] == ["1", "2", "3", "4"]
    assert client.hlen("my:held") == client.zcard("my:held_index") == 4
    while client.hlen("my:held"):
        channel.qos.restore_visible(interval=1)
    again = await receive(broker)
    assert {name_of(delivery): delivery.deliveries for delivery in again} == dict.fromkeys("1234", 2)
    await broker.settle([Settlement(delivery.tag, Action.DEAD_LETTER) for delivery in again])

    assert all(key.startswith(b"my:") for key in client.keys("*"))
    assert await broker.purge(QUEUE) == 1


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[1]", "{}", "{ no JSON", '{"body": "cut off', '"x"', "null"]
)
async def test_what_is_no_envelope_hurts_nobody(
    connect: Any, client: redis.Redis, stock: Any, text: str
) -> None:
    broker = await connect(lease=0.1)
    client.lpush(QUEUE, text)
    await broker.publish([publication("1")])

    bad, good = await receive(broker)
    assert (bad.envelope, name_of(good)) == (text.encode(), "1")

    # A stock worker decodes all that it restores; one that it cannot would end its round each time.
    channel = stock(visibility_timeout=0.01)
    while client.hexists("unacked", good.tag):
        channel.qos.restore_visible(interval=1)
    bad, good = sorted(await collect(broker, 2), key=lambda each: each.deliveries)
    assert (bad.envelope, good.deliveries) == (text.encode(), 2)
    await broker.settle([Settlement(bad.tag, Action.DEAD_LETTER, reason="malformed"), *acknowledged([good])])
    (letter,) = await broker.dead_letters()
    assert letter.envelope == text.encode()
    assert await broker.replay([letter.id]) == 1
    assert client.lrange(QUEUE, 0, -1) == [text.encode()]


async def test_a_message_that_was_never_heard_of_is_put_back_as_it_was(
    broker: RedisBroker, client: redis.Redis
) -> None:
    await broker.publish([publication("1")])
    before = client.lrange(QUEUE, 0, -1)
    (delivery,) = await receive(broker)

    await broker.settle([Settlement(delivery.tag, Action.REQUEUE, counted=False)])

    assert client.lrange(QUEUE, 0, -1) == before
