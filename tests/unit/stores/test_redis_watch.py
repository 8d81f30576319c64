"""Who waits on a store in Redis while it cannot be heard."""

from __future__ import annotations

import asyncio
import time

import pytest
from celery import states
from tests.services import Proxy, RedisServer

from celeriac.errors import StoreUnavailable
from celeriac.stores.records import Transition
from celeriac.stores.redis import RedisStore

PATIENCE = 1.0


async def test_who_is_woken_after_a_gap_finds_a_store_that_answers(redis_server: RedisServer) -> None:
    async with Proxy(redis_server.host, redis_server.port) as proxy, asyncio.timeout(10):
        store = RedisStore(
            f"redis://{proxy.host}:{proxy.port}/0",
            options={"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE},
        )
        await store.open()
        steps = [Transition(task_id=task_id, state=states.PENDING, at=time.time()) for task_id in ("a", "b")]
        await store.transition(steps)
        await store.request_cancel(["b"])  # seen by those who begin to listen now only if they catch up
        async with store.watch("a") as watch, store.cancellations() as feed:
            proxy.blackhole()
            asked = asyncio.create_task(store.get(["a"]))  # now the connection for commands is dead for good
            await asyncio.sleep(0.01)
            await proxy.heal()
            await asyncio.to_thread(redis_server.disconnect, "pubsub")
            await watch.changed()
            assert (await store.get(["a"]))["a"].state == states.PENDING
            assert set(await feed.next()) == {"b"}
            with pytest.raises(StoreUnavailable):
                await asked
        await store.close()


async def test_a_mark_that_is_no_text_keeps_nobody_from_what_was_missed(redis_server: RedisServer) -> None:
    store = RedisStore(redis_server.url)
    await store.open()
    async with store.watch("a") as watch, store.cancellations() as feed:
        redis_server.command("ZADD", "celeriac:cancelled", int(time.time()), b"\xff")
        redis_server.command("ZADD", "celeriac:cancelled", int(time.time()), "missed")
        redis_server.disconnect("pubsub")
        async with asyncio.timeout(5):
            assert "missed" in await feed.next()
            await watch.changed()
    await store.close()
