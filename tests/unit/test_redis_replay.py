"""Running a task again whose broker is gone, while its record is not."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from tests.services.redis import RedisServer

from celeriac import Celery
from celeriac.errors import BrokerUnavailable
from celeriac.stores.records import Transition


async def test_a_replay_that_the_broker_does_not_take_changes_nothing(redis_server: RedisServer) -> None:
    with RedisServer() as results:
        celery = Celery("shop", broker=redis_server.url, backend=results.url, set_as_current=False)
        async with celery:
            handle = await celery.enqueue("shop.bill", ["ann"])
            started = Transition(task_id=handle.id, state="STARTED", at=time.time(), retries=2, worker="w")
            result = '{"exc_type": "E", "exc_message": ["x"]}'
            await celery.store.transition(
                [started, replace(started, state="FAILURE", result=result, traceback="tb")]
            )
            before = await handle.record()
            await asyncio.to_thread(redis_server.stop)
            with pytest.raises(BrokerUnavailable):
                await celery.replay(before)
            after = await handle.record()
            assert after.ready, "whoever asked can ask again"
            for name in ("state", "result", "traceback", "retries", "worker", "finished_at", "args"):
                assert getattr(after, name) == getattr(before, name), name
            redis_server.start()
            await celery.replay(after)
            assert await handle.state() == "PENDING"
            assert await celery.queue_size("celery") == 1
