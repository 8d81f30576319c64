"""A worker inside another program's event loop: for small deployments, and for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from celery.utils.log import get_logger

from celeriac.worker.consumer import Consumer
from celeriac.worker.pool import EmbeddedPool
from celeriac.worker.service import Service

__all__ = ["run_embedded"]

logger = get_logger(__name__)


@asynccontextmanager
async def run_embedded(
    app: Any, *, concurrency: int | None = None, queues: Callable[[], Sequence[str]] | None = None
) -> AsyncIterator[Service]:
    """Work on this loop while the context lasts; on leaving, running tasks get the grace period to finish.

    ``concurrency`` is the number of slots; ``queues`` says which queues to work on now, if not those of the app.
    Raises BrokerUnavailable when the broker cannot be opened.
    """
    # In a thread: building it imports the app's task modules.
    slots = concurrency or app.settings.concurrency
    controller = await asyncio.to_thread(app.EmbeddedWorker, concurrency=slots, pool=EmbeddedPool)
    consumer: Consumer = controller.consumer
    consumer.service.asked_queues = queues
    ready = asyncio.Event()
    consumer.on_ready = ready.set  # type: ignore[method-assign]
    controller.pool.start()
    serving = asyncio.create_task(consumer.service.run(listen_to_signals=False))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        serving.add_done_callback(_say_why)
        yield consumer.service
    finally:
        waiting.cancel()
        consumer.service.shutdown.request()
        await serving
        controller.pool.stop()


def _say_why(serving: asyncio.Task[int]) -> None:
    # The context may stay open for long, and its tasks would wait without a word.
    if not serving.cancelled() and (error := serving.exception()) is not None:
        logger.critical("The embedded worker has stopped: %s", error, exc_info=error)
