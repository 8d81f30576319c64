"""A message that is refused for good is its sender's trouble alone, and a queue that is refused nobody's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.services import RedisServer

from celeriac import Celery
from celeriac.errors import BrokerUnavailable
from celeriac.worker.embedded import run_embedded


@pytest.fixture
def celery(redis_server: RedisServer) -> Celery:
    redis_server.command("SET", "taken", "somebody else's")
    app = Celery("refusals", broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.5
    return app


async def test_who_enqueues_in_the_same_tick_is_not_refused(
    celery: Celery, redis_server: RedisServer
) -> None:
    @celery.task
    async def task() -> None: ...

    async with celery:
        good, bad = await asyncio.gather(
            task.enqueue(), task.using(queue="taken").enqueue(), return_exceptions=True
        )

    assert isinstance(bad, BrokerUnavailable)
    assert not isinstance(good, BaseException), good
    assert redis_server.command("LLEN", "celery") == 1


async def test_a_retry_that_is_refused_holds_up_no_settlement(
    celery: Celery, redis_server: RedisServer
) -> None:
    @celery.task(bind=True)
    async def retry(self: Any) -> None:
        raise self.retry(queue="taken", countdown=0)

    @celery.task
    async def fine() -> None: ...

    async with celery, run_embedded(celery, concurrency=5):
        await retry.enqueue()
        handles = [await fine.enqueue() for _ in range(20)]
        for handle in handles:
            await handle.result(5)
        async with asyncio.timeout(5):
            while redis_server.command("HLEN", "unacked") > 1:  # the retry comes back with its lease's end
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("url", ["redis", "sqlite"])
async def test_a_queue_whose_name_is_no_text_stops_no_worker(
    celery: Celery, tmp_path: Path, url: str
) -> None:
    if url == "sqlite":
        file = f"sqlite:///{tmp_path / 'celery.db'}"
        celery.conf.update(broker_url=file, result_backend=file)

    @celery.task
    async def fine() -> None: ...

    async with celery, run_embedded(celery, concurrency=5):
        added = await asyncio.to_thread(celery.control.add_consumer, "\ud800", reply=True, timeout=5, limit=1)
        assert "Invalid name of a queue" in str(added)
        for _ in range(3):
            await (await fine.enqueue()).result(5)
        assert "\ud800" not in celery.amqp.queues.consume_from
