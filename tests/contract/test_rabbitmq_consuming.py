"""What a worker on RabbitMQ has pushed: as much as it asked for, and nothing once it rests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from celeriac.brokers.amqp import AMQPBroker
from celeriac.brokers.base import Broker, Delivery, Publication
from celeriac.errors import BrokerUnavailable
from celeriac.protocol.message import Message
from celeriac.testing.contract.messages import acknowledged, collect, name_of, publication, receive


@pytest_asyncio.fixture(params=["quorum", "classic"])
async def broker(request: pytest.FixtureRequest, rabbitmq_url: str) -> AsyncIterator[AMQPBroker]:
    arguments = {"x-queue-type": request.param}
    broker = AMQPBroker(rabbitmq_url, queue_arguments=lambda _: arguments)
    await broker.open()
    yield broker
    await broker.close()


async def publish(broker: Broker, count: int) -> None:
    await broker.publish([publication(str(n)) for n in range(count)])


async def ready(broker: Broker, count: int) -> None:
    """Wait until so many are left to other workers: what was pushed is not."""
    async with asyncio.timeout(10):
        while await broker.size("contract") != count:
            await asyncio.sleep(0.01)


async def test_no_more_is_pushed_than_was_asked_for(broker: AMQPBroker) -> None:
    await publish(broker, 20)
    first = await receive(broker, 2)
    second = await receive(broker, 3)
    await ready(broker, 15)
    consumers = broker._consuming._consumers["contract"].shares
    names = list(consumers)
    held = [*first, *second]
    for _ in range(5):
        assert not await broker.settle(acknowledged([held.pop(0)]))
        held += await collect(broker, 1)
    assert list(consumers) == names
    await ready(broker, 10)


async def test_a_worker_that_waits_and_is_interrupted_keeps_what_it_holds(broker: AMQPBroker) -> None:
    await publish(broker, 1)
    lost: list[str] = []
    broker.on_lost(lost.extend)
    held = await receive(broker, 1)
    for passes in range(1, 20):  # at each step of what it asks the server
        broker._consuming._consumers["contract"].shares.clear()
        waiting = asyncio.ensure_future(broker.wait(["contract"]))
        for _ in range(passes):
            await asyncio.sleep(0)
        waiting.cancel()
    assert not await receive(broker, 1)
    assert not lost
    assert not await broker.settle(acknowledged(held))


async def test_what_was_pushed_and_not_taken_goes_back_uncounted(broker: AMQPBroker) -> None:
    await publish(broker, 3)
    held = await receive(broker, 1)
    for _ in range(3):
        await broker._consuming.ensure(["contract"])
        async with asyncio.timeout(10):
            while not broker._consuming.has(["contract"]):
                await asyncio.sleep(0.01)
        await broker.rest()
        await ready(broker, 2)
    assert not await broker.settle(acknowledged(held))
    deliveries = await receive(broker)
    assert sorted(name_of(each) for each in deliveries) == ["1", "2"]
    assert {each.deliveries for each in deliveries} == {1}


async def test_a_queue_that_is_consumed_no_more_keeps_its_messages(broker: AMQPBroker) -> None:
    await broker.publish([publication(f"{queue}-{n}", queue) for queue in ("one", "two") for n in range(4)])
    first = await receive(broker, 2, ["one", "two"])
    second: list[Delivery] = list(await receive(broker, 4, ["two"]))
    assert {each.queue for each in second} == {"two"}
    async with asyncio.timeout(10):
        while await broker.size("one") != 4 - sum(each.queue == "one" for each in first):
            await asyncio.sleep(0.01)


async def test_messages_before_their_time_leave_no_appetite(broker: AMQPBroker) -> None:
    due = time.time() + 0.9
    await broker.publish([publication(f"late-{n}", due=due) for n in range(10)])
    await publish(broker, 20)
    for _ in range(30):
        (delivery,) = await collect(broker, 1)
        assert not name_of(delivery).startswith("late") or time.time() >= due
        assert not await broker.settle(acknowledged([delivery]))
    assert broker._consuming._consumers["contract"].prefetch <= 4


async def test_work_goes_on_when_nothing_can_be_published(
    broker: AMQPBroker, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Message({"task": "t", "id": "later", "eta": "2999-01-01T00:00:00+00:00"}, {}, b"[[], {}, {}]")
    await broker.publish([publication("1"), Publication(later, "contract"), publication("2")])
    held = await receive(broker, 1)
    await broker._in.drop()  # classic queues deliver it again, and do not say how often that was

    async def refuse(*_: object) -> None:
        raise BrokerUnavailable("full")

    with monkeypatch.context() as patched:
        patched.setattr(broker._publishing, "send", refuse)
        deliveries = await collect(broker, 2)
    assert [name_of(each) for each in held] == ["1"]
    assert sorted((name_of(each), each.deliveries) for each in deliveries) == [("1", 2), ("2", 1)]
    assert not await broker.settle(acknowledged(deliveries))
