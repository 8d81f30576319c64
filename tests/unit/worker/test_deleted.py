"""A task that was cancelled, and whose record was deleted while its message waited: it does not run, nor come back."""

from __future__ import annotations

from uuid import uuid4

import pytest
import redis

from celeriac import Celery
from celeriac.errors import TaskNotFound
from celeriac.worker.embedded import run_embedded


@pytest.fixture(params=["memory", "sqlite", "redis"])
def celery(request: pytest.FixtureRequest, database_url: str) -> Celery:
    url = {"memory": f"memory://{uuid4()}", "sqlite": database_url}.get(request.param)
    if url is None:
        url = str(request.getfixturevalue("redis_url"))
        with redis.Redis.from_url(url) as client:
            client.flushdb()
    app = Celery("deleted", broker=url, backend=url, set_as_current=False)
    app.conf.worker_enable_remote_control = False
    return app


async def test_a_deleted_task_stays_cancelled_and_deleted(celery: Celery) -> None:
    ran: list[str] = []

    @celery.task
    async def run(name: str) -> str:
        ran.append(name)
        return name

    async with celery:
        deleted, other = await run.enqueue("deleted"), await run.enqueue("other")
        assert await deleted.cancel()
        assert await celery.store.forget([deleted.id]) == 1
        async with run_embedded(celery, concurrency=1):
            assert await other.result(10) == "other"
            assert await (await run.enqueue("last")).result(10) == "last"
        assert ran == ["other", "last"]
        with pytest.raises(TaskNotFound):
            await deleted.record()
        assert await celery.queue_size("celery") == 0


async def test_a_task_that_is_enqueued_anew_under_the_id_runs(celery: Celery) -> None:
    @celery.task
    async def double(number: int) -> int:
        return 2 * number

    async with celery:
        first = await double.using(queue="nobodys", task_id="one").enqueue(1)
        await first.cancel()
        await celery.store.forget(["one"])
        async with run_embedded(celery, concurrency=1):
            assert await (await double.using(task_id="one").enqueue(2)).result(10) == 4
