"""Links and subscribers of a test, which are closed with it, and how they are watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from tests.services import Proxy, RedisServer

from celeriac.redis.link import Link
from celeriac.redis.server import Server
from celeriac.redis.subscriber import Subscriber

#: Seconds of silence after which servers of these tests count as gone.
PATIENCE = 0.5

#: Less than that: what needs no waiting, on a machine that may be busy.
AT_ONCE = 0.25

OpenLink = Callable[..., Awaitable[Link]]


def server_at(url: str, **options: Any) -> Server:
    """A server that counts as gone after PATIENCE."""
    return Server.from_url(url, {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, **options})


@pytest.fixture
async def open_link() -> AsyncIterator[OpenLink]:
    async with AsyncExitStack() as stack:

        async def open_(url: str, **options: Any) -> Link:
            link = Link(server_at(url, **options))
            await link.open()
            stack.push_async_callback(link.close)
            return link

        yield open_


@pytest.fixture
async def link(redis_server: RedisServer, open_link: OpenLink) -> Link:
    return await open_link(redis_server.url)


@pytest.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(redis_server.host, redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def remote(proxy: Proxy, open_link: OpenLink) -> Link:
    """A link through a network that can fail."""
    return await open_link(f"redis://{proxy.host}:{proxy.port}/0")


@asynccontextmanager
async def no_stalls(longest: float = 0.1) -> AsyncIterator[None]:
    """Fail if anything on the loop computes for this many seconds at a time, or blocks it for a second.

    Blocking is measured generously, because other processes may keep this one from running.
    """
    computed: list[float] = []
    passed: list[float] = []

    async def beat() -> None:
        while True:
            before = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0.002)
            computed.append(time.thread_time() - before[0])
            passed.append(time.perf_counter() - before[1])

    beating = asyncio.create_task(beat())
    try:
        yield
        await asyncio.sleep(0.005)
    finally:
        beating.cancel()
    assert max(computed) < longest
    assert max(passed) < 1


class Inbox:
    """A callback whose calls a test awaits."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[bytes] = asyncio.Queue()

    def __call__(self, message: bytes = b"") -> None:
        self._messages.put_nowait(message)

    async def next(self, timeout: float = 5) -> bytes:
        return await asyncio.wait_for(self._messages.get(), timeout)

    def __len__(self) -> int:
        return self._messages.qsize()


@pytest.fixture
async def subscriber(redis_server: RedisServer) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber(server_at(redis_server.url))
    yield subscriber
    await leave(subscriber)


@pytest.fixture
async def remote_subscriber(proxy: Proxy) -> AsyncIterator[Subscriber]:
    """A subscriber through a network that can fail."""
    subscriber = Subscriber(server_at(f"redis://{proxy.host}:{proxy.port}"))
    yield subscriber
    await leave(subscriber)


async def leave(subscriber: Subscriber) -> None:
    """End what a test has left."""
    for channel, callbacks in list(subscriber._callbacks.items()):
        for callback in list(callbacks):
            subscriber._leave(channel, callback)
    if subscriber._runner is not None:
        subscriber._runner.cancel()
        await asyncio.wait([subscriber._runner])


async def publish(server: RedisServer, channel: str, message: str) -> int:
    """How many heard it."""
    return await asyncio.to_thread(server.command, "PUBLISH", channel, message)


async def until(condition: Callable[[], Any]) -> None:
    """For what the server does when a connection ends: it tells nobody."""
    async with asyncio.timeout(5):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.005)
