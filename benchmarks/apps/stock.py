"""Plain Celery, without anything that costs time and is not asked for; with results where the environment says so."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from celery import Celery

from benchmarks.apps.counting import counter
from benchmarks.apps.publishing import Publish

__all__ = ["celery", "noop", "publisher"]

_IN_THREADS = "BENCHMARK_THREADS" in os.environ

_count = counter()

celery = Celery("benchmark")
celery.conf.task_default_queue = os.environ.get("BENCHMARK_QUEUE", "celery")
celery.conf.broker_transport_options = json.loads(os.environ.get("BENCHMARK_TRANSPORT_OPTIONS", "{}"))
celery.conf.update(
    task_ignore_result="CELERY_RESULT_BACKEND" not in os.environ,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
if os.environ.get("CELERY_BROKER_URL", "").startswith("amqp"):
    celery.conf.update(task_default_queue_type="quorum", broker_transport_options={"confirm_publish": True})
if os.environ.get("CELERY_BROKER_URL", "").startswith(("sqs", "confluentkafka")):
    # Nothing could reach it; on Kafka it would wait five seconds for that after every task.
    celery.conf.worker_enable_remote_control = False


@celery.task(name="noop")  # type: ignore[untyped-decorator]
def noop(number: int) -> int:
    """As little as a task can do."""
    if _count is not None:
        _count()
    return number


@asynccontextmanager
async def publisher() -> AsyncIterator[Publish]:
    """Publish while this is open. ``delay`` blocks, as it does in every application.

    With ``BENCHMARK_THREADS`` it blocks a thread, as in a ``def`` endpoint of FastAPI's.
    """

    async def publish(number: int) -> object:
        if _IN_THREADS:
            return await to_thread.run_sync(noop.delay, number)
        return noop.delay(number)

    yield publish
