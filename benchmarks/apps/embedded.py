"""celeriac as it comes: records, results, validated arguments, and whatever ``CELERY_BROKER_URL`` names."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.apps.counting import counter
from benchmarks.apps.publishing import Publish
from celeriac import Celery

__all__ = ["celery", "nap", "noop", "publisher"]

_count = counter()

celery = Celery("benchmark")
celery.conf.task_default_queue = os.environ.get("BENCHMARK_QUEUE", "celery")
celery.conf.broker_transport_options = json.loads(os.environ.get("BENCHMARK_TRANSPORT_OPTIONS", "{}"))
# A server that has just started is slow at first, and that is not what is measured.
celery.conf.celeriac_publish_deadline = 60


@celery.task(name="noop")
async def noop(number: int) -> int:
    """As little as a task can do."""
    if _count is not None:
        _count()
    return number


@celery.task(name="nap")
async def nap(seconds: float) -> None:
    """Wait, as most tasks do most of the time."""
    await asyncio.sleep(seconds)


@asynccontextmanager
async def publisher() -> AsyncIterator[Publish]:
    """Publish while this is open."""
    async with celery:
        yield noop.enqueue
