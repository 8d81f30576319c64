"""Connections to RabbitMQ that have fallen silent are noticed, and those that end leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time

import pytest
from aiormq.base import Base
from tests.services import Proxy, RabbitMQServer

from celeriac.brokers.amqp import AMQPBroker
from celeriac.errors import BrokerUnavailable
from celeriac.testing.contract.messages import acknowledged, collect, publication


def through(proxy: Proxy, url: str, heartbeat: int) -> str:
    vhost = url.rpartition("/")[2]
    return f"amqp://guest:guest@{proxy.host}:{proxy.port}/{vhost}?heartbeat={heartbeat}"


async def test_deliveries_are_given_up_when_the_server_gives_them_up(
    rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    async with Proxy(rabbitmq.host, rabbitmq.port) as proxy:
        broker = AMQPBroker(through(proxy, rabbitmq_url, 2))
        await broker.open()
        lost: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        broker.on_lost(lambda tags: lost.done() or lost.set_result(list(tags)))
        await broker.publish([publication("1")])
        [held] = await collect(broker, 1)
        proxy.blackhole()
        asking = [
            asyncio.ensure_future(broker.receive(["contract"], 1)),
            asyncio.ensure_future(broker.size("x")),
        ]
        before = time.monotonic()
        async with asyncio.timeout(20):
            assert await lost == [held.tag]
            for error in await asyncio.gather(*asking, return_exceptions=True):
                assert isinstance(error, BrokerUnavailable)
        assert time.monotonic() - before < 6  # 10 by the driver's own patience
        await broker.close()


async def test_the_server_is_asked_whether_a_delivery_is_still_ours(
    rabbitmq: RabbitMQServer, rabbitmq_url: str
) -> None:
    async with Proxy(rabbitmq.host, rabbitmq.port) as proxy:
        broker = AMQPBroker(through(proxy, rabbitmq_url, 60))
        await broker.open()
        await broker.publish([publication("1")])
        [held] = await collect(broker, 1)
        assert not await broker.renew([held.tag])
        proxy.cut()
        # As in a process that was stopped, and goes on before it has read that its connection has ended.
        with contextlib.suppress(BrokerUnavailable):
            assert await broker.renew([held.tag]) == [held.tag]
        async with asyncio.timeout(20):
            while await broker.renew([held.tag]) != [held.tag]:
                await asyncio.sleep(0.01)
        await broker.close()


@pytest.mark.parametrize(("heartbeat", "sure"), [("2", 4.0), ("60", 30.0), ("0", 30.0)])
def test_a_delivery_is_surely_ours_until_the_server_may_give_the_connection_up(
    heartbeat: str, sure: float
) -> None:
    assert AMQPBroker(f"amqp://localhost?heartbeat={heartbeat}", lease=30.0).sure_for == sure


async def test_connections_that_end_leave_nothing_behind(rabbitmq_url: str) -> None:
    broker = AMQPBroker(rabbitmq_url)
    await broker.open()

    async def reconnect() -> int:
        """Lose both connections, and count what there is of the driver's."""
        await broker.publish([publication("1")])
        await broker._in.drop()
        assert not await broker.settle(acknowledged(await collect(broker, 1)))
        await broker._out.drop()
        gc.collect()
        return sum(issubclass(type(each), Base) for each in gc.get_objects())  # not to wake proxies

    first = max([await reconnect() for _ in range(3)])
    last = min([await reconnect() for _ in range(6)])
    assert last <= first
    await broker.close()
