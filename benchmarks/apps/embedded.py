"""celeriac as it comes: records, results, validated arguments, and whatever ``CELERY_BROKER_URL`` names."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.apps.publishing import Publish
from celeriac import Celery

__all__ = ["celery", "nap", "noop", "publisher"]

celery = Celery("benchmark")
celery.conf.broker_transport_options = json.loads(os.environ.get("BENCHMARK_TRANSPORT_OPTIONS", "{}"))


@celery.task(name="noop")
async def noop(number: int) -> int:
    """As little as a task can do."""
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
