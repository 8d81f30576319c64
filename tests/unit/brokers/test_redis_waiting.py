"""How a sleeping consumer hears of a message: soon, at little cost, and through whatever happens to the server."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import pytest
import redis
from tests.services import Proxy, RedisServer

from celeriac.brokers.redis import RedisBroker
from celeriac.errors import BrokerUnavailable
from celeriac.testing.contract.messages import acknowledged, collect, publication, receive

QUEUE = "contract"


async def until_asleep(broker: RedisBroker, queues: int = 1) -> None:
    """Until the broker's sentries have been posted."""
    sentries = broker._waiting._sentries
    async with asyncio.timeout(5):
        while sum(sentry._connection is not None for sentry in sentries.values()) < queues:
            await asyncio.sleep(0.001)


async def test_a_message_wakes_a_sleeper_within_milliseconds(broker: RedisBroker, connect: Any) -> None:
    publisher = await connect()
    woken: asyncio.Queue[float] = asyncio.Queue()

    async def consume() -> None:
        while True:
            if deliveries := await receive(broker):
                woken.put_nowait(time.perf_counter())
                await broker.settle(acknowledged(deliveries))
            else:
                await broker.wait([QUEUE])

    consuming = asyncio.create_task(consume())
    await until_asleep(broker)
    latencies = []
    for n in range(60):
        await asyncio.sleep(0.003)
        start = time.perf_counter()
        await publisher.publish([publication(str(n), priority=9 if n % 3 == 0 else 0)])
        latencies.append(await woken.get() - start)
    consuming.cancel()

    assert statistics.median(latencies) < 0.01, latencies
    assert max(latencies) < 0.2, latencies


async def test_sleeping_costs_next_to_nothing(broker: RedisBroker, client: redis.Redis) -> None:
    waiting = asyncio.create_task(broker.wait(["a", "b", "c"]))
    await until_asleep(broker, 3)
    client.config_resetstat()
    busy = time.process_time()
    await asyncio.wait([waiting], timeout=2)
    busy = time.process_time() - busy
    waiting.cancel()

    stats = client.info("commandstats")
    spent = sum(stat["usec"] for name, stat in stats.items() if name != "cmdstat_blmove")
    assert stats["cmdstat_evalsha"]["calls"] <= 10
    assert spent < 20_000  # microseconds of the server in two seconds
    assert busy < 0.1


async def test_what_stock_clients_put_elsewhere_is_found_soon(
    broker: RedisBroker, client: redis.Redis
) -> None:
    waiting = asyncio.create_task(broker.wait([QUEUE]))
    await until_asleep(broker)

    client.lpush("contract\x06\x163", "{}")

    async with asyncio.timeout(1):
        await waiting


async def test_many_queues_need_few_connections(broker: RedisBroker, client: redis.Redis) -> None:
    queues = [f"q{n}" for n in range(30)]
    before = client.info("clients")["connected_clients"]
    waiting = asyncio.create_task(broker.wait(queues))
    await until_asleep(broker, 8)

    assert client.info("clients")["connected_clients"] <= before + 10

    client.lpush("q29", "{}")
    async with asyncio.timeout(1):
        await waiting


async def test_a_message_that_is_there_is_not_moved_by_waiting(
    broker: RedisBroker, client: redis.Redis
) -> None:
    waiting = asyncio.create_task(broker.wait([QUEUE]))
    await until_asleep(broker)
    await broker.publish([publication(str(n)) for n in range(3)])
    await waiting
    texts = client.lrange(QUEUE, 0, -1)
    for _ in range(3):
        await broker.wait([QUEUE])

    assert client.lrange(QUEUE, 0, -1) == texts


async def test_a_sleeper_may_leave_and_come_back(broker: RedisBroker, connect: Any) -> None:
    publisher = await connect()
    for n in range(20):
        waiting = asyncio.create_task(broker.wait([QUEUE]))
        await asyncio.wait([waiting], timeout=0.002 * (n % 4))
        waiting.cancel()
        await asyncio.wait([waiting])
        if n % 2:
            await publisher.publish([publication(str(n))])
            async with asyncio.timeout(5):
                await broker.wait([QUEUE])
            assert len(await receive(broker)) == 1


