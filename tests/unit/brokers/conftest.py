"""Brokers on a Redis server, and kombu's own transport beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import kombu
import pytest
import redis
from kombu.transport.redis import Channel

from celeriac.brokers.redis import RedisBroker

Connect = Callable[..., Awaitable[RedisBroker]]
Stock = Callable[..., Channel]


@pytest.fixture
def url(redis_url: str) -> str:
    """An empty server."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    return redis_url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    """A client that looks at the keys."""
    with redis.Redis.from_url(url, protocol=2) as client:
        yield client


@pytest.fixture
async def connect(url: str) -> AsyncIterator[Connect]:
    """Opens a broker: ``connect(lease, url=…, **transport_options)``."""
    opened: list[RedisBroker] = []

    async def connect(lease: float = 30.0, url: str = url, **options: Any) -> RedisBroker:
        broker = RedisBroker(url, lease=lease, options=options)
        await broker.open()
        opened.append(broker)
        return broker

    yield connect
    for broker in opened:
        await broker.close()


@pytest.fixture
async def broker(connect: Connect) -> RedisBroker:
    """A broker with the defaults."""
    return await connect()


@pytest.fixture
def stock(url: str) -> Iterator[Stock]:
    """Opens a channel of kombu's Redis transport: ``stock(**transport_options)``."""
    connections: list[kombu.Connection] = []

    def channel(**options: Any) -> Channel:
        connection = kombu.Connection(url, transport_options=options)
        connections.append(connection)
        return connection.default_channel

    yield channel
    for connection in connections:
        connection.release()
