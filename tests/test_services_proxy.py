"""The proxy that stands for a bad network does to connections what it claims to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from tests.services import Proxy, RedisServer


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(redis_server.host, redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def remote(proxy: Proxy) -> AsyncIterator[redis.asyncio.Redis]:
    retry = Retry(NoBackoff(), 0)
    async with redis.asyncio.Redis(
        host=proxy.host, port=proxy.port, retry=retry, socket_timeout=0.1
    ) as client:
        yield client


async def test_a_proxy_is_not_noticed(proxy: Proxy, remote: redis.asyncio.Redis) -> None:
    value = b"x" * 3_000_000
    await remote.set("key", value)
    assert await remote.get("key") == value
    assert (proxy.accepted, proxy.open_connections) == (1, 1)


async def test_a_cut_connection_is_reset_and_a_new_one_is_welcome(
    proxy: Proxy, remote: redis.asyncio.Redis
) -> None:
    await remote.ping()
    reader, _ = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.read()
    with pytest.raises(exceptions.ConnectionError):
        await remote.ping()
    assert await remote.ping()
    assert proxy.open_connections == 1


async def test_a_black_hole_swallows_and_forgets(
    proxy: Proxy, remote: redis.asyncio.Redis, redis_server: RedisServer
) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"PING\r\n")
    assert await reader.readline() == b"+PONG\r\n"
    proxy.blackhole()
    writer.write(b"SET key value\r\n")
    with pytest.raises(exceptions.TimeoutError):
        await remote.ping()  # a new connection is accepted, and gets no answer
    await proxy.heal()
    assert await remote.get("key") is None
    writer.write(b"PING\r\n")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readline(), 0.05)
    writer.close()


async def test_replies_alone_can_be_lost(proxy: Proxy, remote: redis.asyncio.Redis) -> None:
    await remote.ping()
    proxy.blackhole(requests=False)
    with pytest.raises(exceptions.TimeoutError):
        await remote.set("key", "value")
    await proxy.heal()
    assert await remote.get("key") == b"value"


async def test_a_server_that_ends_behind_a_black_hole_is_not_noticed(
    proxy: Proxy, redis_server: RedisServer
) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"PING\r\n")
    await reader.readline()
    proxy.blackhole()
    await asyncio.to_thread(redis_server.kill)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(), 0.1)
    writer.close()


async def test_a_server_that_ends_is_noticed_through_the_proxy(
    proxy: Proxy, redis_server: RedisServer
) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"PING\r\n")
    await reader.readline()
    await asyncio.to_thread(redis_server.kill)
    assert await asyncio.wait_for(reader.read(), 1) == b""
    writer.close()


async def test_a_proxy_refuses_and_heals_on_the_same_port(proxy: Proxy, remote: redis.asyncio.Redis) -> None:
    await remote.ping()
    await proxy.refuse()
    with pytest.raises(exceptions.ConnectionError):
        await remote.ping()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(proxy.host, proxy.port)
    await proxy.heal()
    assert await remote.ping()


async def test_delay_is_of_time_and_not_of_throughput(proxy: Proxy) -> None:
    client = redis.asyncio.Redis(host=proxy.host, port=proxy.port)
    await client.ping()
    proxy.delay = 0.05
    started = time.perf_counter()
    assert await asyncio.gather(*(client.ping() for _ in range(20))) == [True] * 20
    # One after the other they would take three times as long, at least.
    assert 0.1 <= time.perf_counter() - started < 2
    await client.aclose()


async def test_delayed_bytes_stay_in_order(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    proxy.delay = 0.02
    for number in range(200):
        writer.write(b"ECHO %d\r\n" % number)
        await asyncio.sleep(0)
    for number in range(200):
        await reader.readline()
        assert await reader.readline() == b"%d\r\n" % number
    writer.close()