async def test_a_sleeper_hears_that_the_server_has_gone(connect: Any, redis_server: RedisServer) -> None:
    broker = await connect(url=redis_server.url)
    waiting = asyncio.create_task(broker.wait([QUEUE]))
    await until_asleep(broker)
    redis_server.kill()
    with pytest.raises(BrokerUnavailable):
        async with asyncio.timeout(5):
            await waiting
    with pytest.raises(BrokerUnavailable):
        await broker.wait([QUEUE])

    redis_server.start()

    waiting = asyncio.create_task(broker.wait([QUEUE]))
    await asyncio.wait([waiting], timeout=0.1)
    await broker.publish([publication("1")])
    async with asyncio.timeout(5):
        await waiting
    assert len(await receive(broker)) == 1


@pytest.mark.parametrize("how", ["silent", "paused"])
async def test_a_sleeper_hears_that_nobody_answers(connect: Any, redis_server: RedisServer, how: str) -> None:
    async with Proxy(redis_server.host, redis_server.port) as proxy:
        broker = await connect(url=f"redis://{proxy.host}:{proxy.port}/0", socket_timeout=0.3)
        waiting = asyncio.create_task(broker.wait([QUEUE]))
        await until_asleep(broker)
        if how == "silent":
            proxy.blackhole()
        else:
            redis_server.pause()

        with pytest.raises(BrokerUnavailable, match="does not answer"):
            async with asyncio.timeout(5):
                await waiting

        await proxy.heal()
        redis_server.resume()
        await broker.publish([publication("1")])
        assert len(await collect(broker, 1)) == 1


async def test_a_connection_that_was_closed_for_idleness_is_no_error(
    broker: RedisBroker, client: redis.Redis
) -> None:
    await broker.publish([publication("1")])
    waiting = asyncio.create_task(broker.wait([QUEUE, "other"]))
    await waiting
    await until_asleep(broker, 2)
    while client.info("clients")["blocked_clients"] != 1:
        await asyncio.sleep(0.01)
    assert len(await receive(broker)) == 1
    for connection in client.client_list():
        if connection["cmd"] == "blmove" and connection["flags"] == "N":
            client.client_kill(connection["addr"])

    waiting = asyncio.create_task(broker.wait([QUEUE]))
    done, _ = await asyncio.wait([waiting], timeout=0.4)
    assert not done
    await broker.publish([publication("2")])
    async with asyncio.timeout(5):
        await waiting


async def test_closing_leaves_nothing_behind(connect: Any, redis_server: RedisServer) -> None:
    tasks = asyncio.all_tasks()
    broker = await connect(url=redis_server.url)
    waiting = asyncio.create_task(broker.wait(["a", "b"]))
    await until_asleep(broker, 2)
    await broker.publish([publication("later", due=time.time() + 100)])
    assert len(redis_server.connections()) == 4

    await broker.close()

    with pytest.raises(BrokerUnavailable):
        async with asyncio.timeout(5):
            await waiting
    async with asyncio.timeout(5):
        while redis_server.connections() or asyncio.all_tasks() != tasks:
            await asyncio.sleep(0.01)


async def test_failures_leak_nothing(connect: Any, redis_server: RedisServer) -> None:
    tasks = asyncio.all_tasks()
    broker = await connect(url=redis_server.url)
    await broker.publish([publication("1")])
    redis_server.kill()
    attempts = (
        lambda: broker.publish([publication("lost")]),
        lambda: broker.receive([QUEUE], 10),
        lambda: broker.wait([QUEUE]),
        lambda: broker.renew(["tag"]),
    )

    failed = 0
    for n in range(100):
        results = await asyncio.gather(*(attempts[n % 4]() for _ in range(100)), return_exceptions=True)
        failed += sum(isinstance(result, BrokerUnavailable) for result in results)

    assert failed == 10_000
    redis_server.start()
    assert await receive(broker) == []
    await broker.publish([publication("2")])
    assert len(await receive(broker)) == 1
    assert len(redis_server.connections()) <= 3  # for commands, for pub/sub, and one that waits for the queue
    assert len(asyncio.all_tasks()) < len(tasks) + 10
    await broker.close()
    async with asyncio.timeout(5):
        while redis_server.connections() or asyncio.all_tasks() != tasks:
            await asyncio.sleep(0.01)
