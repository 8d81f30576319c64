"""Whoever waits for a result in Redis by Celery's means has it, whenever it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from tests.interop.conftest import wait_until
from tests.services import Proxy, RedisServer

import celeriac

pytestmark = pytest.mark.timeout(60)

#: Seconds that a test waits for what must come.
PATIENCE = 20


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.host, server.port) as proxy:
        yield proxy


@pytest.fixture
async def ours(proxy: Proxy) -> AsyncIterator[Any]:
    url = f"redis://{proxy.host}:{proxy.port}/0"
    app = celeriac.Celery("ours", broker="memory://", backend=url, set_as_current=False)
    yield app
    await asyncio.to_thread(app.close)


@pytest.fixture
def elsewhere(server: RedisServer) -> Iterator[Any]:
    """An app that stores results, over a network of its own."""
    app = celeriac.Celery("elsewhere", broker="memory://", backend=server.url, set_as_current=False)
    yield app
    app.close()


def _single(app: Any) -> Any:
    return [app.AsyncResult("1").get(timeout=PATIENCE)]


def _group(app: Any) -> Any:
    return app.GroupResult("g", [app.AsyncResult("1"), app.AsyncResult("2")]).get(timeout=PATIENCE)


def _store(app: Any) -> None:
    app.backend.store_result("1", "one", "SUCCESS")
    app.backend.store_result("2", "two", "SUCCESS")


@pytest.mark.parametrize(("get", "expected"), [(_single, ["one"]), (_group, ["one", "two"])])
async def test_a_result_between_the_look_and_the_subscription(
    proxy: Proxy, server: RedisServer, ours: Any, elsewhere: Any, get: Any, expected: Any
) -> None:
    proxy.hold(b"SUBSCRIBE")
    waiting = asyncio.create_task(asyncio.to_thread(get, ours))
    await asyncio.wait_for(proxy.holds.wait(), PATIENCE)
    with redis.Redis.from_url(server.url) as client:
        await asyncio.to_thread(wait_until, lambda: _looks(client) > 0)
    await asyncio.to_thread(_store, elsewhere)
    proxy.let_go()

    assert await waiting == expected


def _looks(client: redis.Redis) -> int:
    stats: Any = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("get", "mget"))


async def test_many_threads_wait_for_their_results(ours: Any, elsewhere: Any) -> None:
    names = [f"task-{number}" for number in range(20)]
    results = await asyncio.to_thread(
        lambda: [ours.AsyncResult(name) for name in names]
    )  # one backend for all
    begun = threading.Barrier(len(names) + 1)

    def get(result: Any) -> Any:
        begun.wait(PATIENCE)
        return result.get(timeout=PATIENCE)

    def store() -> None:
        begun.wait(PATIENCE)
        for name in names:
            elsewhere.backend.store_result(name, name, "SUCCESS")

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(names) + 1))
    found = await asyncio.gather(
        asyncio.to_thread(store), *(asyncio.to_thread(get, result) for result in results)
    )
    assert found[1:] == names
