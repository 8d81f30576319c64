"""What one task leaves behind cannot be published: others are acknowledged, and its message is not kept for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.services import RabbitMQServer

from celeriac import Celery
from celeriac.worker.embedded import run_embedded

PATIENCE = 20.0


def shop(url: str, folder: Path) -> Celery:
    app = Celery("shop", broker=url, backend=f"sqlite:///{folder / 'celery.db'}", set_as_current=False)
    app.conf.celeriac_shutdown_grace = 0.5
    app.conf.worker_enable_remote_control = False
    app.conf.celeriac_delivery_limit = 2
    return app


async def unsettled(server: RabbitMQServer, vhost: str) -> int:
    """How many messages of the queue somebody has, or waits for."""
    told = await asyncio.to_thread(server.command, "list_queues", "-q", "-p", vhost, "name", "messages")
    return next(int(line.split()[1]) for line in told.splitlines() if line.startswith("celery\t"))


async def test_a_server_without_memory_gets_the_acknowledgements_that_free_it(
    rabbitmq_server: RabbitMQServer, tmp_path: Path
) -> None:
    app, doors, started = shop(rabbitmq_server.url, tmp_path), asyncio.Event(), asyncio.Semaphore(0)

    @app.task(bind=True)
    async def again(self: Any) -> None:
        started.release()
        await doors.wait()
        raise self.retry(countdown=0)

    @app.task
    async def fine() -> None:
        started.release()
        await doors.wait()

    async with app, run_embedded(app, concurrency=30):
        handles = [await fine.enqueue() for _ in range(10)]
        await again.enqueue()
        handles += [await fine.enqueue() for _ in range(10)]
        async with asyncio.timeout(PATIENCE):
            for _ in range(21):
                await started.acquire()
        try:
            await asyncio.to_thread(rabbitmq_server.command, "set_vm_memory_high_watermark", "0")
            # Its connection is blocked from its first message on.
            blocked = asyncio.ensure_future(fine.using(queue="elsewhere").enqueue())
            await asyncio.wait([blocked], timeout=PATIENCE)
            doors.set()
            for handle in handles:
                await handle.result(PATIENCE)
            async with asyncio.timeout(PATIENCE):
                while await unsettled(rabbitmq_server, "/") > 1:
                    await asyncio.sleep(0.1)
        finally:
            await asyncio.to_thread(rabbitmq_server.command, "set_vm_memory_high_watermark", "0.8")
            blocked.exception()


async def test_a_retry_that_is_refused_ends_as_a_dead_letter(
    rabbitmq: RabbitMQServer, rabbitmq_url: str, tmp_path: Path
) -> None:
    vhost = rabbitmq_url.rpartition("/")[2]
    await asyncio.to_thread(
        rabbitmq.api, "PUT", f"queues/{vhost}/taken", {"durable": True}
    )  # of another type
    app = shop(rabbitmq_url, tmp_path)

    @app.task(bind=True)
    async def again(self: Any) -> None:
        raise self.retry(queue="taken", countdown=0)

    async with app, run_embedded(app, concurrency=5):
        handle = await again.enqueue()
        async with asyncio.timeout(PATIENCE):
            while await handle.state() != "FAILURE":
                await asyncio.sleep(0.05)
            while not (letters := await app.dead_letters()):
                await asyncio.sleep(0.05)
        assert [letter.task_id for letter in letters] == [handle.id]
